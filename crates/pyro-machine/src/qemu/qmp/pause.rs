//! Why QEMU has paused its machine, in words. Nothing that QEMU sends is passed on: a guest may have taken it over.

use std::fmt;
use std::future::pending;

use serde_json::Value;
use tokio::sync::watch;

/// Tells that a VMM has paused its machine. The machine is of no use then: nothing would make it go on.
#[derive(Debug)]
pub(crate) struct Pauses(watch::Receiver<Option<String>>);

impl Pauses {
    pub(super) fn new(receiver: watch::Receiver<Option<String>>) -> Self {
        Self(receiver)
    }

    /// Returns the reporter of a VMM that never reports a pause.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(watch::channel(None).1)
    }

    /// Waits for the first pause, and returns its cause. Dropping the future loses nothing, and later calls return the same.
    pub(crate) async fn next(&mut self) -> String {
        if let Ok(cause) = self.0.wait_for(Option::is_some).await
            && let Some(cause) = &*cause
        {
            return cause.clone();
        }
        // The connection has failed.
        pending().await
    }
}

/// An error of a disk, as far as it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskError {
    is_write: bool,
    is_full: bool,
}

impl DiskError {
    /// Reads the data of the event `BLOCK_IO_ERROR`.
    pub(super) fn from_event(data: &Value) -> Self {
        Self { is_write: data["operation"] == "write", is_full: data["nospace"] == true }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, reason) = (
            if self.is_write { "write to" } else { "read from" },
            if self.is_full { "no space left on the host's disk" } else { "input/output error" },
        );
        write!(f, "cannot {operation} its file on the host: {reason}")
    }
}

/// Returns why a machine with this status does not run. `None`: it does, or it is being saved, restored, or ended.
pub(super) fn cause(status: &str, disk_error: Option<DiskError>) -> Option<String> {
    Some(match status {
        "internal-error" => "internal error: the accelerator cannot run the code of this guest".to_owned(),
        "io-error" => match disk_error {
            Some(error) => format!("a disk has failed: {error}"),
            None => "a disk has failed".to_owned(),
        },
        "guest-panicked" => "the guest has crashed".to_owned(),
        "watchdog" => "the watchdog has expired".to_owned(),
        "paused" => "a command has paused it".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_machine_that_is_saved_or_restored_has_no_fault() {
        let harmless = [
            "running",
            "inmigrate",
            "prelaunch",
            "finish-migrate",
            "postmigrate",
            "save-vm",
            "restore-vm",
            "shutdown",
            "suspended",
            "unheard of",
        ];
        for status in harmless {
            assert_eq!(cause(status, None), None, "{status}");
        }
        for status in ["internal-error", "io-error", "guest-panicked", "watchdog", "paused"] {
            assert!(cause(status, None).is_some(), "{status}");
        }
    }

    #[test]
    fn an_error_of_a_disk_is_told_without_the_words_of_the_vmm() {
        let data = json!({
            "device": "\u{1b}[2J", "node-name": "layer", "operation": "write", "action": "stop", "nospace": true,
            "reason": "\u{1b}[2J",
        });
        let error = DiskError::from_event(&data);
        assert_eq!(
            cause("io-error", Some(error)).unwrap(),
            "a disk has failed: cannot write to its file on the host: no space left on the host's disk"
        );
        let other = DiskError::from_event(&json!(7));
        assert_eq!(other.to_string(), "cannot read from its file on the host: input/output error");
    }

    #[tokio::test]
    async fn a_pause_is_told_as_often_as_it_is_asked_for() {
        let (sender, receiver) = watch::channel(None);
        let mut pauses = Pauses::new(receiver);
        sender.send_replace(Some("reason".to_owned()));
        drop(sender);
        for _ in 0..2 {
            assert_eq!(pauses.next().await, "reason");
        }
        let mut none = Pauses::none();
        tokio::select! {
            biased;
            cause = none.next() => panic!("{cause}"),
            () = tokio::task::yield_now() => {}
        }
    }
}
