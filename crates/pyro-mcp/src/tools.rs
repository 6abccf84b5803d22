//! The table of tools: those of the contract, and more for tasks.

use pyro_api::operations::{
    CloseTaskShell, CreateTask, CreateVm, DeleteTask, DeleteVm, ExecTask, ExecVm, ExtendTask, KillTask,
    ListEnvironments, ListTaskFiles, ListTaskServices, ListTasks, LogsTask, LogsTaskService, MoveTaskFile,
    NetworkInfoVm, OpenTaskShell, ReadTaskFile, ReadTaskShell, ReapExpired, RunInVm, SignalTaskShell,
    StartTask, StartTaskService, StartVm, StatusTask, StatusVm, StopTask, StopTaskService, StopVm, WaitTask,
    WriteTaskFile, WriteTaskShell,
};
use pyro_api::{
    Access, Deleted, Disk, Environment, HostAccess, NetworkInfo, Operation, OperationInfo, Reaped, RunResult,
    Service, ServiceList, ServiceLog, ServiceRemoved, Task, TaskDeleted, TaskDetached, TaskExec, TaskFile,
    TaskFileChanged, TaskFileChanges, TaskFileInfo, TaskFileList, TaskFileMoved, TaskFileWritten, TaskList,
    TaskLogEntry, TaskLogs, TaskShell, TaskShellOutput, TaskShells, Vm,
};
use rmcp::model::ToolAnnotations;
use schemars::JsonSchema;
use serde::Serialize;

use crate::arguments::{Argument, Kind, Object};
use crate::schema::{self, schema_of};
use crate::shells::{
    ANY_SHELL, CURSOR, IDLE_SECONDS, KEYS, LAST_CURSOR, PROGRAM, SCREEN, SHELL_ID, SIGNAL, TEXT, WAIT_SECONDS,
};

/// Number of journal entries that a call returns by default.
pub(crate) const DEFAULT_ENTRIES: u64 = 100;

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
    TaskFiles,
    TaskChangeFiles,
    TaskShellOpen,
    TaskShellRead,
    TaskShellWrite,
    TaskShellSignal,
    TaskShellClose,
    TaskServiceStart,
    TaskServiceStatus,
    TaskServiceLogs,
    TaskServiceStop,
}

/// The environments under one key, because results must be objects.
#[derive(Serialize, JsonSchema)]
pub(crate) struct EnvironmentResult {
    /// The environments that the policy allows.
    pub(crate) result: Vec<Environment>,
}

pub(crate) const ENVIRONMENT: Argument = Argument {
    name: "environment",
    kind: Kind::Text,
    description: "Environment name, such as debian:12; vm_list_environments lists all",
};
pub(crate) const COMMAND: Argument = Argument {
    name: "command",
    kind: Kind::OptionalText,
    description: "Shell text, not interactive, for /bin/sh, or bash in debian:12-agent",
};
pub(crate) const ARGV: Argument = Argument {
    name: "argv",
    kind: Kind::List,
    description: "Program and its arguments, run without a shell, instead of command",
};
pub(crate) const SHELL: Argument =
    Argument { name: "shell", kind: Kind::OptionalText, description: "Other shell, such as bash" };
pub(crate) const USER: Argument = Argument {
    name: "user",
    kind: Kind::OptionalText,
    description: "Name or UID to run it as, also with :GROUP; root if omitted",
};
pub(crate) const STDIN: Argument =
    Argument { name: "stdin", kind: Kind::OptionalText, description: "Text for its standard input" };
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
    description: "Time limit in seconds, at most 3600; exit_code is 124 after it",
};
pub(crate) const TASK_TIMEOUT: Argument = Argument {
    description: "Time limit in seconds, at most what is left of the lifetime; exit_code is 124 after it",
    ..TIMEOUT
};
pub(crate) const VM_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds, 60 to 3600; after it the VM is removed",
};
pub(crate) const TASK_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds, 60 to 3600; after it the task is stopped; task_extend starts a new lifetime",
};
pub(crate) const NETWORK: Argument =
    Argument { name: "network", kind: Kind::Switch, description: "Give the guest outbound network access" };
pub(crate) const ALLOW_DOMAINS: Argument = Argument {
    name: "allow_domains",
    kind: Kind::List,
    description: "Reach only these: *.example.com, @debian, @pypi, @npm, @crates",
};
pub(crate) const MOUNTS: Argument = Argument {
    name: "mounts",
    kind: Kind::List,
    description: "Directories of the host to mount: /HOST:/GUEST to read, /HOST:/GUEST:rw to change",
};
pub(crate) const HOST_COMPAT: Argument = Argument {
    name: HostAccess::NAME,
    kind: Kind::Switch,
    description: "Run commands on the host, without isolation, if VMs cannot run there",
};
pub(crate) const VM_ID: Argument =
    Argument { name: "vm_id", kind: Kind::Text, description: "Id from vm_create" };
pub(crate) const TASK_ID: Argument =
    Argument { name: "task_id", kind: Kind::Text, description: "Id or name of a task" };
pub(crate) const SEQUENCE: Argument = Argument {
    name: "sequence",
    kind: Kind::Count,
    description: "Number of the command, from task_exec or task_logs",
};

pub(crate) const WAIT: Argument = Argument {
    name: "timeout_seconds",
    kind: Kind::OptionalCount(Some(45)),
    description: "Maximum time to wait in seconds, 1 to 3600",
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
    description: "With sequence: show its output from this character on; stdout_cut_chars and stderr_cut_chars then \
                  count the characters that follow",
};
pub(crate) const LAST: Argument = Argument {
    name: "last",
    kind: Kind::OptionalCount(Some(DEFAULT_ENTRIES)),
    description: "Number of commands to show, at most 1000",
};
pub(crate) const PATH: Argument = Argument {
    name: "path",
    kind: Kind::Text,
    description: "Path of the file, below /workspace unless it is absolute",
};
pub(crate) const FILE_OFFSET: Argument = Argument {
    name: "offset",
    kind: Kind::OptionalCount(Some(0)),
    description: "Offset in bytes, such as next_offset of an earlier result",
};
pub(crate) const MAX_BYTES: Argument = Argument {
    name: "max_bytes",
    kind: Kind::OptionalCount(Some(16_000)),
    description: "Maximum number of bytes to return, 1 to 1000000",
};
pub(crate) const CONTENT: Argument = Argument {
    name: "content",
    kind: Kind::Text,
    description: "Content of the file; over HTTP at most about 3 MiB",
};
pub(crate) const ENCODING: Argument = Argument {
    name: "encoding",
    kind: Kind::OneOf(&["utf-8", "base64"]),
    description: "Encoding of content",
};
pub(crate) const EXECUTABLE: Argument =
    Argument { name: "executable", kind: Kind::Switch, description: "Make the file executable" };
pub(crate) const LOOK: Argument =
    Argument { name: "action", kind: Kind::OneOf(&["list", "stat", "watch"]), description: "What to do" };
pub(crate) const CHANGE: Argument =
    Argument { name: "action", kind: Kind::Action(&["move", "remove", "mkdir"]), description: "What to do" };
pub(crate) const WATCH_TIME: Argument = Argument {
    name: "timeout_seconds",
    kind: Kind::OptionalCount(Some(45)),
    description: "Maximum time to watch in seconds, 1 to 3600",
};
pub(crate) const DIRECTORY: Argument = Argument {
    name: "path",
    kind: Kind::OptionalText,
    description: "Path, below /workspace unless it is absolute; default /workspace",
};
pub(crate) const RECURSIVE: Argument =
    Argument { name: "recursive", kind: Kind::Switch, description: "Also what is in its directories" };
pub(crate) const MAX_ENTRIES: Argument = Argument {
    name: "max_entries",
    kind: Kind::OptionalCount(Some(200)),
    description: "Maximum number of entries to return, 1 to 1000",
};
pub(crate) const DESTINATION: Argument =
    Argument { name: "destination", kind: Kind::OptionalText, description: "New path, for move" };
pub(crate) const REPLACE: Argument =
    Argument { name: "replace", kind: Kind::Switch, description: "Replace a file that has the new path" };
pub(crate) const CWD: Argument = Argument {
    name: "cwd",
    kind: Kind::OptionalText,
    description: "Existing working directory, relative to /workspace unless absolute",
};
pub(crate) const ENV: Argument =
    Argument { name: "env", kind: Kind::Variables, description: "Environment variables, each NAME=VALUE" };
pub(crate) const DETACH: Argument = Argument {
    name: "detach",
    kind: Kind::Switch,
    description: "Start the command, return its sequence, and leave it running",
};
pub(crate) const DISK: Argument = Argument {
    name: "disk_mib",
    kind: Kind::OptionalInteger(Some(Disk::DEFAULT_MIB)),
    description: "Size of the disk in MiB, 256 to 1048576; reduced if the disk of the host is too small",
};

pub(crate) const TASK_NAME: Argument =
    Argument { name: "name", kind: Kind::OptionalText, description: "Name, usable as task_id" };
pub(crate) const LABELS: Argument =
    Argument { name: "labels", kind: Kind::Variables, description: "Labels, each KEY=VALUE" };
pub(crate) const SERVICE: Argument =
    Argument { name: "name", kind: Kind::Text, description: "Name of the service" };
pub(crate) const ANY_SERVICE: Argument =
    Argument { name: "name", kind: Kind::OptionalText, description: "Name of the service; all if omitted" };
pub(crate) const SERVICE_COMMAND: Argument = Argument {
    name: "command",
    kind: Kind::OptionalText,
    description: "Shell text to keep running; omit it to start a stopped service again",
};
pub(crate) const READY_TCP: Argument = Argument {
    name: "ready_tcp",
    kind: Kind::OptionalCount(None),
    description: "Ready when it accepts connections to this port of the guest",
};
pub(crate) const READY_HTTP: Argument = Argument {
    name: "ready_http",
    kind: Kind::OptionalText,
    description: "Ready when it answers http://localhost:PORT/PATH with 200 to 399",
};
pub(crate) const READY_FILE: Argument =
    Argument { name: "ready_file", kind: Kind::OptionalText, description: "Ready when this file exists" };
pub(crate) const READY_COMMAND: Argument = Argument {
    name: "ready_command",
    kind: Kind::OptionalText,
    description: "Ready when this shell command ends with exit code 0",
};
pub(crate) const READY_TIMEOUT: Argument = Argument {
    name: "ready_timeout_seconds",
    kind: Kind::OptionalInteger(Some(60)),
    description: "Time limit for becoming ready",
};
pub(crate) const RESTART: Argument = Argument {
    name: "restart",
    kind: Kind::OneOf(&["no", "on-failure", "always"]),
    description: "When to run it again after it has ended",
};
pub(crate) const START_WITH_TASK: Argument =
    Argument { name: "start_with_task", kind: Kind::Switch, description: "Start it again with the task" };
pub(crate) const REMOVE: Argument =
    Argument { name: "remove", kind: Kind::Switch, description: "Also remove it, with its log" };
pub(crate) const TAIL: Argument = Argument {
    name: "tail",
    kind: Kind::OptionalCount(None),
    description: "Begin with this many last lines; 50 if offset is omitted, too",
};
pub(crate) const LOG_OFFSET: Argument = Argument {
    name: "offset",
    kind: Kind::OptionalCount(None),
    description: "Begin at this byte, such as next_offset of an earlier result",
};

impl Tool {
    /// Every tool in the order in which clients see them.
    pub(crate) const ALL: [Self; 34] = [
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
        Self::TaskFiles,
        Self::TaskChangeFiles,
        Self::TaskShellOpen,
        Self::TaskShellRead,
        Self::TaskShellWrite,
        Self::TaskShellSignal,
        Self::TaskShellClose,
        Self::TaskServiceStart,
        Self::TaskServiceStatus,
        Self::TaskServiceLogs,
        Self::TaskServiceStop,
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
            Self::TaskFiles => "task_files",
            Self::TaskChangeFiles => "task_change_files",
            Self::TaskShellOpen => "task_shell_open",
            Self::TaskShellRead => "task_shell_read",
            Self::TaskShellWrite => "task_shell_write",
            Self::TaskShellSignal => "task_shell_signal",
            Self::TaskShellClose => "task_shell_close",
            Self::TaskServiceStart => "task_service_start",
            Self::TaskServiceStatus => "task_service_status",
            Self::TaskServiceLogs => "task_service_logs",
            Self::TaskServiceStop => "task_service_stop",
        }
    }

    /// Description for the model: what the tool does, and when to use another one.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::VmRun => {
                "Run one command in a new virtual machine, then remove the machine. Use it for anything that needs no \
                 files from an earlier call. A non-zero exit_code is a normal result."
            }
            Self::VmListEnvironments => "List the environments for VMs and tasks.",
            Self::VmCreate => {
                "Create a VM without starting it; vm_start starts it. For a single command use vm_run."
            }
            Self::VmStart => "Start a created or stopped VM and wait until it accepts commands.",
            Self::VmExec => {
                "Run one command in a started VM, as vm_run does, then remove the VM, whatever the exit code."
            }
            Self::VmStop => "Stop a VM. Its disk is kept until the VM is deleted or its lifetime ends.",
            Self::VmDelete => "Remove a VM and its files.",
            Self::VmStatus => "Show the state and settings of a VM.",
            Self::VmNetworkInfo => "Show the network settings of a VM.",
            Self::VmReapExpired => "Remove VMs whose lifetime has ended, and list them.",
            Self::TaskCreate => {
                "Create and start a task: a virtual machine with a persistent /workspace, for work that takes several \
                 commands. Delete it when the work is done."
            }
            Self::TaskExec => {
                "Run one command in a task, in /workspace unless cwd is set. Several commands can \
                 run in a task at the same time. For a command that takes more than a minute, set detach and call task_wait. A non-zero \
                 exit_code is a normal result."
            }
            Self::TaskStatus => "Show the state of a task and its latest command.",
            Self::TaskLogs => {
                "Show the latest commands of a task with their output, or one command by its sequence. Long output is cut \
                 in the middle; offset shows the rest."
            }
            Self::TaskDelete => "Remove a task with its files and its command history.",
            Self::TaskList => "List all tasks.",
            Self::TaskWait => {
                "Wait until a command of a task has ended, at most timeout_seconds, and show it. If outcome is `running`, \
                 call again."
            }
            Self::TaskKill => "End a command of a task.",
            Self::TaskStart => "Start a stopped task with its files.",
            Self::TaskStop => "Stop a task. Its files and its command history are kept.",
            Self::TaskExtend => "Start a new lifetime for a task now.",
            Self::TaskReadFile => {
                "Read a file of a task, or a part of it. Content that is not UTF-8 text is returned as base64. For large \
                 files use commands."
            }
            Self::TaskWriteFile => {
                "Create or replace a file of a task, with its parent directories. The content needs no shell quoting."
            }
            Self::TaskFiles => {
                "List a directory of a task, or describe one file (stat), or wait until files change (watch): start that \
                 before what changes them."
            }
            Self::TaskChangeFiles => {
                "Move or rename a file or directory of a task, remove it, or make a directory."
            }
            Self::TaskShellOpen => {
                "Open a shell in a task, on a terminal, for programs that ask questions or keep their state. It stays open \
                 between calls. For a single command use task_exec."
            }
            Self::TaskShellRead => "Show output of a shell, without escape sequences, or list the shells.",
            Self::TaskShellWrite => "Type into a shell and show the output that follows.",
            Self::TaskShellSignal => "Send a signal to what runs in the foreground of a shell.",
            Self::TaskShellClose => "End a shell and everything that runs in it.",
            Self::TaskServiceStart => {
                "Keep a command of a task running, such as a server, until task_service_stop. Arguments as for vm_run. With one of the ready_ \
                 arguments, waits until it is ready; if state is `failed`, reason and last_output say why."
            }
            Self::TaskServiceStatus => "Show the services of a task.",
            Self::TaskServiceLogs => {
                "Show what a service has written. If next_offset is less than end_offset, there is more."
            }
            Self::TaskServiceStop => "Stop a service of a task.",
        }
    }

    pub(crate) fn arguments(self) -> &'static [Argument] {
        match self {
            Self::VmRun => &[
                ENVIRONMENT,
                COMMAND,
                ARGV,
                SHELL,
                USER,
                STDIN,
                CWD,
                ENV,
                VCPU_COUNT,
                MEM_MIB,
                TIMEOUT,
                VM_TTL,
                NETWORK,
                ALLOW_DOMAINS,
                MOUNTS,
                HOST_COMPAT,
            ],
            Self::VmListEnvironments | Self::VmReapExpired | Self::TaskList => &[],
            Self::VmCreate => {
                &[ENVIRONMENT, VCPU_COUNT, MEM_MIB, VM_TTL, NETWORK, ALLOW_DOMAINS, MOUNTS, HOST_COMPAT]
            }
            Self::VmStart | Self::VmStop | Self::VmDelete | Self::VmStatus | Self::VmNetworkInfo => &[VM_ID],
            Self::VmExec => &[VM_ID, COMMAND, ARGV, SHELL, USER, STDIN, CWD, ENV, TIMEOUT],
            Self::TaskCreate => &[
                ENVIRONMENT,
                TASK_NAME,
                LABELS,
                VCPU_COUNT,
                MEM_MIB,
                TASK_TTL,
                DISK,
                NETWORK,
                ALLOW_DOMAINS,
                MOUNTS,
                HOST_COMPAT,
            ],
            Self::TaskExec => &[TASK_ID, COMMAND, ARGV, SHELL, USER, STDIN, CWD, ENV, TASK_TIMEOUT, DETACH],
            Self::TaskStatus | Self::TaskDelete | Self::TaskStart | Self::TaskStop => &[TASK_ID],
            Self::TaskLogs => &[TASK_ID, ANY_SEQUENCE, OUTPUT_OFFSET, LAST],
            Self::TaskWait => &[TASK_ID, SEQUENCE, WAIT],
            Self::TaskKill => &[TASK_ID, SEQUENCE],
            Self::TaskExtend => &[TASK_ID, NEW_TTL],
            Self::TaskReadFile => &[TASK_ID, PATH, FILE_OFFSET, MAX_BYTES],
            Self::TaskWriteFile => &[TASK_ID, PATH, CONTENT, ENCODING, EXECUTABLE],
            Self::TaskFiles => &[TASK_ID, LOOK, DIRECTORY, RECURSIVE, MAX_ENTRIES, WATCH_TIME],
            Self::TaskChangeFiles => &[TASK_ID, CHANGE, PATH, DESTINATION, REPLACE, RECURSIVE],
            Self::TaskShellOpen => &[TASK_ID, PROGRAM, USER, CWD, ENV],
            Self::TaskShellRead => &[TASK_ID, ANY_SHELL, CURSOR, WAIT_SECONDS, IDLE_SECONDS, SCREEN],
            Self::TaskShellWrite => {
                &[TASK_ID, SHELL_ID, TEXT, KEYS, LAST_CURSOR, WAIT_SECONDS, IDLE_SECONDS, SCREEN]
            }
            Self::TaskShellSignal => &[TASK_ID, SHELL_ID, SIGNAL],
            Self::TaskShellClose => &[TASK_ID, SHELL_ID],
            Self::TaskServiceStart => &[
                TASK_ID,
                SERVICE,
                SERVICE_COMMAND,
                ARGV,
                SHELL,
                USER,
                CWD,
                ENV,
                READY_TCP,
                READY_HTTP,
                READY_FILE,
                READY_COMMAND,
                READY_TIMEOUT,
                RESTART,
                START_WITH_TASK,
            ],
            Self::TaskServiceStatus => &[TASK_ID, ANY_SERVICE],
            Self::TaskServiceLogs => &[TASK_ID, SERVICE, TAIL, LOG_OFFSET],
            Self::TaskServiceStop => &[TASK_ID, SERVICE, REMOVE],
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
            Self::TaskFiles => schema_of::<FilesFound>(),
            Self::TaskChangeFiles => schema_of::<FilesChanged>(),
            Self::TaskShellOpen | Self::TaskShellWrite => schema_of::<TaskShellOutput>(),
            Self::TaskShellRead => schema_of::<ShellsShown>(),
            Self::TaskShellSignal | Self::TaskShellClose => schema_of::<TaskShell>(),
            Self::TaskServiceStart => schema_of::<Service>(),
            Self::TaskServiceStop => schema_of::<ServiceEnded>(),
            Self::TaskServiceStatus => schema_of::<ServiceList>(),
            Self::TaskServiceLogs => schema_of::<ServiceLog>(),
        };
        schema::compact(self, schema, self.keys())
    }

    /// The payload's keys that its schema names; empty: all. They are what the next call depends on. The payload has the other
    /// keys all the same, such as the size of a VM: their names say what they are.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::VmRun => &[
                "shell",
                "stdout",
                "stderr",
                "exit_code",
                "execution_mode",
                "stdout_truncated",
                "stderr_truncated",
                "timed_out",
            ],
            Self::VmExec => &["stdout", "stderr", "exit_code", "timed_out"],
            Self::VmCreate => &["vm_id", "state", "expires_at"],
            Self::TaskCreate => &["task_id", "state", "expires_at"],
            Self::VmStart | Self::VmStop | Self::TaskStart | Self::TaskStop | Self::TaskExtend => {
                &["state", "expires_at"]
            }
            Self::VmDelete | Self::TaskDelete => &["deleted"],
            Self::VmReapExpired => &["deleted_vm_ids"],
            Self::TaskLogs => &["entries"],
            Self::TaskWait => &["stdout", "stderr", "exit_code", "outcome", "timed_out", "error"],
            Self::TaskKill => &["sequence", "outcome", "exit_code"],
            Self::TaskShellOpen => &["shell_id", "text", "cursor"],
            Self::TaskShellWrite => &["text", "cursor", "reason", "running", "exit_code"],
            Self::TaskShellSignal => &["running"],
            Self::TaskShellClose => &["exit_code"],
            Self::TaskServiceStart => &["name", "state", "exit_code", "reason", "last_output"],
            Self::TaskServiceStop => &["name", "state", "removed"],
            Self::VmStatus => &["state", "expires_at"],
            Self::VmNetworkInfo => &["network_enabled", "reason", "network_denials"],
            Self::TaskStatus => &[
                "state",
                "expires_at",
                "network_denials",
                "services",
                "last_command",
                "stop_reason",
                "last_error",
            ],
            Self::TaskFiles => &["path", "entries", "file", "changes", "reason", "truncated"],
            Self::TaskChangeFiles => &["path", "source", "destination"],
            Self::TaskWriteFile => &["bytes"],
            Self::TaskList => &["tasks", "damaged_task_ids"],
            Self::TaskServiceStatus => &["services"],
            Self::TaskServiceLogs => &["output", "offset", "next_offset", "end_offset"],
            Self::VmListEnvironments | Self::TaskExec | Self::TaskReadFile | Self::TaskShellRead => &[],
        }
    }

    /// The operation that a call performs. Its class of access decides whether a client may call it.
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
            // The others of each tool have the same access.
            Self::TaskFiles => ListTaskFiles::INFO,
            Self::TaskChangeFiles => MoveTaskFile::INFO,
            Self::TaskShellOpen => OpenTaskShell::INFO,
            Self::TaskShellRead => ReadTaskShell::INFO,
            Self::TaskShellWrite => WriteTaskShell::INFO,
            Self::TaskShellSignal => SignalTaskShell::INFO,
            Self::TaskShellClose => CloseTaskShell::INFO,
            Self::TaskServiceStart => StartTaskService::INFO,
            Self::TaskServiceStatus => ListTaskServices::INFO,
            Self::TaskServiceLogs => LogsTaskService::INFO,
            Self::TaskServiceStop => StopTaskService::INFO,
        }
    }

    /// A call changes nothing.
    pub(crate) fn reads_only(self) -> bool {
        self.operation().access.reads_only()
    }

    /// A call creates a VM.
    pub(crate) fn creates(self) -> bool {
        self.operation().access == Access::Create
    }

    /// Hints for clients that ask their user before a call. `closed`: commands reach nothing outside their machine.
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
                | Self::TaskChangeFiles
                | Self::VmStop
                | Self::TaskStop
                | Self::TaskShellWrite
                | Self::TaskShellSignal
                | Self::TaskShellClose
                | Self::TaskServiceStart
                | Self::TaskServiceStop
        ) || (self == Self::VmRun && !closed);
        let repeatable = reads
            || matches!(
                self,
                Self::VmStop
                    | Self::VmReapExpired
                    | Self::TaskStop
                    | Self::TaskKill
                    | Self::TaskShellClose
                    | Self::TaskExtend
                    | Self::TaskWriteFile
                    | Self::TaskServiceStop
            );
        // With `network`, a command reaches other hosts.
        let open = !closed
            && matches!(
                self,
                Self::VmRun
                    | Self::VmExec
                    | Self::TaskExec
                    | Self::TaskShellOpen
                    | Self::TaskShellWrite
                    | Self::TaskServiceStart
            );
        ToolAnnotations::new().read_only(reads).destructive(destroys).idempotent(repeatable).open_world(open)
    }
}

/// Result of `task_files`. Each action has its own keys.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum FilesFound {
    /// The entries of a directory.
    Listed(TaskFileList),
    /// One file.
    Described(TaskFileInfo),
    /// Changes.
    Watched(TaskFileChanges),
}

/// Result of `task_change_files`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum FilesChanged {
    /// It has another path.
    Moved(TaskFileMoved),
    /// It was removed or made.
    Changed(TaskFileChanged),
}

/// Result of `task_shell_read`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ShellsShown {
    /// Output of a shell.
    Output(TaskShellOutput),
    /// The shells.
    Listed(TaskShells),
}

/// Result of `task_service_stop`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ServiceEnded {
    /// It can be started again.
    Stopped(Service),
    /// It does not exist any more.
    Removed(ServiceRemoved),
}

/// Result of `task_exec`: a command that has ended, or one that was left running.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Executed {
    Ended(TaskExec),
    Detached(TaskDetached),
}
