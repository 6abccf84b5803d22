//! Cancels a pull.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    cancelled: bool,
    next_id: u64,
    callbacks: Vec<(u64, Callback)>,
}

/// A flag shared by the thread that pulls and the code that may cancel it. Clones share the same flag.
///
/// Setting it wakes the pull at once; nothing polls. It takes a lock, so set it from a thread, not from inside a signal
/// handler.
#[derive(Clone, Default)]
pub struct CancelFlag {
    state: Arc<Mutex<State>>,
}

impl CancelFlag {
    /// Creates a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag permanently.
    pub fn cancel(&self) {
        let callbacks = {
            let mut state = self.lock();
            state.cancelled = true;
            std::mem::take(&mut state.callbacks)
        };
        for (_, callback) in callbacks {
            callback();
        }
    }

    /// Returns whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Calls `callback` when the flag is set, or at once if it already is, unless the subscription is dropped first.
    pub(crate) fn subscribe(&self, callback: impl FnOnce() + Send + 'static) -> Subscription<'_> {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        if state.cancelled {
            drop(state);
            callback();
        } else {
            state.callbacks.push((id, Box::new(callback)));
        }
        Subscription { flag: self, id }
    }

    // The state is valid after every statement, so a panic elsewhere does not corrupt it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CancelFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelFlag").field("cancelled", &self.is_cancelled()).finish()
    }
}

pub(crate) struct Subscription<'a> {
    flag: &'a CancelFlag,
    id: u64,
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        self.flag.lock().callbacks.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn subscribers_hear_of_it_once_and_only_while_subscribed() {
        let flag = CancelFlag::new();
        let (sender, receiver) = mpsc::channel();
        let gone = sender.clone();
        drop(flag.subscribe(move || gone.send("gone").expect("receiver lives")));
        let early = sender.clone();
        let _early = flag.subscribe(move || early.send("early").expect("receiver lives"));
        flag.clone().cancel();
        flag.cancel();
        let _late = flag.subscribe(move || sender.send("late").expect("receiver lives"));
        assert!(flag.is_cancelled());
        drop(_early);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["early", "late"]);
    }
}
