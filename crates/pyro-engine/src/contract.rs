//! Implementation of the contract by the engine on this host.

use std::path::Path;

use pyro_api::operations::*;
use pyro_api::{
    CallContext, Contract, CopyLimits, Entries, LocalFuture, Pruned, Reply, TaskLogEntry, TaskLogsPage,
    TaskSpec, VmSpec,
};
use tokio_util::sync::CancellationToken;

use crate::limits::LOGS_PAGE_BYTES;
use crate::{
    CopyFromGuest, CopyToGuest, Deleted, DoctorReport, Engine, Environment, Error, ErrorKind, Events,
    NetworkInfo, PulledEnvironment, Reaped, RunResult, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec,
    TaskFile, TaskFileWritten, TaskList, TaskLogs, Vm,
};

impl Contract for Engine {
    fn max_active_vms(&self) -> u32 {
        self.max_active_vms()
    }

    fn keep_spares<'a>(&'a self, spec: VmSpec, cancel: &'a CancellationToken) -> LocalFuture<'a, ()> {
        Box::pin(self.warm_up(spec, cancel))
    }

    fn list_environments<'a>(
        &'a self,
        _: ListEnvironments,
        _: &'a CallContext,
    ) -> Reply<'a, Vec<Environment>> {
        Box::pin(async { Ok(self.list_environments().await?.environments) })
    }

    fn pull_environment<'a>(
        &'a self,
        request: PullEnvironment,
        call: &'a CallContext,
    ) -> Reply<'a, PulledEnvironment> {
        Box::pin(async move {
            self.pull_environment(&request.which.environment, &call.events, &call.cancel).await
        })
    }

    fn inspect_environment<'a>(
        &'a self,
        request: InspectEnvironment,
        _: &'a CallContext,
    ) -> Reply<'a, Environment> {
        Box::pin(async move { self.inspect_environment(&request.which.environment).await })
    }

    fn prune_environments<'a>(&'a self, _: PruneEnvironments, _: &'a CallContext) -> Reply<'a, Pruned> {
        Box::pin(self.prune_environments())
    }

    fn create_vm<'a>(&'a self, request: CreateVm, call: &'a CallContext) -> Reply<'a, Vm> {
        Box::pin(self.create_vm(request.spec, &call.events, &call.cancel))
    }

    fn start_vm<'a>(&'a self, request: StartVm, call: &'a CallContext) -> Reply<'a, Vm> {
        Box::pin(async move { self.start_vm(&request.vm.vm_id, &call.events, &call.cancel).await })
    }

    fn exec_vm<'a>(&'a self, request: ExecVm, call: &'a CallContext) -> Reply<'a, RunResult> {
        Box::pin(self.exec_vm(request, &call.events, &call.cancel))
    }

    fn stop_vm<'a>(&'a self, request: StopVm, _: &'a CallContext) -> Reply<'a, Vm> {
        Box::pin(async move { self.stop_vm(&request.vm.vm_id).await })
    }

    fn delete_vm<'a>(&'a self, request: DeleteVm, _: &'a CallContext) -> Reply<'a, Deleted> {
        Box::pin(async move { self.delete_vm(&request.vm.vm_id).await })
    }

    fn status_vm<'a>(&'a self, request: StatusVm, _: &'a CallContext) -> Reply<'a, Vm> {
        Box::pin(async move { self.status_vm(&request.vm.vm_id).await })
    }

    fn network_info_vm<'a>(&'a self, request: NetworkInfoVm, _: &'a CallContext) -> Reply<'a, NetworkInfo> {
        Box::pin(async move { self.network_info_vm(&request.vm.vm_id).await })
    }

    fn reap_expired<'a>(&'a self, _: ReapExpired, _: &'a CallContext) -> Reply<'a, Reaped> {
        Box::pin(self.reap_expired())
    }

    fn run_in_vm<'a>(&'a self, request: RunInVm, call: &'a CallContext) -> Reply<'a, RunResult> {
        Box::pin(self.run(request, &call.events, &call.cancel))
    }

    fn create_task<'a>(&'a self, request: CreateTask, call: &'a CallContext) -> Reply<'a, Task> {
        let spec = TaskSpec { vm: request.spec, disk_mib: request.disk.disk_mib };
        Box::pin(self.create_task(spec, &call.events, &call.cancel))
    }

    fn start_task<'a>(&'a self, request: StartTask, call: &'a CallContext) -> Reply<'a, Task> {
        Box::pin(async move { self.start_task(&request.task.task_id, &call.events, &call.cancel).await })
    }

    fn stop_task<'a>(&'a self, request: StopTask, _: &'a CallContext) -> Reply<'a, Task> {
        Box::pin(async move { self.stop_task(&request.task.task_id).await })
    }

    fn status_task<'a>(&'a self, request: StatusTask, _: &'a CallContext) -> Reply<'a, Task> {
        Box::pin(async move { self.status_task(&request.task.task_id).await })
    }

    fn delete_task<'a>(&'a self, request: DeleteTask, _: &'a CallContext) -> Reply<'a, TaskDeleted> {
        Box::pin(async move { self.delete_task(&request.task.task_id).await })
    }

    fn list_tasks<'a>(&'a self, _: ListTasks, _: &'a CallContext) -> Reply<'a, TaskList> {
        Box::pin(self.list_tasks())
    }

    fn extend_task<'a>(&'a self, request: ExtendTask, _: &'a CallContext) -> Reply<'a, Task> {
        Box::pin(async move { self.extend_task(&request.task.task_id, request.lifetime.ttl_seconds).await })
    }

    fn exec_task<'a>(&'a self, request: ExecTask, call: &'a CallContext) -> Reply<'a, TaskExec> {
        Box::pin(self.exec_task(request, &call.events, &call.cancel))
    }

    fn detach_task<'a>(&'a self, request: DetachTask, _: &'a CallContext) -> Reply<'a, TaskDetached> {
        Box::pin(async move { self.detach_task(&request.task.task_id, request.command).await })
    }

    fn wait_task<'a>(&'a self, request: WaitTask, call: &'a CallContext) -> Reply<'a, TaskLogEntry> {
        let WaitTask { task, command } = request;
        Box::pin(async move { self.wait_task(&task.task_id, command.sequence, &call.cancel).await })
    }

    fn follow_task<'a>(&'a self, request: FollowTask, call: &'a CallContext) -> Reply<'a, TaskLogEntry> {
        let FollowTask { task, command } = request;
        Box::pin(async move {
            self.follow_task(&task.task_id, command.sequence, &call.events, &call.cancel).await
        })
    }

    fn kill_task<'a>(&'a self, request: KillTask, _: &'a CallContext) -> Reply<'a, TaskLogEntry> {
        Box::pin(async move { self.kill_task(&request.task.task_id, request.command.sequence).await })
    }

    fn logs_task<'a>(&'a self, request: LogsTask, call: &'a CallContext) -> Reply<'a, TaskLogsPage> {
        Box::pin(async move { self.logs_page(&request.task.task_id, request.entries, &call.cancel).await })
    }

    fn copy_from_task<'a>(&'a self, request: CopyFromTask, call: &'a CallContext) -> Reply<'a, TaskCopied> {
        let CopyFromTask { task, copy } = request;
        Box::pin(async move {
            let target = absolute("target", &copy.target)?;
            let copy = CopyFromGuest { path: &copy.path, target, limits: CopyLimits::default() };
            self.copy_from_task(&task.task_id, copy, &call.cancel).await
        })
    }

    fn copy_to_task<'a>(&'a self, request: CopyToTask, call: &'a CallContext) -> Reply<'a, TaskCopied> {
        let CopyToTask { task, copy } = request;
        Box::pin(async move {
            let source = absolute("source", &copy.source)?;
            let copy = CopyToGuest { source, path: &copy.path, limits: CopyLimits::default() };
            self.copy_to_task(&task.task_id, copy, &call.cancel).await
        })
    }

    fn read_task_file<'a>(&'a self, request: ReadTaskFile, call: &'a CallContext) -> Reply<'a, TaskFile> {
        let ReadTaskFile { task, file } = request;
        Box::pin(
            async move { self.read_task_file(&task.task_id, &file.path, file.range()?, &call.cancel).await },
        )
    }

    fn write_task_file<'a>(
        &'a self,
        request: WriteTaskFile,
        call: &'a CallContext,
    ) -> Reply<'a, TaskFileWritten> {
        Box::pin(self.write_task_file(request, &call.cancel))
    }

    fn doctor<'a>(&'a self, request: Doctor, _: &'a CallContext) -> Reply<'a, DoctorReport> {
        Box::pin(async move { Ok(self.doctor(&request.platform.platform).await) })
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
        let mut entries = Vec::new();
        let (mut last, mut bytes) = (asked.after, 0);
        while last < task.command_count && bytes <= LOGS_PAGE_BYTES {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            last += 1;
            let found = self.logs_task(task.task_id.as_str(), Some(last)).await?.entries;
            bytes += found.iter().map(size).sum::<usize>();
            entries.extend(found);
        }
        let next_after = (last < task.command_count).then_some(last);
        let logs = TaskLogs { task_id: task.task_id, count: entries.len() as u64, entries };
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
