//! Whatever can end a command early, and the exit status that this gives.

use std::io;

use pyro_demo::ollama::DemoError;
use pyro_engine::{EngineError, ErrorKind};

use crate::client_config::InstallError;
use crate::config::ConfigError;
use crate::exit::Exit;
use crate::printer::OutputError;
use crate::signals::{ListenError, Signal};
use crate::words::WordsError;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// An environment variable is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings of a client cannot be read or written.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The words after the environment are no command.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The demo with a model did not show what it should.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The engine was stopped by a signal and has cleaned up.
    #[error("stopped by {0}")]
    Stopped(Signal, #[source] EngineError),
    /// The user gave up waiting for the clean-up.
    #[error("stopped by {0} before the clean-up had finished")]
    Abandoned(Signal),
    /// Nobody read the output, and a signal ended the wait for that.
    #[error("stopped by {0} while nobody read the output")]
    Unread(Signal),
    /// Our own output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Nothing would stop us.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operating system refused something of ours; the text says what.
    #[error("{0}")]
    System(String, #[source] io::Error),
}

impl CliError {
    /// How `pyro` ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Stopped(signal, _) | Self::Abandoned(signal) | Self::Unread(signal) => {
                Exit::Stopped(*signal)
            }
            Self::Output(error) if error.is_broken_pipe() => Exit::BrokenPipe,
            Self::Engine(error) => exit_of(error.kind),
            Self::Config(_)
            | Self::Install(_)
            | Self::Words(_)
            | Self::Demo(_)
            | Self::Output(_)
            | Self::Listen(_)
            | Self::System(..) => Exit::Failure,
        }
    }
}

/// The exit status of each kind. All are 1 by contract; the match is spelled out so that a new kind has to
/// be thought about.
fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::InvalidInput
        | ErrorKind::NotFound
        | ErrorKind::WrongState
        | ErrorKind::AtCapacity
        | ErrorKind::Expired
        | ErrorKind::EnvironmentUnavailable
        | ErrorKind::VmUnavailable
        | ErrorKind::BootFailed
        | ErrorKind::NotDelivered
        | ErrorKind::OutcomeUnknown
        | ErrorKind::StateUnusable
        | ErrorKind::Cancelled
        | ErrorKind::Internal => Exit::Failure,
    }
}
