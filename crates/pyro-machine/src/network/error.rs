//! Why a machine has no network.

use std::io;

/// Why a machine has no network, or has lost it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// This platform was not given a process that carries the packets.
    #[error("no network process was configured")]
    NoHelper,
    /// The process that carries the packets could not be started.
    #[error("cannot start the network process")]
    Run(#[source] io::Error),
    /// The link between that process and the machine could not be created.
    #[error("cannot make a socket pair")]
    Link(#[source] io::Error),
    /// The file for denials could not be created.
    #[error("cannot make the file for denied connections")]
    Denials(#[source] io::Error),
    /// That process ended while the machine needed it.
    #[error("the network process ended ({status}): {messages}")]
    Ended {
        /// Its exit status, in words.
        status: String,
        /// What it printed, its lines joined by semicolons.
        messages: String,
    },
}
