//! Implementation of the contract by the engine on this host.

use std::path::Path;

use pyro_api::operations::*;
use pyro_api::{
    CallContext, Contract, CopyLimits, Entries, LocalFuture, Pruned, Reply, TaskLogEntry, TaskLogsPage,
    TaskSpec, VmSpec,
};
use tokio_util::sync::CancellationToken;

use crate::engine::dropped;
use crate::limits::LOGS_PAGE_BYTES;
use crate::{
    CopyFromGuest, CopyToGuest, Deleted, DoctorReport, Engine, Environment, Error, ErrorKind, Events,
    NetworkInfo, PulledEnvironment, Reaped, RemovedEnvironment, RunResult, Service, ServiceList, ServiceLog,
    ServiceRemoved, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec, TaskFile, TaskFileChanged,
    TaskFileChanges, TaskFileInfo, TaskFileList, TaskFileMoved, TaskFileWritten, TaskInput, TaskList,
    TaskLogs, TaskPublished, TaskShell, TaskShellOutput, TaskShells, Vm,
};

/// Implements one operation by the engine as the call's caller sees it, so that no operation can skip that.
macro_rules! operations {
    ($($method:ident($engine:ident, $request:pat, $call:ident: $Request:ident) -> $Result:ty { $($body:tt)+ })+) => {
        impl Contract for Engine {
            fn max_active_vms(&self) -> u32 {
                self.max_active_vms()
            }

            fn keep_spares<'a>(
                &'a self,
                spec: VmSpec,
                cancel: &'a CancellationToken,
            ) -> LocalFuture<'a, ()> {
                Box::pin(self.warm_up(spec, cancel))
            }

            $(
                fn $method<'a>(&'a self, $request: $Request, $call: &'a CallContext) -> Reply<'a, $Result> {
                    let $engine = self.on_behalf_of(&$call.caller);
                    Box::pin(async move { $($body)+ })
                }
            )+
        }
    };
}

operations! {
    list_environments(engine, _, call: ListEnvironments) -> Vec<Environment> {
        Ok(engine.list_environments().await?.environments)
    }

    pull_environment(engine, request, call: PullEnvironment) -> PulledEnvironment {
        engine.pull_environment(&request.which.environment, &call.events, &call.cancel).await
    }

    inspect_environment(engine, request, call: InspectEnvironment) -> Environment {
        engine.inspect_environment(&request.which.environment).await
    }

    prune_environments(engine, _, call: PruneEnvironments) -> Pruned {
        engine.prune_environments().await
    }

    remove_environment(engine, request, call: RemoveEnvironment) -> RemovedEnvironment {
        engine.remove_environment(&request.which.environment).await
    }

    create_vm(engine, request, call: CreateVm) -> Vm {
        engine.create_vm(request.spec, &call.events, &call.cancel).await
    }

    start_vm(engine, request, call: StartVm) -> Vm {
        engine.start_vm(&request.vm.vm_id, &call.events, &call.cancel).await
    }

    exec_vm(engine, request, call: ExecVm) -> RunResult {
        engine.exec_vm(request, call).await
    }

    stop_vm(engine, request, call: StopVm) -> Vm {
        engine.stop_vm(&request.vm.vm_id).await
    }

    delete_vm(engine, request, call: DeleteVm) -> Deleted {
        engine.delete_vm(&request.vm.vm_id).await
    }

    status_vm(engine, request, call: StatusVm) -> Vm {
        engine.status_vm(&request.vm.vm_id).await
    }

    network_info_vm(engine, request, call: NetworkInfoVm) -> NetworkInfo {
        engine.network_info_vm(&request.vm.vm_id).await
    }

    reap_expired(engine, _, call: ReapExpired) -> Reaped {
        engine.reap_expired().await
    }

    run_in_vm(engine, request, call: RunInVm) -> RunResult {
        engine.run(request, call).await
    }

    create_task(engine, request, call: CreateTask) -> Task {
        let CreateTask { spec, disk, ports, naming, renewal } = request;
        let spec = TaskSpec {
            vm: spec,
            disk_mib: disk.disk_mib,
            publish: ports.publish,
            naming,
            ttl_from: renewal.ttl_from,
        };
        engine.create_task(spec, &call.events, &call.cancel).await
    }

    start_task(engine, request, call: StartTask) -> Task {
        engine.start_task(&request.task.task_id, &call.events, &call.cancel).await
    }

    stop_task(engine, request, call: StopTask) -> Task {
        engine.stop_task(&request.task.task_id).await
    }

    status_task(engine, request, call: StatusTask) -> Task {
        engine.status_task(&request.task.task_id).await
    }

    delete_task(engine, request, call: DeleteTask) -> TaskDeleted {
        engine.delete_task(&request.task.task_id).await
    }

    list_tasks(engine, request, call: ListTasks) -> TaskList {
        engine.list_tasks(request.filter).await
    }

    update_task(engine, request, call: UpdateTask) -> Task {
        engine.update_task(&request.task.task_id, request.changes).await
    }

    extend_task(engine, request, call: ExtendTask) -> Task {
        engine.extend_task(&request.task.task_id, request.lifetime.ttl_seconds).await
    }

    publish_task(engine, request, call: PublishTask) -> TaskPublished {
        engine.publish_task(&request.task.task_id, request.port.mapping, &call.events).await
    }

    unpublish_task(engine, request, call: UnpublishTask) -> Task {
        engine.unpublish_task(&request.task.task_id, request.port.host_port).await
    }

    mount_task(engine, request, call: MountTask) -> Task {
        engine.mount_task(&request.task.task_id, request.mount).await
    }

    unmount_task(engine, request, call: UnmountTask) -> Task {
        engine.unmount_task(&request.task.task_id, &request.mount.guest).await
    }

    exec_task(engine, request, call: ExecTask) -> TaskExec {
        engine.exec_task(request, call).await
    }

    detach_task(engine, request, call: DetachTask) -> TaskDetached {
        engine.detach_task(request).await
    }

    input_task(engine, request, call: InputTask) -> TaskInput {
        let InputTask { task, command } = request;
        engine.input_task(&task.task_id, command.sequence, call).await
    }

    wait_task(engine, request, call: WaitTask) -> TaskLogEntry {
        let WaitTask { task, command } = request;
        engine.wait_task(&task.task_id, command.sequence, &call.cancel).await
    }

    follow_task(engine, request, call: FollowTask) -> TaskLogEntry {
        let FollowTask { task, command } = request;
        engine.follow_task(&task.task_id, command.sequence, &call.events, &call.cancel).await
    }

    kill_task(engine, request, call: KillTask) -> TaskLogEntry {
        engine.kill_task(&request.task.task_id, request.command.sequence).await
    }

    open_task_shell(engine, request, call: OpenTaskShell) -> TaskShell {
        engine.open_task_shell(request).await
    }

    list_task_shells(engine, request, call: ListTaskShells) -> TaskShells {
        engine.list_task_shells(&request.task.task_id).await
    }

    read_task_shell(engine, request, call: ReadTaskShell) -> TaskShellOutput {
        engine.read_task_shell(request, &call.cancel).await
    }

    write_task_shell(engine, request, call: WriteTaskShell) -> TaskShellOutput {
        engine.write_task_shell(request, &call.cancel).await
    }

    signal_task_shell(engine, request, call: SignalTaskShell) -> TaskShell {
        engine.signal_task_shell(request).await
    }

    resize_task_shell(engine, request, call: ResizeTaskShell) -> TaskShell {
        engine.resize_task_shell(request).await
    }

    close_task_shell(engine, request, call: CloseTaskShell) -> TaskShell {
        engine.close_task_shell(request).await
    }

    attach_task_shell(engine, request, call: AttachTaskShell) -> TaskShell {
        engine.attach_task_shell(request, call).await
    }

    logs_task(engine, request, call: LogsTask) -> TaskLogsPage {
        engine.logs_page(&request.task.task_id, request.entries, &call.cancel).await
    }

    start_task_service(engine, request, call: StartTaskService) -> Service {
        engine.start_task_service(request, &call.events, &call.cancel).await
    }

    list_task_services(engine, request, call: ListTaskServices) -> ServiceList {
        engine.list_task_services(&request.task.task_id).await
    }

    status_task_service(engine, request, call: StatusTaskService) -> Service {
        engine.status_task_service(&request.task.task_id, &request.service.name).await
    }

    logs_task_service(engine, request, call: LogsTaskService) -> ServiceLog {
        engine.logs_task_service(request).await
    }

    follow_task_service(engine, request, call: FollowTaskService) -> Service {
        let FollowTaskService { task, service, tail } = request;
        engine.follow_task_service(&task.task_id, &service.name, tail.tail, &call.events, &call.cancel).await
    }

    stop_task_service(engine, request, call: StopTaskService) -> Service {
        engine.stop_task_service(&request.task.task_id, &request.service.name).await
    }

    remove_task_service(engine, request, call: RemoveTaskService) -> ServiceRemoved {
        engine.remove_task_service(&request.task.task_id, &request.service.name).await
    }

    copy_from_task(engine, request, call: CopyFromTask) -> TaskCopied {
        let CopyFromTask { task, copy } = request;
        let target = absolute("target", &copy.target)?;
        let copy = CopyFromGuest {
            path: &copy.path, target, limits: CopyLimits::default(), preserve_mode: copy.preserve_mode, strict: copy.strict,
        };
        engine.copy_from_task(&task.task_id, copy, &call.cancel).await
    }

    copy_to_task(engine, request, call: CopyToTask) -> TaskCopied {
        let CopyToTask { task, copy } = request;
        let source = absolute("source", &copy.source)?;
        let copy = CopyToGuest { source, path: &copy.path, limits: CopyLimits::default(), strict: copy.strict };
        engine.copy_to_task(&task.task_id, copy, &call.cancel).await
    }

    read_task_file(engine, request, call: ReadTaskFile) -> TaskFile {
        let ReadTaskFile { task, file } = request;
        engine.read_task_file(&task.task_id, &file.path, file.range()?, &call.cancel).await
    }

    write_task_file(engine, request, call: WriteTaskFile) -> TaskFileWritten {
        engine.write_task_file(request, &call.cancel).await
    }

    stat_task_file(engine, request, call: StatTaskFile) -> TaskFileInfo {
        engine.stat_task_file(&request.task.task_id, request.file.path, &call.cancel).await
    }

    list_task_files(engine, request, call: ListTaskFiles) -> TaskFileList {
        engine.list_task_files(&request.task.task_id, request.listing, &call.cancel).await
    }

    move_task_file(engine, request, call: MoveTaskFile) -> TaskFileMoved {
        engine.move_task_file(&request.task.task_id, request.files, &call.cancel).await
    }

    remove_task_file(engine, request, call: RemoveTaskFile) -> TaskFileChanged {
        engine.remove_task_file(&request.task.task_id, request.removal, &call.cancel).await
    }

    make_task_directory(engine, request, call: MakeTaskDirectory) -> TaskFileChanged {
        engine.make_task_directory(&request.task.task_id, request.directory.path, &call.cancel).await
    }

    watch_task_files(engine, request, call: WatchTaskFiles) -> TaskFileChanges {
        engine.watch_task_files(&request.task.task_id, request.watch, &call.events, &call.cancel).await
    }

    doctor(engine, request, call: Doctor) -> DoctorReport {
        Ok(engine.doctor(&request.platform.platform).await)
    }
}

impl Engine {
    /// Has spares for runs like `spec` started, then keeps all spares alive until `cancel`.
    async fn warm_up(&self, spec: VmSpec, cancel: &CancellationToken) {
        if self.warm_spares() == 0 {
            return;
        }
        if let Err(error) = self.ensure_spares(&spec, &Events::none(), cancel).await
            && !cancel.is_cancelled()
        {
            tracing::warn!(%error, "no spare VM could be started");
        }
        self.keep_spares(cancel).await;
    }

    /// Returns a task's journal page by page: the complete output of its commands can be gigabytes.
    async fn logs_page(
        &self,
        task: &str,
        asked: Entries,
        cancel: &CancellationToken,
    ) -> Result<TaskLogsPage, Error> {
        if asked.sequence.is_some() {
            return Ok(TaskLogsPage { logs: self.logs_task(task, asked.sequence).await?, next_after: None });
        }
        let task = self.status_task(task).await?;
        let id = task.task_id.as_str();
        let sequences = self.logged_commands(id).await?;
        let mut entries = Vec::new();
        let mut damaged = Vec::new();
        let mut bytes = 0;
        let mut rest = sequences.iter().filter(|sequence| **sequence > asked.after).peekable();
        let mut last = asked.after;
        while bytes <= LOGS_PAGE_BYTES
            && let Some(sequence) = rest.next()
        {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            last = *sequence;
            let found = match self.logs_task(id, Some(last)).await {
                Ok(found) => found.entries,
                // The journal dropped it meanwhile.
                Err(error) if error.kind == ErrorKind::NotFound => continue,
                // A damaged entry must not hide the others.
                Err(error) if error.kind == ErrorKind::StateUnusable => {
                    tracing::warn!(task_id = %task.task_id, sequence = last, %error, "a journal entry is left out");
                    damaged.push(last);
                    continue;
                }
                Err(error) => return Err(error),
            };
            bytes += found.iter().map(size).sum::<usize>();
            entries.extend(found);
        }
        let next_after = rest.peek().is_some().then_some(last);
        let (count, dropped) = (entries.len() as u64, dropped(&sequences));
        let logs = TaskLogs { task_id: task.task_id, count, entries, dropped, damaged };
        Ok(TaskLogsPage { logs, next_after })
    }
}

fn size(entry: &TaskLogEntry) -> usize {
    entry.command.len() + entry.stdout.as_bytes().len() + entry.stderr.as_bytes().len()
}

/// Requires an absolute path, since the caller may have a different working directory than this process.
fn absolute<'a>(name: &str, path: &'a str) -> Result<&'a Path, Error> {
    let path = Path::new(path);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Error::new(ErrorKind::InvalidInput, format!("{name} must be an absolute path"))),
    }
}
