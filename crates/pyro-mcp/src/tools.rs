//! The tools: the contract's, and what a task needs besides.

use pyro_api::operations::{
    CreateTask, CreateVm, DeleteTask, DeleteVm, ExecTask, ExecVm, ExtendTask, KillTask, ListEnvironments,
    ListTasks, LogsTask, NetworkInfoVm, ReadTaskFile, ReapExpired, RunInVm, StartTask, StartVm, StatusTask,
    StatusVm, StopTask, StopVm, WaitTask, WriteTaskFile,
};
use pyro_api::{
    Access, Deleted, Disk, Environment, NetworkInfo, Operation, OperationInfo, Reaped, RunResult, Task,
    TaskDeleted, TaskDetached, TaskExec, TaskFile, TaskFileWritten, TaskList, TaskLogEntry, TaskLogs, Vm,
};
use rmcp::model::ToolAnnotations;
use schemars::JsonSchema;
use serde::Serialize;

use crate::arguments::{Argument, Kind, Object};
use crate::schema::{self, schema_of};

/// Number of journal entries that a call returns by default.
pub(crate) const USUAL_ENTRIES: u64 = 100;

/// One tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    VmRun,
    VmListEnvironments,
    VmCreate,
    VmStart,
    VmExec,
    VmStop,
    VmDelete,
    VmStatus,
    VmNetworkInfo,
    VmReapExpired,
    TaskCreate,
    TaskExec,
    TaskStatus,
    TaskLogs,
    TaskDelete,
    TaskList,
    TaskWait,
    TaskKill,
    TaskStart,
    TaskStop,
    TaskExtend,
    TaskReadFile,
    TaskWriteFile,
}

/// The environments under one key, as results must be objects.
#[derive(Serialize, JsonSchema)]
pub(crate) struct EnvironmentResult {
    /// Every environment that may be used.
    pub(crate) result: Vec<Environment>,
}

pub(crate) const ENVIRONMENT: Argument = Argument {
    name: "environment",
    kind: Kind::Text,
    description: "Environment name, such as debian:12; vm_list_environments shows them all",
};
pub(crate) const COMMAND: Argument = Argument {
    name: "command",
    kind: Kind::Text,
    description: "Shell text for `/bin/sh -lc`; not interactive",
};
pub(crate) const VCPU_COUNT: Argument = Argument {
    name: "vcpu_count",
    kind: Kind::OptionalInteger(Some(1)),
    description: "Virtual CPUs, 1 to 8",
};
pub(crate) const MEM_MIB: Argument = Argument {
    name: "mem_mib",
    kind: Kind::OptionalInteger(Some(1024)),
    description: "Memory in MiB, 256 to 32768",
};
pub(crate) const TIMEOUT: Argument = Argument {
    name: "timeout_seconds",
    kind: Kind::OptionalInteger(Some(30)),
    description: "Longest time the command may take, in seconds; then it is ended and exit_code is 124",
};
pub(crate) const VM_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds after which the VM is removed, 60 to 3600",
};
pub(crate) const TASK_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds after which the task is stopped, 60 to 3600; task_extend renews it",
};
pub(crate) const NETWORK: Argument =
    Argument { name: "network", kind: Kind::Switch, description: "Give the guest outbound network access" };
pub(crate) const HOST_COMPAT: Argument = Argument {
    name: "allow_host_compat",
    kind: Kind::Switch,
    description: "Run commands on the host, without isolation, if VMs cannot run there; refused unless the operator allows it",
};
pub(crate) const VM_ID: Argument =
    Argument { name: "vm_id", kind: Kind::Text, description: "Id that vm_create returned" };
pub(crate) const TASK_ID: Argument =
    Argument { name: "task_id", kind: Kind::Text, description: "Id that task_create returned" };
pub(crate) const SEQUENCE: Argument = Argument {
    name: "sequence",
    kind: Kind::Count,
    description: "Number of the command, as task_exec and task_logs tell it",
};

pub(crate) const WAIT: Argument = Argument {
    name: "timeout_seconds",
    kind: Kind::OptionalCount(Some(45)),
    description: "Longest time to wait, in seconds, 1 to 3600",
};
pub(crate) const NEW_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::Integer,
    description: "Lifetime in seconds from now, 60 to 3600",
};
pub(crate) const ANY_SEQUENCE: Argument = Argument {
    name: "sequence",
    kind: Kind::OptionalCount(None),
    description: "Show only the command with this number",
};
pub(crate) const OUTPUT_OFFSET: Argument = Argument {
    name: "offset",
    kind: Kind::OptionalCount(None),
    description: "With sequence: show its output from this character on, to read what was cut; stdout_cut_chars and \
                  stderr_cut_chars then count what follows",
};
pub(crate) const LAST: Argument = Argument {
    name: "last",
    kind: Kind::OptionalCount(Some(USUAL_ENTRIES)),
    description: "Show only that many of the latest commands, at most 1000",
};
pub(crate) const PATH: Argument = Argument {
    name: "path",
    kind: Kind::Text,
    description: "Path of the file; below /workspace unless it is absolute",
};
pub(crate) const FILE_OFFSET: Argument = Argument {
    name: "offset",
    kind: Kind::OptionalCount(Some(0)),
    description: "Byte to begin at; next_offset of an earlier result",
};
pub(crate) const MAX_BYTES: Argument = Argument {
    name: "max_bytes",
    kind: Kind::OptionalCount(Some(16_000)),
    description: "Most bytes to return, 1 to 1000000",
};
pub(crate) const CONTENT: Argument = Argument {
    name: "content",
    kind: Kind::Text,
    description: "Everything that the file shall hold; over HTTP at most about 3 MiB",
};
pub(crate) const ENCODING: Argument = Argument {
    name: "encoding",
    kind: Kind::OneOf(&["utf-8", "base64"]),
    description: "How content is written",
};
pub(crate) const EXECUTABLE: Argument =
    Argument { name: "executable", kind: Kind::Switch, description: "Make the file executable" };
pub(crate) const CWD: Argument = Argument {
    name: "cwd",
    kind: Kind::OptionalText,
    description: "Working directory, which must exist; below /workspace unless it is absolute",
};
pub(crate) const ENV: Argument =
    Argument { name: "env", kind: Kind::Texts, description: "Variables for the command, by name" };
pub(crate) const DETACH: Argument = Argument {
    name: "detach",
    kind: Kind::Switch,
    description: "Do not wait for the command: return its sequence and leave it running",
};
pub(crate) const DISK: Argument = Argument {
    name: "disk_mib",
    kind: Kind::OptionalInteger(Some(Disk::DEFAULT_MIB)),
    description: "Size of the disk in MiB, 256 to 1048576; unless given, less if the host's disk could not hold that",
};

impl Tool {
    /// Every tool in the order in which clients see them.
    pub(crate) const ALL: [Self; 23] = [
        Self::VmRun,
        Self::VmListEnvironments,
        Self::VmCreate,
        Self::VmStart,
        Self::VmExec,
        Self::VmStop,
        Self::VmDelete,
        Self::VmStatus,
        Self::VmNetworkInfo,
        Self::VmReapExpired,
        Self::TaskCreate,
        Self::TaskExec,
        Self::TaskStatus,
        Self::TaskLogs,
        Self::TaskDelete,
        Self::TaskList,
        Self::TaskWait,
        Self::TaskKill,
        Self::TaskStart,
        Self::TaskStop,
        Self::TaskExtend,
        Self::TaskReadFile,
        Self::TaskWriteFile,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::VmRun => "vm_run",
            Self::VmListEnvironments => "vm_list_environments",
            Self::VmCreate => "vm_create",
            Self::VmStart => "vm_start",
            Self::VmExec => "vm_exec",
            Self::VmStop => "vm_stop",
            Self::VmDelete => "vm_delete",
            Self::VmStatus => "vm_status",
            Self::VmNetworkInfo => "vm_network_info",
            Self::VmReapExpired => "vm_reap_expired",
            Self::TaskCreate => "task_create",
            Self::TaskExec => "task_exec",
            Self::TaskStatus => "task_status",
            Self::TaskLogs => "task_logs",
            Self::TaskDelete => "task_delete",
            Self::TaskList => "task_list",
            Self::TaskWait => "task_wait",
            Self::TaskKill => "task_kill",
            Self::TaskStart => "task_start",
            Self::TaskStop => "task_stop",
            Self::TaskExtend => "task_extend",
            Self::TaskReadFile => "task_read_file",
            Self::TaskWriteFile => "task_write_file",
        }
    }

    /// For the model: what it does, and when to take another one.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::VmRun => {
                "Run one command in a new virtual machine of its own and remove the machine. Use it for anything that \
                 needs no files from an earlier call; else use a task. A non-zero exit_code is a normal result."
            }
            Self::VmListEnvironments => "List the environments that VMs and tasks can be made from.",
            Self::VmCreate => "Create a VM without starting it. For one command, vm_run is simpler.",
            Self::VmStart => "Boot a created or stopped VM until it takes commands.",
            Self::VmExec => "Run one command in a started VM, then remove the VM, whatever its exit code.",
            Self::VmStop => "Stop a VM. Its disk is kept until it is deleted or its lifetime ends.",
            Self::VmDelete => "Remove a VM and its files.",
            Self::VmStatus => "Show the state and the settings of a VM.",
            Self::VmNetworkInfo => "Show the network settings of a VM.",
            Self::VmReapExpired => "Remove VMs whose lifetime has ended and list those that went.",
            Self::TaskCreate => {
                "Create a task and start it: a virtual machine that stays, with a persistent /workspace, for work that \
                 takes several commands. Delete it when the work is done."
            }
            Self::TaskExec => {
                "Run one command in a task, in /workspace unless cwd says otherwise, and keep the task. Commands of one \
                 task may run at the same time. For commands of more than a minute set detach and use task_wait. A \
                 non-zero exit_code is a normal result."
            }
            Self::TaskStatus => "Show the state of a task and its latest command.",
            Self::TaskLogs => {
                "Show the latest commands of a task and what they wrote, or one of them by its sequence. Long output is cut in \
                 the middle; offset shows the rest."
            }
            Self::TaskDelete => "Remove a task with its files and its journal.",
            Self::TaskList => "List all tasks.",
            Self::TaskWait => {
                "Wait until a command of a task has ended, at most timeout_seconds, and show its entry. outcome is \
                 `running` if it goes on; ask again then."
            }
            Self::TaskKill => "End a command of a task.",
            Self::TaskStart => "Start a stopped task again, with the files it had.",
            Self::TaskStop => "Stop a task; its files and its journal are kept.",
            Self::TaskExtend => "Give a task another lifetime, which begins now.",
            Self::TaskReadFile => {
                "Read a file of a task, or a part of it. Files that are no text come as base64. For large ones use commands."
            }
            Self::TaskWriteFile => {
                "Create or replace a file of a task, and the directories on the way to it. Text needs no quoting here."
            }
        }
    }

    pub(crate) fn arguments(self) -> &'static [Argument] {
        match self {
            Self::VmRun => {
                &[ENVIRONMENT, COMMAND, VCPU_COUNT, MEM_MIB, TIMEOUT, VM_TTL, NETWORK, HOST_COMPAT]
            }
            Self::VmListEnvironments | Self::VmReapExpired | Self::TaskList => &[],
            Self::VmCreate => &[ENVIRONMENT, VCPU_COUNT, MEM_MIB, VM_TTL, NETWORK, HOST_COMPAT],
            Self::VmStart | Self::VmStop | Self::VmDelete | Self::VmStatus | Self::VmNetworkInfo => &[VM_ID],
            Self::VmExec => &[VM_ID, COMMAND, TIMEOUT],
            Self::TaskCreate => &[ENVIRONMENT, VCPU_COUNT, MEM_MIB, TASK_TTL, DISK, NETWORK, HOST_COMPAT],
            Self::TaskExec => &[TASK_ID, COMMAND, TIMEOUT, CWD, ENV, DETACH],
            Self::TaskStatus | Self::TaskDelete | Self::TaskStart | Self::TaskStop => &[TASK_ID],
            Self::TaskLogs => &[TASK_ID, ANY_SEQUENCE, OUTPUT_OFFSET, LAST],
            Self::TaskWait => &[TASK_ID, SEQUENCE, WAIT],
            Self::TaskKill => &[TASK_ID, SEQUENCE],
            Self::TaskExtend => &[TASK_ID, NEW_TTL],
            Self::TaskReadFile => &[TASK_ID, PATH, FILE_OFFSET, MAX_BYTES],
            Self::TaskWriteFile => &[TASK_ID, PATH, CONTENT, ENCODING, EXECUTABLE],
        }
    }

    /// The schema of the payload.
    pub(crate) fn output_schema(self) -> Object {
        let schema = match self {
            Self::VmRun | Self::VmExec => schema_of::<RunResult>(),
            Self::VmListEnvironments => schema_of::<EnvironmentResult>(),
            Self::VmCreate | Self::VmStart | Self::VmStop | Self::VmStatus => schema_of::<Vm>(),
            Self::VmDelete => schema_of::<Deleted>(),
            Self::VmNetworkInfo => schema_of::<NetworkInfo>(),
            Self::VmReapExpired => schema_of::<Reaped>(),
            Self::TaskCreate | Self::TaskStatus | Self::TaskStart | Self::TaskStop | Self::TaskExtend => {
                schema_of::<Task>()
            }
            Self::TaskExec => schema_of::<Executed>(),
            Self::TaskLogs => schema_of::<TaskLogs>(),
            Self::TaskDelete => schema_of::<TaskDeleted>(),
            Self::TaskList => schema_of::<TaskList>(),
            Self::TaskWait | Self::TaskKill => schema_of::<TaskLogEntry>(),
            Self::TaskReadFile => schema_of::<TaskFile>(),
            Self::TaskWriteFile => schema_of::<TaskFileWritten>(),
        };
        schema::compact(schema, self.keys())
    }

    /// The keys of the payload that its schema names; none: all of them. What a VM or a task looks like is described once,
    /// where its status is shown; elsewhere it is enough to know what a call has changed. Other keys are there all the same.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::VmRun => &[
                "environment",
                "stdout",
                "stderr",
                "exit_code",
                "duration_ms",
                "execution_mode",
                "stdout_truncated",
                "stderr_truncated",
                "timed_out",
            ],
            Self::VmExec => &["stdout", "stderr", "exit_code", "timed_out"],
            Self::VmCreate | Self::VmStart | Self::VmStop => &["vm_id", "state", "expires_at"],
            Self::TaskCreate | Self::TaskStart | Self::TaskStop | Self::TaskExtend => {
                &["task_id", "state", "expires_at", "stop_reason"]
            }
            Self::TaskWait => &[
                "sequence",
                "command",
                "stdout",
                "stderr",
                "exit_code",
                "duration_ms",
                "outcome",
                "timed_out",
                "stdout_truncated",
                "stderr_truncated",
                "error",
            ],
            Self::TaskKill => &["sequence", "outcome", "exit_code"],
            Self::VmListEnvironments
            | Self::VmDelete
            | Self::VmStatus
            | Self::VmNetworkInfo
            | Self::VmReapExpired
            | Self::TaskExec
            | Self::TaskStatus
            | Self::TaskLogs
            | Self::TaskDelete
            | Self::TaskList
            | Self::TaskReadFile
            | Self::TaskWriteFile => &[],
        }
    }

    /// The operation that a call has carried out. What a client may do is decided by its class of access.
    pub(crate) fn operation(self) -> OperationInfo {
        match self {
            Self::VmRun => RunInVm::INFO,
            Self::VmListEnvironments => ListEnvironments::INFO,
            Self::VmCreate => CreateVm::INFO,
            Self::VmStart => StartVm::INFO,
            Self::VmExec => ExecVm::INFO,
            Self::VmStop => StopVm::INFO,
            Self::VmDelete => DeleteVm::INFO,
            Self::VmStatus => StatusVm::INFO,
            Self::VmNetworkInfo => NetworkInfoVm::INFO,
            Self::VmReapExpired => ReapExpired::INFO,
            Self::TaskCreate => CreateTask::INFO,
            Self::TaskExec => ExecTask::INFO,
            Self::TaskStatus => StatusTask::INFO,
            Self::TaskLogs => LogsTask::INFO,
            Self::TaskDelete => DeleteTask::INFO,
            Self::TaskList => ListTasks::INFO,
            Self::TaskWait => WaitTask::INFO,
            Self::TaskKill => KillTask::INFO,
            Self::TaskStart => StartTask::INFO,
            Self::TaskStop => StopTask::INFO,
            Self::TaskExtend => ExtendTask::INFO,
            Self::TaskReadFile => ReadTaskFile::INFO,
            Self::TaskWriteFile => WriteTaskFile::INFO,
        }
    }

    /// A call changes nothing.
    pub(crate) fn reads_only(self) -> bool {
        self.operation().access.reads_only()
    }

    /// A call makes a VM.
    pub(crate) fn creates(self) -> bool {
        self.operation().access == Access::Create
    }

    /// What a client may rely on before it asks its user. `closed`: commands reach nothing outside their machine.
    pub(crate) fn annotations(self, closed: bool) -> ToolAnnotations {
        let reads = self.reads_only();
        let destroys = matches!(
            self,
            Self::VmExec
                | Self::VmDelete
                | Self::VmReapExpired
                | Self::TaskExec
                | Self::TaskDelete
                | Self::TaskKill
                | Self::TaskWriteFile
                | Self::VmStop
                | Self::TaskStop
        ) || (self == Self::VmRun && !closed);
        let repeatable = reads
            || matches!(
                self,
                Self::VmStop
                    | Self::VmReapExpired
                    | Self::TaskStop
                    | Self::TaskKill
                    | Self::TaskExtend
                    | Self::TaskWriteFile
            );
        // With `network` a command reaches whatever it wants to.
        let open = !closed && matches!(self, Self::VmRun | Self::VmExec | Self::TaskExec);
        ToolAnnotations::new().read_only(reads).destructive(destroys).idempotent(repeatable).open_world(open)
    }
}

/// What `task_exec` gives back: a command that has ended, or one that was left running.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Executed {
    Ended(TaskExec),
    Detached(TaskDetached),
}
