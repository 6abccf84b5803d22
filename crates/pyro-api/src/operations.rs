//! The table of operations, and what is generated from it: a request type for each operation, the trait that the engine
//! implements, and what front ends need to offer them.
//!
//! A row has the name, the request with its parts, the result, who may ask for it ([`Access`]), and its documentation. A row
//! without a class of access does not compile.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::{
    Caller, Command, CommandOutput, CopyIn, CopyOut, Deleted, DirectoryMount, Disk, DoctorReport, Entries,
    Environment, EnvironmentName, Error, Events, FileMove, FilePart, FilePath, FileRemoval, FileWatch,
    HostPort, Input, Kind, Lasting, Lifetime, Listing, LogPart, LogTail, MountTarget, Naming, NetworkInfo,
    NewFile, Platform, PortToPublish, Ports, Pruned, PulledEnvironment, Reaped, RemovedEnvironment, Renewal,
    RunResult, Sequence, Service, ServiceCommand, ServiceList, ServiceLog, ServiceName, ServiceOptions,
    ServiceRemoved, ShellCommand, ShellName, ShellRead, ShellSignal, ShellText, Task, TaskChanges,
    TaskCopied, TaskDeleted, TaskDetached, TaskExec, TaskFile, TaskFileChanged, TaskFileChanges,
    TaskFileInfo, TaskFileList, TaskFileMoved, TaskFileWritten, TaskFilter, TaskInput, TaskList,
    TaskLogEntry, TaskLogsPage, TaskName, TaskPublished, TaskShell, TaskShellOutput, TaskShells,
    TerminalSize, Vm, VmId, VmName, VmSpec,
};

/// What an operation accesses. Policies decide by it what a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads what is recorded. Changes nothing.
    Read,
    /// Reads what is inside an existing VM or task. Changes nothing.
    ReadInside,
    /// Makes a VM or a task.
    Create,
    /// Runs or writes something inside an existing VM or task.
    Enter,
    /// Stops, ends, renews or removes what exists, without looking into it.
    Manage,
    /// Reads or writes files of the host.
    HostFiles,
    /// Changes what all users of this host share.
    Operate,
}

impl Access {
    /// The operation changes nothing.
    pub const fn reads_only(self) -> bool {
        matches!(self, Self::Read | Self::ReadInside)
    }

    /// The operation reaches into an existing VM or task.
    pub const fn enters(self) -> bool {
        matches!(self, Self::ReadInside | Self::Enter)
    }
}

/// The VM or task that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Which of the two.
    pub kind: Kind,
    /// Its id, as the caller gave it.
    pub id: &'a str,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct OperationInfo {
    /// The name, such as `create_vm`.
    pub name: &'static str,
    /// The documentation, line by line.
    pub lines: &'static [&'static str],
    /// What it accesses.
    pub access: Access,
    /// It sends events while it runs.
    pub streams: bool,
}

impl OperationInfo {
    /// The documentation.
    pub fn about(&self) -> String {
        self.lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// On whose behalf a call is made, where it gets its input and sends its events, and how it is cancelled.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    /// Where events go.
    pub events: Events,
    /// Where the input of its command comes from, if it is streamed.
    pub input: Input,
    /// Cancels the call.
    pub cancel: CancellationToken,
    /// Cancelled when a command that gets its input from the call has been accepted, and is ready for input.
    pub accepted: CancellationToken,
    /// On whose behalf the call is made.
    pub caller: Caller,
}

impl CallContext {
    /// A call of this host's user that sends no input.
    pub fn new(events: Events, cancel: CancellationToken) -> Self {
        Self { events, cancel, ..Self::default() }
    }
}

/// A future that stays on the thread on which it begins.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
/// What a method of [`Contract`] gives back.
pub type Reply<'a, T> = LocalFuture<'a, Result<T, Error>>;
/// Parameters by name.
pub type Object = Map<String, Value>;

/// A request type of the table.
pub trait Operation:
    fmt::Debug + Clone + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + 'static
{
    /// What is given back.
    type Result: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// Its row.
    const INFO: OperationInfo;

    /// The schemas of the parts, in their order: objects whose properties together are the parameters.
    fn parts(generator: &mut SchemaGenerator) -> Vec<Schema>;

    /// The names of all parameters.
    fn parameter_names() -> &'static [String];

    /// Reads a request.
    ///
    /// # Errors
    /// A parameter is unknown, missing, or not what it should be.
    fn read(given: &Object) -> Result<Self, InvalidRequest>;

    /// The part of type `P`, if the request has one: what it asks for, such as a [`VmSpec`].
    fn part<P: 'static>(&self) -> Option<&P>;

    /// As [`Operation::part`], to change it.
    fn part_mut<P: 'static>(&mut self) -> Option<&mut P>;

    /// The VM or task that the request names.
    fn target(&self) -> Option<Target<'_>> {
        let vm = self.part::<VmName>().map(|vm| Target { kind: Kind::Vm, id: &vm.vm_id });
        vm.or_else(|| self.part::<TaskName>().map(|task| Target { kind: Kind::Task, id: &task.task_id }))
    }

    /// Has the request name its target by this id, to which what it named was resolved.
    fn retarget(&mut self, kind: Kind, id: &VmId) {
        match kind {
            Kind::Vm => {
                if let Some(vm) = self.part_mut::<VmName>() {
                    id.as_str().clone_into(&mut vm.vm_id);
                }
            }
            Kind::Task => {
                if let Some(task) = self.part_mut::<TaskName>() {
                    id.as_str().clone_into(&mut task.task_id);
                }
            }
        }
    }

    /// Has the request carried out.
    fn perform<'a>(self, contract: &'a dyn Contract, call: &'a CallContext) -> Reply<'a, Self::Result>;
}

/// The parameters are not those of the operation.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequest {
    /// The operation has no such parameter.
    #[error("{operation} has no parameter `{name}`")]
    UnknownParameter {
        /// Name of the operation.
        operation: &'static str,
        /// The name, escaped.
        name: String,
        /// The parameters that it has.
        known: &'static [String],
    },
    /// A parameter is missing, or not what it should be. The text begins with its name where that is known.
    #[error("{0}")]
    Parameter(String),
}

/// Reads what some of the parameters are.
///
/// # Errors
/// [`InvalidRequest::Parameter`].
pub fn read_part<'a, P: Deserialize<'a>>(given: &'a Object) -> Result<P, InvalidRequest> {
    serde_path_to_error::deserialize(given).map_err(|error| {
        let name = match error.path().iter().next() {
            Some(_) => format!("`{}`: ", error.path()),
            None => String::new(),
        };
        InvalidRequest::Parameter(format!("{name}{}", in_terms_of_json(&error.inner().to_string())))
    })
}

/// What serde says of a value, in the terms of JSON instead of its own and those of Rust.
fn in_terms_of_json(text: &str) -> String {
    if let Some(name) = text.strip_prefix("missing field ") {
        return format!("missing parameter {name}");
    }
    if let Some((given, expected)) =
        text.strip_prefix("unknown variant ").and_then(|text| text.split_once(", expected "))
    {
        return format!("expected {expected}, got {given}");
    }
    let given_and_expected = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .and_then(|text| text.rsplit_once(", expected "));
    let Some((given, expected)) = given_and_expected else { return text.to_owned() };
    let given = match given.split_once(' ') {
        Some(("floating", number)) => number.strip_prefix("point ").unwrap_or(number),
        Some(("integer" | "boolean", value)) => value,
        _ => match given {
            "sequence" => "an array",
            "map" => "an object",
            "unit value" => "null",
            other => other,
        },
    };
    let expected = match expected {
        "i64" => "an integer",
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer that is not negative",
        "f32" | "f64" => "a number",
        "a sequence" => "an array",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("expected {expected}, got {given}")
}

fn names(parts: &[Schema]) -> Vec<String> {
    let properties = parts.iter().filter_map(|part| part.get("properties")?.as_object());
    properties.flat_map(|properties| properties.keys().cloned()).collect()
}

fn refuse_unknown(
    operation: &'static str,
    given: &Object,
    known: &'static [String],
) -> Result<(), InvalidRequest> {
    match given.keys().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let name = name.escape_debug().to_string();
            Err(InvalidRequest::UnknownParameter { operation, name, known })
        }
    }
}

macro_rules! operations {
    (@streams) => { false };
    (@streams streams) => { true };
    (($dollar:tt) $(
        $(#[doc = $about:literal])+
        $method:ident($Request:ident { $($part:ident: $Part:ty),* }) -> $Result:ty, $access:ident $(, $streams:ident)?;
    )+) => {
        $(
            #[doc = concat!("Request of [`Contract::", stringify!($method), "`].")]
            #[derive(Debug, Clone, PartialEq, JsonSchema, Serialize)]
            #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
            pub struct $Request {
                $(
                    #[doc = concat!("Parameters: [`", stringify!($Part), "`].")]
                    #[serde(flatten)]
                    pub $part: $Part,
                )*
            }

            impl<'de> Deserialize<'de> for $Request {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    Self::read(&Object::deserialize(deserializer)?).map_err(D::Error::custom)
                }
            }

            impl Operation for $Request {
                type Result = $Result;
                const INFO: OperationInfo = OperationInfo {
                    name: stringify!($method),
                    lines: &[$($about),+],
                    access: Access::$access,
                    streams: operations!(@streams $($streams)?),
                };

                fn parts(generator: &mut SchemaGenerator) -> Vec<Schema> {
                    let _ = &generator;
                    vec![$(<$Part>::json_schema(generator)),*]
                }

                fn parameter_names() -> &'static [String] {
                    static NAMES: LazyLock<Vec<String>> =
                        LazyLock::new(|| names(&$Request::parts(&mut SchemaSettings::draft07().into_generator())));
                    &NAMES
                }

                fn read(given: &Object) -> Result<Self, InvalidRequest> {
                    refuse_unknown(stringify!($method), given, Self::parameter_names())?;
                    Ok(Self { $($part: read_part(given)?),* })
                }

                fn part<P: 'static>(&self) -> Option<&P> {
                    let parts: [&dyn Any; _] = [$(&self.$part),*];
                    parts.into_iter().find_map(|part| part.downcast_ref())
                }

                fn part_mut<P: 'static>(&mut self) -> Option<&mut P> {
                    let parts: [&mut dyn Any; _] = [$(&mut self.$part),*];
                    parts.into_iter().find_map(|part| part.downcast_mut())
                }

                fn perform<'a>(self, contract: &'a dyn Contract, call: &'a CallContext) -> Reply<'a, $Result> {
                    contract.$method(self, call)
                }
            }
        )+

        /// The operations, as the engine of this host implements them.
        ///
        /// The futures need not be [`Send`]: they are polled where they begin.
        pub trait Contract: fmt::Debug + Send + Sync {
            /// Maximum number of VMs and tasks that may exist at once.
            fn max_active_vms(&self) -> u32;

            /// Keeps spare VMs like `spec` for calls to come, until `cancel`. Does nothing if spares are turned off.
            fn keep_spares<'a>(&'a self, spec: VmSpec, cancel: &'a CancellationToken) -> LocalFuture<'a, ()>;

            $(
                $(#[doc = $about])+
                fn $method<'a>(&'a self, request: $Request, call: &'a CallContext) -> Reply<'a, $Result>;
            )+
        }

        /// The table.
        pub const OPERATIONS: &[OperationInfo] = &[$(<$Request as Operation>::INFO),+];

        /// Hands the request types of the table to another macro, in their order.
        #[macro_export]
        macro_rules! for_each_operation {
            ($dollar callback:ident) => {
                $dollar callback! { $($Request)+ }
            };
        }
    };
}

operations! {
    ($)

    /// Lists the environments of the catalog, sorted by name, and whether each is installed.
    list_environments(ListEnvironments {}) -> Vec<Environment>, Read;

    /// Installs an environment unless it is installed, and makes the template from which runs of the default size start. If
    /// the template cannot be made, a warning event says why.
    pull_environment(PullEnvironment { which: EnvironmentName }) -> PulledEnvironment, Operate, streams;

    /// Returns one environment of the catalog.
    inspect_environment(InspectEnvironment { which: EnvironmentName }) -> Environment, Read;

    /// Removes unusable environments from the cache, and templates of earlier host boots, other guest agents, and removed
    /// environments.
    prune_environments(PruneEnvironments {}) -> Pruned, Operate;

    /// Removes an installed environment from the cache, in all its versions, with its templates. Fails while there are VMs or
    /// tasks that were made from it, stopped ones too.
    remove_environment(RemoveEnvironment { which: EnvironmentName }) -> RemovedEnvironment, Operate;

    /// Creates a VM without starting it. Installs its environment first if necessary.
    create_vm(CreateVm { spec: VmSpec }) -> Vm, Create, streams;

    /// Starts a VM and waits until it accepts commands.
    start_vm(StartVm { vm: VmName }) -> Vm, Enter, streams;

    /// Runs one command and then removes the VM. If the command cannot be started, the VM is kept.
    exec_vm(ExecVm { vm: VmName, command: Command, output: CommandOutput }) -> RunResult, Enter, streams;

    /// Stops a VM. Its disk is kept, so that it can be started again. Stopping a stopped VM succeeds.
    stop_vm(StopVm { vm: VmName }) -> Vm, Manage;

    /// Removes a VM and its files, in any state. Unsaved work in the guest is lost.
    delete_vm(DeleteVm { vm: VmName }) -> Deleted, Manage;

    /// Returns the state and settings of a VM.
    status_vm(StatusVm { vm: VmName }) -> Vm, Read;

    /// Returns the network settings of a VM.
    network_info_vm(NetworkInfoVm { vm: VmName }) -> NetworkInfo, Read;

    /// Removes VMs whose lifetime has ended.
    reap_expired(ReapExpired {}) -> Reaped, Manage;

    /// Creates a VM, runs one command in it, and always removes it.
    run_in_vm(RunInVm { spec: VmSpec, command: Command, output: CommandOutput }) -> RunResult, Create, streams;

    /// Creates and starts a task: a VM that stays until it is deleted. Installs its environment first if necessary.
    create_task(CreateTask { spec: VmSpec, disk: Disk, ports: Ports, naming: Naming, renewal: Renewal }) -> Task, Create, streams;

    /// Starts a stopped task with its disk. If its lifetime has ended, a new one begins.
    start_task(StartTask { task: TaskName }) -> Task, Enter, streams;

    /// Stops a task. Its disk and its journal are kept. Running commands are ended. Stopping a stopped task succeeds.
    stop_task(StopTask { task: TaskName }) -> Task, Manage;

    /// Returns the state and settings of a task.
    status_task(StatusTask { task: TaskName }) -> Task, Read;

    /// Removes a task with its disk and its journal, in any state.
    delete_task(DeleteTask { task: TaskName }) -> TaskDeleted, Manage;

    /// Lists tasks, oldest first: all of them, or those with certain labels.
    list_tasks(ListTasks { filter: TaskFilter }) -> TaskList, Read;

    /// Changes the name, the labels, or the renewal of a task, whatever its state.
    update_task(UpdateTask { task: TaskName, changes: TaskChanges }) -> Task, Manage;

    /// Starts a new lifetime of a task now.
    extend_task(ExtendTask { task: TaskName, lifetime: Lifetime }) -> Task, Manage;

    /// Publishes a TCP port of a running task on this host, until it is unpublished or the task is deleted: a stopped task
    /// gets its ports back when it starts. Clients reach what listens on the guest's loopback interface. A warning event
    /// says if other hosts can connect.
    publish_task(PublishTask { task: TaskName, port: PortToPublish }) -> TaskPublished, Operate, streams;

    /// Closes the published ports of a task with this number on this host, with their connections.
    unpublish_task(UnpublishTask { task: TaskName, port: HostPort }) -> Task, Operate;

    /// Mounts a directory of this host in a running task, until it is unmounted or the task is deleted: a stopped task gets it
    /// back when it starts.
    mount_task(MountTask { task: TaskName, mount: DirectoryMount }) -> Task, HostFiles;

    /// Unmounts a directory of this host from a task, after what the guest has written is on this host. Processes in the guest
    /// that still use it get errors.
    unmount_task(UnmountTask { task: TaskName, mount: MountTarget }) -> Task, HostFiles;

    /// Runs one command in a task and waits until it ends. The task stays, and the command is in its journal. Cancelling the
    /// call ends the command; so does the end of this server.
    exec_task(ExecTask { task: TaskName, command: Command, lasting: Lasting, output: CommandOutput }) -> TaskExec, Enter, streams;

    /// Starts one command in a task and returns its number without waiting. The command runs until it ends or times out.
    detach_task(DetachTask { task: TaskName, command: Command, lasting: Lasting }) -> TaskDetached, Enter;

    /// Sends the call's input to the standard input of a running command that was started with a streamed input. Returns
    /// when the caller has sent all of it and the command was given it, or when the command takes no more. One call at a
    /// time can send to a command; cancelling it leaves the input open for another one.
    input_task(InputTask { task: TaskName, command: Sequence }) -> TaskInput, Enter;

    /// Waits until a command has ended and returns its journal entry. Cancelling the call does not end the command.
    wait_task(WaitTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Read;

    /// Sends the output of a command from its beginning as events, waits until the command has ended, and returns its
    /// journal entry without the output. Output that the journal dropped is not sent.
    follow_task(FollowTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Read, streams;

    /// Ends a command with SIGTERM, later with SIGKILL, waits until it has ended, and returns its journal entry. Succeeds if
    /// the command has already ended.
    kill_task(KillTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Manage;

    /// Opens a shell in a task: a login shell or a command on a terminal, which goes on without a caller until it ends, is
    /// closed, or the task is stopped. At most 16 run in a task at once. It is a command in the task's journal, which does
    /// not keep its output: the latest 1 MiB of that can be read while the task runs.
    open_task_shell(OpenTaskShell { task: TaskName, shell: ShellCommand }) -> TaskShell, Enter;

    /// Lists the shells of a task: those that run, and the latest 16 that have ended since the task was started.
    list_task_shells(ListTaskShells { task: TaskName }) -> TaskShells, Read;

    /// Returns output of a shell, from a cursor on, and waits for it if asked to. Reading removes nothing. The latest 256 KiB of
    /// a shell that has ended can be read until the task stops or 16 other shells have ended.
    read_task_shell(ReadTaskShell { task: TaskName, shell: ShellName, read: ShellRead }) -> TaskShellOutput, ReadInside;

    /// Types text into a shell, presses keys, and returns the output that follows, as `read_task_shell` does. Several callers
    /// may type into a shell.
    write_task_shell(WriteTaskShell { task: TaskName, shell: ShellName, typed: ShellText, read: ShellRead }) -> TaskShellOutput, Enter;

    /// Sends a signal to what runs in the foreground of a shell's terminal.
    signal_task_shell(SignalTaskShell { task: TaskName, shell: ShellName, signal: ShellSignal }) -> TaskShell, Enter;

    /// Changes the size of a shell's terminal.
    resize_task_shell(ResizeTaskShell { task: TaskName, shell: ShellName, size: TerminalSize }) -> TaskShell, Enter;

    /// Ends a shell and everything that it started, as if its terminal was closed: with SIGHUP and SIGTERM, later with SIGKILL.
    /// Succeeds if the shell has already ended.
    close_task_shell(CloseTaskShell { task: TaskName, shell: ShellName }) -> TaskShell, Manage;

    /// Sends the screen of a shell and then what it writes as events, and types the call's input into it. Gives its terminal the
    /// size of the caller's. Returns when the shell has ended or the input has; the shell then goes on.
    attach_task_shell(AttachTaskShell { task: TaskName, shell: ShellName, size: TerminalSize }) -> TaskShell, Enter, streams;

    /// Returns one journal entry of a task with its output, or a page of those after a number. A page ends when it has more
    /// than 16 MiB.
    logs_task(LogsTask { task: TaskName, entries: Entries }) -> TaskLogsPage, Read;

    /// Starts a service of a task: a command that is kept running without a caller, until it is stopped, or the task is.
    /// Without a command, one that exists and does not run is started again. By default, waits until the service is ready, or
    /// has ended or failed before that: `state` says which. The call can be cancelled meanwhile; the service goes on.
    start_task_service(StartTaskService { task: TaskName, service: ServiceName, command: ServiceCommand, options: ServiceOptions, ports: Ports }) -> Service, Enter, streams;

    /// Lists the services of a task, also while it is stopped.
    list_task_services(ListTaskServices { task: TaskName }) -> ServiceList, Read;

    /// Returns the state of a service.
    status_task_service(StatusTaskService { task: TaskName, service: ServiceName }) -> Service, Read;

    /// Returns a part of what a service has written, in all of its runs.
    logs_task_service(LogsTaskService { task: TaskName, service: ServiceName, part: LogPart }) -> ServiceLog, Read;

    /// Sends what a service has written and writes, as events of the standard output, until it has ended for good or the call
    /// is cancelled. Returns its state then.
    follow_task_service(FollowTaskService { task: TaskName, service: ServiceName, tail: LogTail }) -> Service, Read, streams;

    /// Ends a service with everything that its command started, with SIGTERM, later with SIGKILL, and waits for that. It is not
    /// run again until it is started; with `start_with_task`, the next start of the task does that. Stopping a service that
    /// does not run succeeds.
    stop_task_service(StopTaskService { task: TaskName, service: ServiceName }) -> Service, Manage;

    /// Stops a service and removes it with its log.
    remove_task_service(RemoveTaskService { task: TaskName, service: ServiceName }) -> ServiceRemoved, Manage;

    /// Copies a file or a directory out of a task, at most 1,000,000 entries and 8 GiB. Existing files are replaced, and
    /// directories are merged. Links that lead out of the copy are neither followed nor created.
    copy_from_task(CopyFromTask { task: TaskName, copy: CopyOut }) -> TaskCopied, HostFiles;

    /// Copies a file or a directory of this host into a task, with the same limits. A file that is replaced keeps its mode and
    /// owner, also through a symbolic link at `path`. Symbolic links are copied unchanged.
    copy_to_task(CopyToTask { task: TaskName, copy: CopyIn }) -> TaskCopied, HostFiles;

    /// Reads a part of a file of a task, as text if it is UTF-8.
    read_task_file(ReadTaskFile { task: TaskName, file: FilePart }) -> TaskFile, ReadInside;

    /// Creates or replaces a file of a task, with its parent directories. An existing file is replaced atomically.
    write_task_file(WriteTaskFile { task: TaskName, file: NewFile }) -> TaskFileWritten, Enter;

    /// Describes a file or directory of a task. Symbolic links are not followed.
    stat_task_file(StatTaskFile { task: TaskName, file: FilePath }) -> TaskFileInfo, ReadInside;

    /// Lists a directory of a task, on request with what is in its directories.
    list_task_files(ListTaskFiles { task: TaskName, listing: Listing }) -> TaskFileList, ReadInside;

    /// Moves a file or a directory of a task to another path, also to rename it. To another file system, it is copied with its owner,
    /// mode, times, and attributes, and then removed. If the call is cancelled or takes longer than ten minutes before the copy is
    /// complete, nothing changes.
    move_task_file(MoveTaskFile { task: TaskName, files: FileMove }) -> TaskFileMoved, Enter;

    /// Removes a file or a directory of a task. Symbolic links are not followed. If the call is cancelled or takes longer than ten
    /// minutes, the removal stops, and part of a directory may be gone.
    remove_task_file(RemoveTaskFile { task: TaskName, removal: FileRemoval }) -> TaskFileChanged, Enter;

    /// Makes a directory in a task, with its missing parents. Succeeds if it exists.
    make_task_directory(MakeTaskDirectory { task: TaskName, directory: FilePath }) -> TaskFileChanged, Enter;

    /// Watches a file or a directory of a task, and sends each change as an event: first that the watch has begun, then the
    /// changes from that moment.
    watch_task_files(WatchTaskFiles { task: TaskName, watch: FileWatch }) -> TaskFileChanges, ReadInside, streams;

    /// Checks what this host can do and how to fix what it cannot. Changes nothing.
    doctor(Doctor { platform: Platform }) -> DoctorReport, Read;
}

#[cfg(test)]
mod tests;
