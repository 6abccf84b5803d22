//! Requests to stop: Ctrl-C, SIGTERM, SIGHUP, and SIGQUIT.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
}

impl Signal {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::Terminate => 15,
        }
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Hangup => SignalKind::hangup(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Quit => SignalKind::quit(),
            Self::Terminate => SignalKind::terminate(),
        }
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Maximum number of requests in the queue. Further ones have no effect.
const REQUESTS_AHEAD: usize = 8;

/// A signal handler cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for signals")]
pub(crate) struct ListenError(#[source] pub(crate) io::Error);

/// Returns the requests to stop that this process receives from now on. Needs a running event loop.
///
/// A signal that the parent has set to be ignored (`nohup`, a script's background job) stays ignored.
pub(crate) fn listen() -> Result<mpsc::Receiver<Signal>, ListenError> {
    let (sender, receiver) = mpsc::channel(REQUESTS_AHEAD);
    for which in [Signal::Hangup, Signal::Interrupt, Signal::Quit, Signal::Terminate] {
        if is_ignored(which.number().into()) {
            continue;
        }
        let mut listener = signal(which.kind()).map_err(ListenError)?;
        let sender = sender.clone();
        tokio::spawn(
            async move { while listener.recv().await.is_some() && sender.send(which).await.is_ok() {} },
        );
    }
    Ok(receiver)
}

/// Returns whether the parent of this process has set a signal to be ignored.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_mask(&status) & (1 << (signal - 1)) != 0
}

/// Returns the `SigIgn` mask of a `/proc/…/status` text; bit n − 1 is signal n.
fn ignored_mask(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_from_the_status_text() {
        assert_eq!(ignored_mask("Name:\tpyro\nSigIgn:\t0000000000001003\nSigCgt:\t0\n"), 0x1003);
        assert_eq!(ignored_mask("Name:\tpyro\n"), 0);
        assert_eq!(ignored_mask("SigIgn:\tnonsense\n"), 0);
    }
}
