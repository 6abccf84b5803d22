//! The state machine of VMs and tasks. It is pure: it decides and changes nothing.
//!
//! ```text
//!              start                stop, died
//!  created ────────────► started ───────────────► stopped
//!     │                   │  ▲                      │ │
//!     │ stop              │  └──────── start ───────┘ │
//!     └───────────────────┼────────────────────────►  │
//!                         │                           │
//!      delete             │ delete (stop first)       │ delete
//!        ▼                ▼                           ▼
//!     no record        no record                  no record
//! ```
//!
//! | event | created | started | stopped |
//! |---|---|---|---|
//! | start | → started | denied | → started |
//! | exec | denied | keep | denied |
//! | stop | → stopped | → stopped | keep |
//! | delete | remove | stop, then remove | remove |
//! | read | keep | keep | keep |
//! | died | keep | → stopped | keep |
//!
//! A completed exec is followed by a delete, unless it is a task's; a failed exec leaves the VM unchanged. When a
//! lifetime ends, a VM is deleted and a task is stopped. There is no state for "starting": a start becomes durable only
//! when the guest is up.

use crate::{Error, Kind, VmState};

/// The state machine.
pub(crate) trait Transitions {
    /// Decides what `event` means in this state.
    fn apply(self, event: VmEvent) -> Result<Transition, Denied>;
}

impl Transitions for VmState {
    fn apply(self, event: VmEvent) -> Result<Transition, Denied> {
        use Transition::{Become, Keep, Remove};
        match (event, self) {
            (VmEvent::Start, Self::Created | Self::Stopped) => Ok(Become(Self::Started)),
            (VmEvent::Start, Self::Started) => Err(Denied::AlreadyStarted),

            (VmEvent::Exec, Self::Started) => Ok(Keep),
            (VmEvent::Exec, Self::Created | Self::Stopped) => Err(Denied::NotStarted(self)),

            (VmEvent::Stop, Self::Created | Self::Started) => Ok(Become(Self::Stopped)),
            (VmEvent::Stop, Self::Stopped) => Ok(Keep),

            (VmEvent::Delete, _) => Ok(Remove),

            (VmEvent::Read, _) => Ok(Keep),

            (VmEvent::Died, Self::Started) => Ok(Become(Self::Stopped)),
            (VmEvent::Died, Self::Created | Self::Stopped) => Ok(Keep),
        }
    }
}

/// An event that can happen to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmEvent {
    /// A caller starts it.
    Start,
    /// A caller requests a command in it.
    Exec,
    /// A caller stops it.
    Stop,
    /// A caller or a cleanup deletes it.
    Delete,
    /// A caller reads its state.
    Read,
    /// It ended on its own.
    Died,
}

/// The effect of an allowed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The state is unchanged.
    Keep,
    /// The VM changes to another state.
    Become(VmState),
    /// The VM is removed.
    Remove,
}

/// Why an event is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Start of a running VM.
    AlreadyStarted,
    /// A command for a VM in this state, in which it is not running.
    NotStarted(VmState),
}

impl Denied {
    /// Returns the error for the VM or task `id`.
    pub(crate) fn into_error(self, kind: Kind, id: &str) -> Error {
        match self {
            Self::AlreadyStarted => Error::cannot_start(kind, id, VmState::Started),
            Self::NotStarted(state) => Error::not_started(kind, id, state),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [VmEvent; 6] =
        [VmEvent::Start, VmEvent::Exec, VmEvent::Stop, VmEvent::Delete, VmEvent::Read, VmEvent::Died];

    /// Checks the table in the module's documentation.
    #[test]
    fn every_cell_of_the_table() {
        use Transition::{Become, Keep, Remove};
        use VmState::{Created, Started, Stopped};
        let table = [
            (VmEvent::Start, [Ok(Become(Started)), Err(Denied::AlreadyStarted), Ok(Become(Started))]),
            (VmEvent::Exec, [Err(Denied::NotStarted(Created)), Ok(Keep), Err(Denied::NotStarted(Stopped))]),
            (VmEvent::Stop, [Ok(Become(Stopped)), Ok(Become(Stopped)), Ok(Keep)]),
            (VmEvent::Delete, [Ok(Remove), Ok(Remove), Ok(Remove)]),
            (VmEvent::Read, [Ok(Keep), Ok(Keep), Ok(Keep)]),
            (VmEvent::Died, [Ok(Keep), Ok(Become(Stopped)), Ok(Keep)]),
        ];
        for (event, cells) in table {
            for (state, expected) in VmState::ALL.iter().zip(cells) {
                assert_eq!(state.apply(event), expected, "{event:?} in {state}");
            }
        }
    }

    /// A VM as the contract describes it: does it exist, was it ever started, is it running?
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Model {
        exists: bool,
        fresh: bool,
        running: bool,
    }

    impl Model {
        /// Returns whether the call succeeds, and the resulting state.
        fn call(self, event: VmEvent) -> (bool, Self) {
            match event {
                VmEvent::Start => (!self.running, Self { fresh: false, running: true, ..self }),
                VmEvent::Exec => (self.running, self),
                VmEvent::Stop => (true, Self { fresh: false, running: false, ..self }),
                VmEvent::Delete => (true, Self { exists: false, running: false, ..self }),
                VmEvent::Read => (true, self),
                VmEvent::Died => (true, Self { running: false, ..self }),
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(events in proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 0..40)) {
            let mut state = Some(VmState::Created);
            let mut model = Model { exists: true, fresh: true, running: false };
            for event in events {
                let Some(now) = state else { break };
                let (allowed, next) = model.call(event);
                match now.apply(event) {
                    Ok(transition) => {
                        prop_assert!(allowed);
                        state = match transition {
                            Transition::Keep => Some(now),
                            Transition::Become(to) => Some(to),
                            Transition::Remove => None,
                        };
                        model = next;
                    }
                    Err(denied) => {
                        prop_assert!(!allowed);
                        prop_assert_eq!(denied.into_error(Kind::Task, "x").kind, crate::ErrorKind::WrongState);
                    }
                }
                prop_assert_eq!(state.is_some(), model.exists);
                prop_assert_eq!(state == Some(VmState::Started), model.running);
                prop_assert_eq!(state == Some(VmState::Created), model.exists && model.fresh);
            }
        }
    }
}
