//! The table of operations, and what follows from it: a request type for each, the trait of whoever carries them out, and
//! what front ends need to offer them.
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
    Command, CommandOutput, CopyIn, CopyOut, Deleted, Disk, DoctorReport, Entries, Environment,
    EnvironmentName, Error, Events, FilePart, Kind, Lifetime, NetworkInfo, NewFile, Platform, Pruned,
    PulledEnvironment, Reaped, RunResult, Sequence, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec,
    TaskFile, TaskFileWritten, TaskList, TaskLogEntry, TaskLogsPage, TaskName, Vm, VmName, VmSpec,
};

/// What an operation does to whom, for those who decide what a client may ask for.
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
    /// What it does to whom.
    pub access: Access,
    /// It sends events while it goes on.
    pub streams: bool,
}

impl OperationInfo {
    /// The documentation.
    pub fn about(&self) -> String {
        self.lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// What a caller hands over beside a request.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    /// Where events go.
    pub events: Events,
    /// Cancels the call.
    pub cancel: CancellationToken,
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

    /// The VM or task that the request names.
    fn target(&self) -> Option<Target<'_>> {
        let vm = self.part::<VmName>().map(|vm| Target { kind: Kind::Vm, id: &vm.vm_id });
        vm.or_else(|| self.part::<TaskName>().map(|task| Target { kind: Kind::Task, id: &task.task_id }))
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
        InvalidRequest::Parameter(format!("{name}{}", error.inner()))
    })
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

                fn perform<'a>(self, contract: &'a dyn Contract, call: &'a CallContext) -> Reply<'a, $Result> {
                    contract.$method(self, call)
                }
            }
        )+

        /// Whoever carries out the operations: the engine of this host, or a client of one elsewhere.
        ///
        /// The futures need not be [`Send`]: they are polled where they begin.
        pub trait Contract: fmt::Debug + Send + Sync {
            /// Maximum number of VMs and tasks that may exist at once.
            fn max_active_vms(&self) -> u32;

            /// Keeps spare VMs like `spec` for calls to come, until `cancel`. Does nothing where there are none.
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

    /// The catalog, sorted by name, and what of it is installed.
    list_environments(ListEnvironments {}) -> Vec<Environment>, Read;

    /// Installs an environment, or finds it installed, and makes the template from which runs of the default size start.
    /// Not being able to do the latter is only a warning.
    pull_environment(PullEnvironment { which: EnvironmentName }) -> PulledEnvironment, Operate, streams;

    /// One environment of the catalog.
    inspect_environment(InspectEnvironment { which: EnvironmentName }) -> Environment, Read;

    /// Removes what cannot be used: environments from the cache, and templates of other boots, agents and environments.
    prune_environments(PruneEnvironments {}) -> Pruned, Operate;

    /// Makes a VM without starting it. Its environment is installed first if it is not.
    create_vm(CreateVm { spec: VmSpec }) -> Vm, Create, streams;

    /// Boots a VM until it takes commands.
    start_vm(StartVm { vm: VmName }) -> Vm, Enter, streams;

    /// Runs one command and then removes the VM. If the command cannot be run, the VM stays as it is.
    exec_vm(ExecVm { vm: VmName, command: Command, output: CommandOutput }) -> RunResult, Enter, streams;

    /// Stops a VM; what its guest wrote is kept for another start. Stopping a stopped VM is no error.
    stop_vm(StopVm { vm: VmName }) -> Vm, Manage;

    /// Removes a VM and its files, whatever its state. Unsaved work in it is lost.
    delete_vm(DeleteVm { vm: VmName }) -> Deleted, Manage;

    /// What is known about a VM.
    status_vm(StatusVm { vm: VmName }) -> Vm, Read;

    /// The network of a VM.
    network_info_vm(NetworkInfoVm { vm: VmName }) -> NetworkInfo, Read;

    /// Removes VMs whose lifetime has ended.
    reap_expired(ReapExpired {}) -> Reaped, Manage;

    /// Makes a VM, runs one command in it and removes it, whatever happens.
    run_in_vm(RunInVm { spec: VmSpec, command: Command, output: CommandOutput }) -> RunResult, Create, streams;

    /// Creates a task and starts it: a VM that stays until it is deleted. Its environment is installed first if it is not.
    create_task(CreateTask { spec: VmSpec, disk: Disk }) -> Task, Create, streams;

    /// Starts a task that was stopped, with the disk it had. If its lifetime has ended, another one begins.
    start_task(StartTask { task: TaskName }) -> Task, Enter, streams;

    /// Stops a task; its disk and its journal are kept. Commands that run are ended. Stopping a stopped task is no error.
    stop_task(StopTask { task: TaskName }) -> Task, Manage;

    /// What is known about a task.
    status_task(StatusTask { task: TaskName }) -> Task, Read;

    /// Removes a task with its disk and its journal, whatever its state.
    delete_task(DeleteTask { task: TaskName }) -> TaskDeleted, Manage;

    /// Every task, oldest first.
    list_tasks(ListTasks {}) -> TaskList, Read;

    /// Gives a task another lifetime, which begins now.
    extend_task(ExtendTask { task: TaskName, lifetime: Lifetime }) -> Task, Manage;

    /// Runs one command in a task and waits for its end, which is in the journal then. The task stays. Cancelling the call
    /// ends the command; so does the end of this server.
    exec_task(ExecTask { task: TaskName, command: Command, output: CommandOutput }) -> TaskExec, Enter, streams;

    /// Begins one command in a task and returns as soon as it has its number. It goes on to its end or its time limit.
    detach_task(DetachTask { task: TaskName, command: Command }) -> TaskDetached, Enter;

    /// Waits until a command has ended and returns its entry. Cancelling the call ends the waiting, not the command.
    wait_task(WaitTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Read;

    /// Sends the output of a command from its beginning as events, waits until the command has ended, and returns its
    /// entry, without the output. What the journal does not keep is not sent.
    follow_task(FollowTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Read, streams;

    /// Ends a command, politely first, waits until it has ended and returns its entry. One that has ended already is no
    /// error.
    kill_task(KillTask { task: TaskName, command: Sequence }) -> TaskLogEntry, Manage;

    /// The journal of a task with what is kept of the output: one entry, or those after a number, a page at a time. A page
    /// ends when more than 16 MiB are in it.
    logs_task(LogsTask { task: TaskName, entries: Entries }) -> TaskLogsPage, Read;

    /// Copies a file or a directory out of a task, at most a million entries and 8 GiB. Files that are there already are
    /// replaced, directories are merged. No link is followed or made that leads out of the copy.
    copy_from_task(CopyFromTask { task: TaskName, copy: CopyOut }) -> TaskCopied, HostFiles;

    /// Copies a file or a directory of this host into a task, the same way. Symbolic links are copied as they are.
    copy_to_task(CopyToTask { task: TaskName, copy: CopyIn }) -> TaskCopied, HostFiles;

    /// Part of a file of a task, as text if it is UTF-8.
    read_task_file(ReadTaskFile { task: TaskName, file: FilePart }) -> TaskFile, ReadInside;

    /// Makes or replaces a file of a task, and the directories on the way to it. What was there before is replaced at once
    /// or not at all.
    write_task_file(WriteTaskFile { task: TaskName, file: NewFile }) -> TaskFileWritten, Enter;

    /// What this host can do, and what to change if it cannot. Changes nothing.
    doctor(Doctor { platform: Platform }) -> DoctorReport, Read;
}

#[cfg(test)]
mod tests;
