//! Calls of tools.

use std::time::Duration;

use pyro_api::operations::{
    CloseTaskShell, CreateTask, CreateVm, DeleteTask, DeleteVm, DetachTask, ExecTask, ExecVm, ExtendTask,
    FollowTask, KillTask, ListTaskFiles, ListTaskServices, ListTasks, LogsTask, LogsTaskService,
    MakeTaskDirectory, MoveTaskFile, NetworkInfoVm, ReadTaskFile, ReapExpired, RemoveTaskFile,
    RemoveTaskService, RunInVm, SignalTaskShell, StartTask, StartTaskService, StartVm, StatTaskFile,
    StatusTask, StatusTaskService, StatusVm, StopTask, StopTaskService, StopVm, WaitTask, WatchTaskFiles,
    WriteTaskFile,
};
use pyro_api::{
    CallContext, Entries, Operation, OutputMode, Sequence, ServiceList, TaskLogEntry, TaskLogsPage, TaskName,
};
use serde_json::Value;

use crate::arguments::{ArgumentError, Arguments, Given};
use crate::failure::{Failure, payload};
use crate::guard::Guard;
use crate::journal;
use crate::result;
use crate::tools::*;

/// Maximum size of the part of a file that one call returns, in bytes.
pub(crate) const MAX_FILE_PART: u64 = 1_000_000;
/// Maximum number of entries of a journal that one call returns.
const MAX_LOG_ENTRIES: u64 = 1000;
/// Maximum number of entries of a directory that one call returns.
const MAX_LISTED: u64 = 1000;
/// A watch ends when something has changed and then nothing for this time, in seconds.
const WATCH_IDLE_SECONDS: f64 = 0.5;
/// Maximum number of changes that one call returns.
const MAX_SHOWN_CHANGES: u64 = 200;
/// Number of lines of a log that one call returns if the client does not choose a part of it.
const DEFAULT_LINES: u64 = 50;
/// Maximum number of bytes of a log that one call returns.
const LOG_BYTES: u64 = 16_000;
/// Maximum time that a call waits for a command, in seconds.
const MAX_WAIT: u64 = 3600;

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) guard: &'a Guard,
    pub(crate) context: &'a CallContext,
    /// The client is shown events, so that output should be among them.
    pub(crate) sends_events: bool,
}

impl Call<'_> {
    /// Checks the arguments, performs the call, and returns its payload.
    pub(crate) async fn carry_out(&self, tool: Tool, given: Arguments) -> Result<Value, Failure> {
        let arguments = self.guard.policy().allowed_arguments(tool, given)?;
        let mut given = arguments.checked(tool.arguments())?;
        self.guard.policy().apply_network_policy(&mut given)?;
        self.guard.policy().apply_mounts(&mut given)?;
        let takes_command = tool.arguments().iter().any(|argument| argument.name == COMMAND.name);
        // Without one, a shell is a login shell, and a service that exists is started again.
        let takes_command = takes_command && !matches!(tool, Tool::TaskShellOpen | Tool::TaskServiceStart);
        if takes_command && !given.has(&COMMAND) && !given.has(&ARGV) {
            return Err(ArgumentError::Missing(COMMAND.name.to_owned()).into());
        }
        match tool {
            Tool::VmRun => self.forward::<RunInVm>(&self.streamed(given)).await,
            Tool::VmListEnvironments => {
                payload(EnvironmentResult { result: self.guard.environments(self.context).await? })
            }
            Tool::VmCreate => self.forward::<CreateVm>(&given).await,
            Tool::VmStart => self.forward::<StartVm>(&given).await,
            Tool::VmExec => self.forward::<ExecVm>(&self.streamed(given)).await,
            Tool::VmStop => self.forward::<StopVm>(&given).await,
            Tool::VmDelete => self.forward::<DeleteVm>(&given).await,
            Tool::VmStatus => self.forward::<StatusVm>(&given).await,
            Tool::VmNetworkInfo => self.forward::<NetworkInfoVm>(&given).await,
            Tool::VmReapExpired => self.forward::<ReapExpired>(&given).await,
            Tool::TaskCreate => self.forward::<CreateTask>(&given).await,
            Tool::TaskExec => match given.take(&DETACH) {
                Some(Value::Bool(true)) => self.forward::<DetachTask>(&given).await,
                _ => self.forward::<ExecTask>(&self.streamed(given)).await,
            },
            Tool::TaskStatus => self.forward::<StatusTask>(&given).await,
            Tool::TaskLogs => self.logs(given).await,
            Tool::TaskDelete => self.forward::<DeleteTask>(&given).await,
            Tool::TaskList => self.forward::<ListTasks>(&given).await,
            Tool::TaskWait => self.wait(given).await,
            Tool::TaskKill => self.forward::<KillTask>(&given).await,
            Tool::TaskStart => self.forward::<StartTask>(&given).await,
            Tool::TaskStop => self.forward::<StopTask>(&given).await,
            Tool::TaskExtend => self.forward::<ExtendTask>(&given).await,
            Tool::TaskReadFile => {
                let request: ReadTaskFile = given.request()?;
                within(MAX_BYTES.name, request.file.max_bytes, MAX_FILE_PART)?;
                payload(self.guard.perform(request, self.context).await?)
            }
            Tool::TaskWriteFile => self.forward::<WriteTaskFile>(&given).await,
            Tool::TaskFiles => self.look_at_files(given).await,
            Tool::TaskChangeFiles => self.change_files(given).await,
            Tool::TaskShellOpen => self.open_shell(given).await,
            Tool::TaskShellRead => self.read_shell(given).await,
            Tool::TaskShellWrite => self.write_shell(given).await,
            Tool::TaskShellSignal => self.forward::<SignalTaskShell>(&given).await,
            Tool::TaskShellClose => self.forward::<CloseTaskShell>(&given).await,
            Tool::TaskServiceStart => self.forward::<StartTaskService>(&given).await,
            Tool::TaskServiceStatus if given.has(&ANY_SERVICE) => {
                let request: StatusTaskService = given.request()?;
                let service = self.guard.perform(request, self.context).await?;
                payload(ServiceList { task_id: service.task_id.clone(), services: vec![service], count: 1 })
            }
            Tool::TaskServiceStatus => self.forward::<ListTaskServices>(&given).await,
            Tool::TaskServiceLogs => {
                let mut request: LogsTaskService = given.request()?;
                if request.part.offset.is_none() {
                    request.part.tail.get_or_insert(DEFAULT_LINES);
                }
                request.part.max_bytes = Some(LOG_BYTES);
                payload(self.guard.perform(request, self.context).await?)
            }
            Tool::TaskServiceStop => match given.take(&REMOVE) {
                Some(Value::Bool(true)) => self.forward::<RemoveTaskService>(&given).await,
                _ => self.forward::<StopTaskService>(&given).await,
            },
        }
    }

    async fn look_at_files(&self, mut given: Given) -> Result<Value, Failure> {
        let action = given.take(&LOOK);
        let (time, entries) = (given.take(&WATCH_TIME), given.take(&MAX_ENTRIES));
        match action.as_ref().and_then(Value::as_str) {
            Some("stat") => {
                given.take(&RECURSIVE);
                if !given.has(&DIRECTORY) {
                    return Err(ArgumentError::Missing(DIRECTORY.name.to_owned()).into());
                }
                self.forward::<StatTaskFile>(&given).await
            }
            Some("watch") => {
                within(WATCH_TIME.name, number(time.clone()).unwrap_or_default(), MAX_WAIT)?;
                given.0.extend(time.map(|time| (WATCH_TIME.name.to_owned(), time)));
                let mut request: WatchTaskFiles = given.request()?;
                // One call shows what one command changes.
                request.watch.idle_seconds = Some(WATCH_IDLE_SECONDS);
                request.watch.max_changes = MAX_SHOWN_CHANGES;
                payload(self.guard.perform(request, self.context).await?)
            }
            _ => {
                within(MAX_ENTRIES.name, number(entries.clone()).unwrap_or_default(), MAX_LISTED)?;
                given.0.extend(entries.map(|entries| (MAX_ENTRIES.name.to_owned(), entries)));
                self.forward::<ListTaskFiles>(&given).await
            }
        }
    }

    async fn change_files(&self, mut given: Given) -> Result<Value, Failure> {
        let action = given.take(&CHANGE);
        let (destination, replace) = (given.take(&DESTINATION), given.take(&REPLACE));
        match action.as_ref().and_then(Value::as_str) {
            Some("remove") => self.forward::<RemoveTaskFile>(&given).await,
            Some("mkdir") => {
                given.take(&RECURSIVE);
                self.forward::<MakeTaskDirectory>(&given).await
            }
            _ => {
                given.take(&RECURSIVE);
                let source = given.take(&PATH);
                let destination =
                    destination.ok_or_else(|| ArgumentError::Missing(DESTINATION.name.to_owned()))?;
                given.0.insert(DESTINATION.name.to_owned(), destination);
                given.0.extend(source.map(|source| ("source".to_owned(), source)));
                given.0.extend(replace.map(|replace| (REPLACE.name.to_owned(), replace)));
                self.forward::<MoveTaskFile>(&given).await
            }
        }
    }

    /// Performs the operation whose parameters are the tool's arguments.
    async fn forward<O: Operation>(&self, given: &Given) -> Result<Value, Failure> {
        payload(self.guard.perform(given.request::<O>()?, self.context).await?)
    }

    /// The same with the output sent as events, if the client sees them.
    fn streamed(&self, mut given: Given) -> Given {
        let output = pyro_api::CommandOutput { output: OutputMode::CaptureAndStream };
        if self.sends_events
            && let Ok(Value::Object(output)) = serde_json::to_value(output)
        {
            given.0.extend(output);
        }
        given
    }

    async fn logs(&self, mut given: Given) -> Result<Value, Failure> {
        let (offset, last) = (number(given.take(&OUTPUT_OFFSET)), number(given.take(&LAST)));
        let request: LogsTask = given.request()?;
        match (request.entries.sequence, offset) {
            (None, Some(_)) => {
                Err(ArgumentError::Needs("`offset` needs `sequence`, the number of the command").into())
            }
            (None, None) => {
                let last = last.unwrap_or(DEFAULT_ENTRIES).min(MAX_LOG_ENTRIES);
                journal::latest(self.guard, &request.task.task_id, last, self.context).await
            }
            (Some(_), offset) => {
                let page = self.guard.perform(request, self.context).await?;
                let mut logs = payload(page.logs)?;
                if let (Some(offset), Some(entry)) = (offset, logs["entries"].get_mut(0)) {
                    result::begin_at(entry, offset);
                }
                Ok(logs)
            }
        }
    }

    /// Waits for a command, at most as long as the client asked for.
    async fn wait(&self, mut given: Given) -> Result<Value, Failure> {
        let limit = number(given.take(&WAIT)).unwrap_or_default();
        let WaitTask { task, command } = given.request()?;
        within(WAIT.name, limit, MAX_WAIT)?;
        // Another task may have the name by the time this one's command has ended.
        let found = self.guard.perform(StatusTask { task }, self.context).await?;
        let task = TaskName::from(found.task_id.as_str());
        let ended = async {
            let task = task.clone();
            if !self.sends_events {
                return self.guard.perform(WaitTask { task, command }, self.context).await;
            }
            // Following the command makes its output available as progress.
            self.guard.perform(FollowTask { task, command }, self.context).await
        };
        if let Ok(ended) = tokio::time::timeout(Duration::from_secs(limit), ended).await {
            ended?;
        }
        let Sequence { sequence } = command;
        let entries = Entries { sequence: Some(sequence), after: 0 };
        let request = LogsTask { task: task.clone(), entries };
        let TaskLogsPage { logs, .. } = self.guard.perform(request, self.context).await?;
        let entry: Option<TaskLogEntry> = logs.entries.into_iter().next();
        payload(entry.ok_or(ArgumentError::NoCommand { task: task.task_id, sequence })?)
    }
}

fn number(value: Option<Value>) -> Option<u64> {
    value.and_then(|value| value.as_u64())
}

fn within(name: &'static str, value: u64, most: u64) -> Result<(), ArgumentError> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(ArgumentError::OutOfRange { name, least: 1, most }),
    }
}
