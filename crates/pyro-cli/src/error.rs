//! The errors that end a command early, and their exit status.

use std::io;

use pyro_demo::ollama::DemoError;
use pyro_engine::{Error, ErrorKind};

use crate::client_config::InstallError;
use crate::commands::command::{OptionsError, VariableError};
use crate::config::ConfigError;
use crate::exit::Exit;
use crate::printer::OutputError;
use crate::signals::{ListenError, Signal};
use crate::words::WordsError;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// An environment variable is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings of a client cannot be read or written.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A variable for a command cannot be passed on.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// Options of a command do not fit together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The terminal of a command is gone. The command goes on, unless it is a login shell.
    #[error(
        "the terminal is closed; a command that has started in task {0} keeps running, and `pyro task logs {0}` shows it; \
         `pyro task stdin {0}` continues its input; a login shell is ended"
    )]
    Left(String),
    /// The terminal that was attached to a shell is gone. The shell goes on.
    #[error(
        "the terminal is closed; shell {shell} of task {task} keeps running, and `pyro task shell attach {task} {shell}` \
         attaches to it again"
    )]
    LeftShell {
        /// Id or name of the task.
        task: String,
        /// Number of the shell.
        shell: u64,
    },
    /// The words after the environment are not a command.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// The demo with a model failed.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The engine was stopped by a signal and has cleaned up.
    #[error("stopped by {0}")]
    Stopped(Signal, #[source] Error),
    /// The user gave up waiting for the clean-up.
    #[error("stopped by {0} before the clean-up had finished")]
    Abandoned(Signal),
    /// The output was not read, and a signal ended the wait for that.
    #[error("stopped by {0} while waiting for its output to be read")]
    Unread(Signal),
    /// pyro's own output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Signals cannot be received, so nothing could stop the command.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A system call failed; the text says what for.
    #[error("{0}")]
    System(String, #[source] io::Error),
}

impl CliError {
    /// Returns how `pyro` ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Stopped(signal, _) | Self::Abandoned(signal) | Self::Unread(signal) => {
                Exit::Stopped(*signal)
            }
            Self::Left(_) | Self::LeftShell { .. } => Exit::Stopped(Signal::Hangup),
            Self::Output(error) if error.is_broken_pipe() => Exit::BrokenPipe,
            Self::Engine(error) => exit_of(error.kind),
            Self::Variable(_) | Self::Words(_) | Self::Options(_) => Exit::Usage,
            Self::Config(_)
            | Self::Install(_)
            | Self::Demo(_)
            | Self::Output(_)
            | Self::Listen(_)
            | Self::System(..) => Exit::Failure,
        }
    }
}

/// Returns the exit status of each kind: 2 for what only another command line can change, whichever layer noticed it, and 1
/// for the rest. The match has no default, so that a new kind does not compile until its status is decided.
fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::InvalidInput => Exit::Usage,
        ErrorKind::NotFound
        | ErrorKind::WrongState
        | ErrorKind::AtCapacity
        | ErrorKind::Expired
        | ErrorKind::EnvironmentUnavailable
        | ErrorKind::VmUnavailable
        | ErrorKind::BootFailed
        | ErrorKind::NotDelivered
        | ErrorKind::OutcomeUnknown
        | ErrorKind::StateUnusable
        | ErrorKind::FileFailed
        | ErrorKind::Cancelled
        | ErrorKind::Internal => Exit::Failure,
    }
}
