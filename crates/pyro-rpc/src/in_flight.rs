//! Calls in flight, by their ids.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Problem};
use crate::input_sender::{self, Queue, Queued};
use crate::limits::CALLS;
use crate::message::Id;

/// The calls in flight.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<Id, Handle>>);

/// How the client controls a call.
#[derive(Debug)]
struct Handle {
    cancel: CancellationToken,
    acknowledged: watch::Sender<u64>,
    input: Queue,
}

/// The call's side of [`Handle`].
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// The client cancels the call.
    pub(crate) cancel: CancellationToken,
    /// Number of bytes of its output that the client has acknowledged.
    pub(crate) acknowledged: watch::Receiver<u64>,
}

impl InFlight {
    /// Adds a call, which `cancel` cancels. Also returns its input.
    pub(crate) fn begin(&self, id: &Id, cancel: CancellationToken) -> Result<(Control, Queued), Failure> {
        let mut calls = self.lock();
        if calls.len() >= CALLS {
            let message = format!("too many calls in flight: the maximum is {CALLS}");
            return Err(Failure::new(Problem::TooManyCalls, message).hint("wait for one of them to end"));
        }
        match calls.entry(id.clone()) {
            Entry::Occupied(_) => {
                Err(Failure::new(Problem::InvalidRequest, "a call with this `id` is already in flight"))
            }
            Entry::Vacant(free) => {
                let (acknowledged, consumed) = watch::channel(0);
                let (input, queued) = input_sender::queue();
                free.insert(Handle { cancel: cancel.clone(), acknowledged, input });
                Ok((Control { cancel, acknowledged: consumed }, queued))
            }
        }
    }

    pub(crate) fn end(&self, id: &Id) {
        self.lock().remove(id);
    }

    /// Cancels a call. Does nothing if it has ended.
    pub(crate) fn cancel(&self, id: &Id) {
        if let Some(call) = self.lock().get(id) {
            call.cancel.cancel();
        }
    }

    /// Acknowledges further bytes of output.
    pub(crate) fn acknowledge(&self, id: &Id, bytes: u64) {
        if let Some(call) = self.lock().get(id) {
            call.acknowledged.send_modify(|sum| *sum = sum.saturating_add(bytes));
        }
    }

    /// Adds input for a call. One that sends more than it may, or goes on after the end, is cancelled.
    pub(crate) fn input(&self, id: &Id, data: &[u8], finished: bool) {
        if let Some(call) = self.lock().get(id)
            && let Err(refused) = call.input.put(data, finished)
        {
            tracing::warn!(?id, "{refused}");
            call.cancel.cancel();
        }
    }

    /// A panic cannot leave the map inconsistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_limited_and_ids_are_unique() {
        let calls = InFlight::default();
        let begin = |number| calls.begin(&Id::Number(number), CancellationToken::new());
        let bound = CALLS as i64;
        for number in 0..bound {
            begin(number).unwrap();
        }
        assert_eq!(begin(bound).unwrap_err().problem, Problem::TooManyCalls);
        calls.end(&Id::Number(0));
        assert_eq!(begin(1).unwrap_err().problem, Problem::InvalidRequest);
        begin(bound).unwrap();
    }
}
