//! Why a machine has no network.

use std::io;

/// Why a machine has no network, or has lost it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The program that carries the packets is not installed.
    #[error("passt is not installed (Debian package passt); a VM with a network needs it")]
    NotInstalled,
    /// That program could not be started.
    #[error("cannot run passt")]
    Run(#[source] io::Error),
    /// The link between that program and the machine could not be created.
    #[error("cannot make a socket pair")]
    Link(#[source] io::Error),
    /// That program ended while the machine needed it.
    #[error("passt ended ({status}): {messages}")]
    Ended {
        /// Its exit status, in words.
        status: String,
        /// What it printed, its lines joined by semicolons.
        messages: String,
    },
}
