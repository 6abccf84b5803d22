//! The calls under way, by what their client calls them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fault::{Fault, Problem};
use crate::limits::CALLS;
use crate::message::Id;

/// The calls under way.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<HashMap<Id, Handle>>);

/// What a client can do about a call.
#[derive(Debug)]
struct Handle {
    cancel: CancellationToken,
    acknowledged: watch::Sender<u64>,
}

/// What the call itself sees of that.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// The call is not wanted any more.
    pub(crate) cancel: CancellationToken,
    /// How many bytes of its output the client has consumed.
    pub(crate) acknowledged: watch::Receiver<u64>,
}

impl UnderWay {
    /// Takes up a call, which `cancel` ends.
    pub(crate) fn begin(&self, id: &Id, cancel: CancellationToken) -> Result<Control, Fault> {
        let mut calls = self.lock();
        if calls.len() >= CALLS {
            let message = format!("{CALLS} calls are under way already");
            return Err(Fault::new(Problem::TooManyCalls, message).hint("wait for one of them to end"));
        }
        match calls.entry(id.clone()) {
            Entry::Occupied(_) => {
                Err(Fault::new(Problem::InvalidRequest, "a call with this `id` is under way already"))
            }
            Entry::Vacant(free) => {
                let (acknowledged, consumed) = watch::channel(0);
                free.insert(Handle { cancel: cancel.clone(), acknowledged });
                Ok(Control { cancel, acknowledged: consumed })
            }
        }
    }

    pub(crate) fn end(&self, id: &Id) {
        self.lock().remove(id);
    }

    /// Cancels a call. One that has ended already is no error.
    pub(crate) fn cancel(&self, id: &Id) {
        if let Some(call) = self.lock().get(id) {
            call.cancel.cancel();
        }
    }

    /// The client has consumed that many bytes more.
    pub(crate) fn acknowledge(&self, id: &Id, bytes: u64) {
        if let Some(call) = self.lock().get(id) {
            call.acknowledged.send_modify(|sum| *sum = sum.saturating_add(bytes));
        }
    }

    /// Whoever panicked had finished with what matters.
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_bound_and_each_id_is_there_once() {
        let calls = UnderWay::default();
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
