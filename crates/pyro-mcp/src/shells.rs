//! Tools for shells. Each returns what a person would see, so that a model needs one call for each step.

use pyro_api::operations::{CloseTaskShell, ListTaskShells, OpenTaskShell, ReadTaskShell, WriteTaskShell};
use pyro_api::{ShellFormat, ShellName, ShellRead, TaskName};
use serde_json::Value;

use crate::arguments::{Argument, Given, Kind};
use crate::call::Call;
use crate::failure::{Failure, payload};

pub(crate) const PROGRAM: Argument = Argument {
    name: "command",
    kind: Kind::OptionalText,
    description: "Shell text to run instead of a login shell",
};
pub(crate) const SHELL_ID: Argument =
    Argument { name: "shell_id", kind: Kind::Count, description: "Number from task_shell_open" };
pub(crate) const ANY_SHELL: Argument = Argument {
    name: "shell_id",
    kind: Kind::OptionalCount(None),
    description: "Number from task_shell_open; omit it to list the shells",
};
pub(crate) const TEXT: Argument = Argument {
    name: "text",
    kind: Kind::OptionalText,
    description: "Text to type; end a line with a newline",
};
pub(crate) const KEYS: Argument = Argument {
    name: "keys",
    kind: Kind::List,
    description: "Keys to press after the text, such as Ctrl-C, Enter, Escape, Up",
};
pub(crate) const CURSOR: Argument = Argument {
    name: "cursor",
    kind: Kind::OptionalCount(None),
    description: "cursor of an earlier result; without it, the latest output",
};
pub(crate) const LAST_CURSOR: Argument = Argument {
    name: "cursor",
    kind: Kind::OptionalCount(None),
    description: "cursor of the last result, to see the output since then, too",
};
pub(crate) const WAIT_SECONDS: Argument = Argument {
    name: "wait_seconds",
    kind: Kind::OptionalNumber(DEFAULT_WAIT),
    description: "Maximum time to wait for output",
};
pub(crate) const IDLE_SECONDS: Argument = Argument {
    name: "idle_seconds",
    kind: Kind::OptionalNumber(DEFAULT_IDLE),
    description: "Return when the output has paused for this time",
};
pub(crate) const SCREEN: Argument = Argument {
    name: "screen",
    kind: Kind::Switch,
    description: "Show the screen as it is now, for full-screen programs",
};
pub(crate) const SIGNAL: Argument =
    Argument { name: "signal", kind: Kind::Text, description: "INT, TERM, KILL, HUP, QUIT, TSTP, or CONT" };

/// Maximum number of bytes of output that a call returns: about what a result shows of a stream.
const MAX_BYTES: u64 = 16_000;
const DEFAULT_WAIT: f64 = 10.0;
const DEFAULT_IDLE: f64 = 0.5;

impl Call<'_> {
    /// Opens a shell, and waits until it has written its prompt.
    pub(crate) async fn open_shell(&self, mut given: Given) -> Result<Value, Failure> {
        let read = read_of(&mut given);
        let request: OpenTaskShell = given.request()?;
        let opened = self.guard.perform(request, self.context).await?;
        let task = TaskName::from(opened.task_id.as_str());
        let shell = ShellName { shell_id: opened.shell_id };
        let read = ShellRead { cursor: Some(0), ..read };
        match self.guard.perform(ReadTaskShell { task: task.clone(), shell, read }, self.context).await {
            Ok(output) => payload(output),
            Err(failure) => {
                // The client has not learned its number.
                let _ = self.guard.perform(CloseTaskShell { task, shell }, self.context).await;
                Err(failure)
            }
        }
    }

    /// Lists the shells of a task if no shell is named.
    pub(crate) async fn read_shell(&self, mut given: Given) -> Result<Value, Failure> {
        let read = read_of(&mut given);
        if !given.has(&ANY_SHELL) {
            given.take(&CURSOR);
            let request: ListTaskShells = given.request()?;
            return payload(self.guard.perform(request, self.context).await?);
        }
        let request: ReadTaskShell = given.request()?;
        let read = ShellRead { cursor: request.read.cursor, ..read };
        payload(self.guard.perform(ReadTaskShell { read, ..request }, self.context).await?)
    }

    pub(crate) async fn write_shell(&self, mut given: Given) -> Result<Value, Failure> {
        let read = read_of(&mut given);
        let request: WriteTaskShell = given.request()?;
        let read = ShellRead { cursor: request.read.cursor, ..read };
        payload(self.guard.perform(WriteTaskShell { read, ..request }, self.context).await?)
    }
}

/// Takes the arguments that say what to return.
fn read_of(given: &mut Given) -> ShellRead {
    let mut seconds =
        |argument, default| given.take(argument).and_then(|value| value.as_f64()).unwrap_or(default);
    let (wait_seconds, idle_seconds) =
        (seconds(&WAIT_SECONDS, DEFAULT_WAIT), seconds(&IDLE_SECONDS, DEFAULT_IDLE));
    let format = match given.take(&SCREEN) {
        Some(Value::Bool(true)) => ShellFormat::Screen,
        _ => ShellFormat::Plain,
    };
    ShellRead { cursor: None, max_bytes: MAX_BYTES, wait_seconds, idle_seconds, format }
}
