//! The methods: what each is called, takes, gives back and does.

use pyro_engine::{
    CopyLimits, Deleted, DoctorReport, Engine, EngineError, Environment, Events, NetworkInfo, Pruned,
    PulledEnvironment, Reaped, RunResult, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec, TaskFile,
    TaskFileWritten, TaskList, TaskLogEntry, Vm,
};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::document::{self, Described, Param, Schemas};
use crate::fault::{Fault, Problem};
use crate::journal::{self, LogsPage};
use crate::message::{self, Id, Object};
use crate::params::{
    self, CopyIn, CopyOut, Disk, Entries, EnvironmentName, FilePart, Lifetime, NewFile, OutputTo, Platform,
    Sequence, Shell, Spec, TaskName, VmName,
};

/// The one method that may come before the handshake.
pub(crate) const DISCOVER: &str = "rpc.discover";

/// One call.
pub(crate) struct Call {
    pub(crate) engine: Engine,
    pub(crate) events: Events,
    pub(crate) cancel: CancellationToken,
}

/// From the table come [`carry_out`] and [`described`].
macro_rules! methods {
    (
        |$engine:ident, $events:ident, $cancel:ident|
        $(
            $(#[doc = $about:literal])+
            $name:literal ($($part:ident: $type:ty),*) -> $result:ty $work:block
        )+
    ) => {
        /// Does what is asked, and gives the line that says so.
        pub(crate) async fn carry_out(call: &Call, method: &str, id: &Id, given: &Object) -> Result<Vec<u8>, Fault> {
            let Call { engine: $engine, events: $events, cancel: $cancel } = call;
            match method {
                $($name => {
                    params::refuse_unknown($name, given)?;
                    $(let $part = params::read::<$type>(given)?;)*
                    let work = async { Ok::<$result, EngineError>($work) };
                    answer(id, work.await?).await
                })+
                _ => {
                    let message = format!("there is no method `{}`", method.escape_debug());
                    Err(Fault::new(Problem::UnknownMethod, message).hint("rpc.discover describes all that there are"))
                }
            }
        }

        /// Every method for the document.
        pub(crate) fn described(schemas: &mut Schemas) -> Vec<Described> {
            vec![$(
                Described {
                    name: $name,
                    about: [$($about.trim()),+].join(" "),
                    params: Vec::<Vec<Param>>::from([$(schemas.params::<$type>()),*]).concat(),
                    result: schemas.result::<$result>(),
                }
            ),+]
        }
    };
}

methods! {
    |engine, events, cancel|

    /// The catalog, sorted by name, and what of it is installed.
    "list_environments"() -> Vec<Environment> { engine.list_environments().await?.environments }

    /// Installs an environment, or finds it installed, and makes the template from which runs of the default size start.
    /// Not being able to do the latter is only a warning.
    "pull_environment"(which: EnvironmentName) -> PulledEnvironment {
        engine.pull_environment(&which.environment, events, cancel).await?
    }

    /// One environment of the catalog.
    "inspect_environment"(which: EnvironmentName) -> Environment {
        engine.inspect_environment(&which.environment).await?
    }

    /// Removes what cannot be used: environments from the cache, and templates of other boots, agents and environments.
    "prune_environments"() -> Pruned { engine.prune_environments().await? }

    /// Makes a VM without starting it. Its environment is installed first if it is not.
    "create_vm"(spec: Spec) -> Vm { engine.create_vm(spec.into(), events, cancel).await? }

    /// Boots a VM until it takes commands.
    "start_vm"(vm: VmName) -> Vm { engine.start_vm(&vm.vm_id, events, cancel).await? }

    /// Runs one command and then removes the VM. If the command cannot be run, the VM stays as it is.
    "exec_vm"(vm: VmName, command: Shell, output: OutputTo) -> RunResult {
        engine.exec_vm(&vm.vm_id, command.with(output), events, cancel).await?
    }

    /// Stops a VM; what its guest wrote is kept for another start. Stopping a stopped VM is no error.
    "stop_vm"(vm: VmName) -> Vm { engine.stop_vm(&vm.vm_id).await? }

    /// Removes a VM and its files, whatever its state. Unsaved work in it is lost.
    "delete_vm"(vm: VmName) -> Deleted { engine.delete_vm(&vm.vm_id).await? }

    /// What is known about a VM.
    "status_vm"(vm: VmName) -> Vm { engine.status_vm(&vm.vm_id).await? }

    /// The network of a VM.
    "network_info_vm"(vm: VmName) -> NetworkInfo { engine.network_info_vm(&vm.vm_id).await? }

    /// Removes VMs whose lifetime has ended.
    "reap_expired"() -> Reaped { engine.reap_expired().await? }

    /// Makes a VM, runs one command in it and removes it, whatever happens.
    "run_in_vm"(spec: Spec, command: Shell, output: OutputTo) -> RunResult {
        engine.run(spec.into(), command.with(output), events, cancel).await?
    }

    /// Creates a task and starts it: a VM that stays until it is deleted. Its environment is installed first if it is not.
    "create_task"(spec: Spec, disk: Disk) -> Task { engine.create_task(spec.with(disk), events, cancel).await? }

    /// Starts a task that was stopped, with the disk it had. If its lifetime has ended, another one begins.
    "start_task"(task: TaskName) -> Task { engine.start_task(&task.task_id, events, cancel).await? }

    /// Stops a task; its disk and its journal are kept. Commands that run are ended. Stopping a stopped task is no error.
    "stop_task"(task: TaskName) -> Task { engine.stop_task(&task.task_id).await? }

    /// What is known about a task.
    "status_task"(task: TaskName) -> Task { engine.status_task(&task.task_id).await? }

    /// Removes a task with its disk and its journal, whatever its state.
    "delete_task"(task: TaskName) -> TaskDeleted { engine.delete_task(&task.task_id).await? }

    /// Every task, oldest first.
    "list_tasks"() -> TaskList { engine.list_tasks().await? }

    /// Gives a task another lifetime, which begins now.
    "extend_task"(task: TaskName, lifetime: Lifetime) -> Task {
        engine.extend_task(&task.task_id, lifetime.ttl_seconds).await?
    }

    /// Runs one command in a task and waits for its end, which is in the journal then. The task stays. Cancelling the call
    /// ends the command; so does the end of this server.
    "exec_task"(task: TaskName, command: Shell, output: OutputTo) -> TaskExec {
        engine.exec_task(&task.task_id, command.with(output), events, cancel).await?
    }

    /// Begins one command in a task and returns as soon as it has its number. It goes on to its end or its time limit.
    "detach_task"(task: TaskName, command: Shell) -> TaskDetached {
        engine.detach_task(&task.task_id, command.with(OutputTo::default())).await?
    }

    /// Waits until a command has ended and returns its entry. Cancelling the call ends the waiting, not the command.
    "wait_task"(task: TaskName, command: Sequence) -> TaskLogEntry {
        engine.wait_task(&task.task_id, command.sequence, cancel).await?
    }

    /// Sends the output of a command from its beginning as events, waits until the command has ended, and returns its
    /// entry, without the output. What the journal does not keep is not sent.
    "follow_task"(task: TaskName, command: Sequence) -> TaskLogEntry {
        engine.follow_task(&task.task_id, command.sequence, events, cancel).await?
    }

    /// Ends a command, politely first, waits until it has ended and returns its entry. One that has ended already is no
    /// error.
    "kill_task"(task: TaskName, command: Sequence) -> TaskLogEntry {
        engine.kill_task(&task.task_id, command.sequence).await?
    }

    /// The journal of a task with what is kept of the output: one entry, or those after a number, a page at a time. A page
    /// ends when more than 16 MiB are in it.
    "logs_task"(task: TaskName, entries: Entries) -> LogsPage {
        journal::page(engine, &task.task_id, entries, cancel).await?
    }

    /// Copies a file or a directory out of a task, at most a million entries and 8 GiB. Files that are there already are
    /// replaced, directories are merged. No link is followed or made that leads out of the copy.
    "copy_from_task"(task: TaskName, copy: CopyOut) -> TaskCopied {
        engine.copy_from_task(&task.task_id, &copy.path, copy.target()?, CopyLimits::default(), cancel).await?
    }

    /// Copies a file or a directory of this host into a task, the same way. Symbolic links are copied as they are.
    "copy_to_task"(task: TaskName, copy: CopyIn) -> TaskCopied {
        engine.copy_to_task(&task.task_id, copy.source()?, &copy.path, CopyLimits::default(), cancel).await?
    }

    /// Part of a file of a task, as text if it is UTF-8.
    "read_task_file"(task: TaskName, file: FilePart) -> TaskFile {
        engine.read_task_file(&task.task_id, &file.path, file.range()?, cancel).await?
    }

    /// Makes or replaces a file of a task, and the directories on the way to it. What was there before is replaced at once
    /// or not at all.
    "write_task_file"(task: TaskName, file: NewFile) -> TaskFileWritten {
        let (task, content) = (&task.task_id, file.content());
        engine.write_task_file(task, &file.path, &content, file.executable, cancel).await?
    }

    /// What this host can do, and what to change if it cannot. Changes nothing.
    "doctor"(platform: Platform) -> DoctorReport { engine.doctor(&platform.platform).await }

    /// The OpenRPC document that describes this protocol. May come before the handshake.
    "rpc.discover"() -> Value { document::document().clone() }
}

/// The line with a result. A long one is written on a thread of its own, as other calls go on meanwhile.
async fn answer<T: Serialize + Send + 'static>(id: &Id, result: T) -> Result<Vec<u8>, Fault> {
    if let Some(line) = message::short_success(id, &result) {
        return Ok(line);
    }
    let id = id.clone();
    let written = tokio::task::spawn_blocking(move || message::success(&id, &result)).await;
    written.unwrap_or_else(|lost| Err(EngineError::internal("a result was lost").caused_by(lost).into()))
}
