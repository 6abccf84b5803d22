//! The tools: the contract's, and what a task needs besides.

use pyro_engine::{
    Command, Deleted, Engine, EngineError, Environment, Events, NetworkInfo, OutputMode, Reaped, RunResult,
    Task, TaskDeleted, TaskDetached, TaskExec, TaskList, TaskLogEntry, TaskLogs, TaskSpec, Vm, VmSpec,
};
use rmcp::model::{CallToolResult, ToolAnnotations};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::arguments::{Argument, Arguments, Kind, Object};
use crate::result;

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
}

/// Why a call has no payload.
pub(crate) enum Failure {
    /// The arguments are wrong; one sentence.
    Arguments(String),
    /// The engine could not do it.
    Engine(EngineError),
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::Arguments(sentence)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// The environments under one key, as results must be objects.
#[derive(Serialize, JsonSchema)]
struct EnvironmentResult {
    /// Every environment of the catalog.
    result: Vec<Environment>,
}

const ENVIRONMENT: Argument = Argument {
    name: "environment",
    kind: Kind::Text,
    description: "Environment name, such as debian:12; vm_list_environments shows them all",
};
const COMMAND: Argument = Argument {
    name: "command",
    kind: Kind::Text,
    description: "Shell text for `/bin/sh -lc`; not interactive",
};
const VCPU_COUNT: Argument = Argument {
    name: "vcpu_count",
    kind: Kind::OptionalInteger(Some(1)),
    description: "Virtual CPUs, 1 to 8",
};
const MEM_MIB: Argument = Argument {
    name: "mem_mib",
    kind: Kind::OptionalInteger(Some(1024)),
    description: "Memory in MiB, 256 to 32768",
};
const TIMEOUT: Argument = Argument {
    name: "timeout_seconds",
    kind: Kind::OptionalInteger(Some(30)),
    description: "Longest time the command may take, in seconds; then it is ended and exit_code is 124",
};
const VM_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds after which the VM is removed, 60 to 3600",
};
const TASK_TTL: Argument = Argument {
    name: "ttl_seconds",
    kind: Kind::OptionalInteger(Some(600)),
    description: "Lifetime in seconds after which the task is stopped, 60 to 3600; task_extend renews it",
};
const NETWORK: Argument =
    Argument { name: "network", kind: Kind::Switch, description: "Give the guest outbound network access" };
const HOST_COMPAT: Argument = Argument {
    name: "allow_host_compat",
    kind: Kind::Switch,
    description: "Agree to run commands on the host, without isolation, if VMs cannot run there",
};
const VM_ID: Argument =
    Argument { name: "vm_id", kind: Kind::Text, description: "Id that vm_create returned" };
const TASK_ID: Argument =
    Argument { name: "task_id", kind: Kind::Text, description: "Id that task_create returned" };
const SEQUENCE: Argument = Argument {
    name: "sequence",
    kind: Kind::Integer,
    description: "Number of the command, as task_exec and task_logs tell it",
};

impl Tool {
    /// Every tool in the order in which clients see them.
    pub(crate) const ALL: [Self; 21] = [
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
                "Show the commands of a task and what they wrote, or one of them by its sequence."
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
        }
    }

    pub(crate) fn arguments(self) -> &'static [Argument] {
        const WAIT: Argument = Argument {
            name: "timeout_seconds",
            kind: Kind::OptionalInteger(Some(45)),
            description: "Longest time to wait, in seconds, 1 to 3600",
        };
        const NEW_TTL: Argument = Argument {
            name: "ttl_seconds",
            kind: Kind::Integer,
            description: "Lifetime in seconds from now, 60 to 3600",
        };
        const ANY_SEQUENCE: Argument = Argument {
            name: "sequence",
            kind: Kind::OptionalInteger(None),
            description: "Show only the command with this number",
        };
        const CWD: Argument = Argument {
            name: "cwd",
            kind: Kind::OptionalText,
            description: "Working directory, which must exist; below /workspace unless it is absolute",
        };
        const ENV: Argument =
            Argument { name: "env", kind: Kind::Texts, description: "Variables for the command, by name" };
        const DETACH: Argument = Argument {
            name: "detach",
            kind: Kind::Switch,
            description: "Do not wait for the command: return its sequence and leave it running",
        };
        const DISK: Argument = Argument {
            name: "disk_mib",
            kind: Kind::OptionalInteger(None),
            description: "Size of the disk in MiB, 256 to 1048576; 8192 unless given",
        };
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
            Self::TaskLogs => &[TASK_ID, ANY_SEQUENCE],
            Self::TaskWait => &[TASK_ID, SEQUENCE, WAIT],
            Self::TaskKill => &[TASK_ID, SEQUENCE],
            Self::TaskExtend => &[TASK_ID, NEW_TTL],
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
        };
        let mut schema = schema.as_object().cloned().unwrap_or_default();
        schema.values_mut().for_each(forget_formats);
        // Clients insist on an object, which a choice between objects does not say by itself.
        schema.insert("type".to_owned(), "object".into());
        schema
    }

    /// What a client may rely on before it asks its user.
    pub(crate) fn annotations(self) -> ToolAnnotations {
        let reads = matches!(
            self,
            Self::VmListEnvironments
                | Self::VmStatus
                | Self::VmNetworkInfo
                | Self::TaskStatus
                | Self::TaskLogs
                | Self::TaskList
                | Self::TaskWait
        );
        let destroys = matches!(
            self,
            Self::VmExec
                | Self::VmDelete
                | Self::VmReapExpired
                | Self::TaskExec
                | Self::TaskDelete
                | Self::TaskKill
        );
        let repeatable = reads
            || matches!(
                self,
                Self::VmStop | Self::VmReapExpired | Self::TaskStop | Self::TaskKill | Self::TaskExtend
            );
        // With `network` a command reaches whatever it wants to.
        let open = matches!(self, Self::VmRun | Self::VmExec | Self::TaskExec);
        ToolAnnotations::new().read_only(reads).destructive(destroys).idempotent(repeatable).open_world(open)
    }

    /// Does what is asked.
    pub(crate) async fn call(
        self,
        engine: &Engine,
        given: &Arguments,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<CallToolResult, Failure> {
        let vm = || given.text(VM_ID.name);
        let task = || given.text(TASK_ID.name);
        Ok(match self {
            Self::VmRun => {
                result::success(&engine.run(vm_spec(given)?, command(given)?, events, cancel).await?)
            }
            Self::VmListEnvironments => {
                result::success(&EnvironmentResult { result: engine.list_environments().await?.environments })
            }
            Self::VmCreate => result::success(&engine.create_vm(vm_spec(given)?, events, cancel).await?),
            Self::VmStart => result::success(&engine.start_vm(&vm()?, cancel).await?),
            Self::VmExec => result::success(&engine.exec_vm(&vm()?, command(given)?, events, cancel).await?),
            Self::VmStop => result::success(&engine.stop_vm(&vm()?).await?),
            Self::VmDelete => result::success(&engine.delete_vm(&vm()?).await?),
            Self::VmStatus => result::success(&engine.status_vm(&vm()?).await?),
            Self::VmNetworkInfo => result::success(&engine.network_info_vm(&vm()?).await?),
            Self::VmReapExpired => result::success(&engine.reap_expired().await?),
            Self::TaskCreate => {
                let spec = TaskSpec { vm: vm_spec(given)?, disk_mib: given.optional_integer("disk_mib")? };
                result::success(&engine.create_task(spec, events, cancel).await?)
            }
            Self::TaskExec if given.switch("detach")? => {
                result::success(&engine.detach_task(&task()?, command(given)?).await?)
            }
            Self::TaskExec => {
                result::success(&engine.exec_task(&task()?, command(given)?, events, cancel).await?)
            }
            Self::TaskStatus => result::success(&engine.status_task(&task()?).await?),
            Self::TaskLogs => {
                let sequence =
                    given.optional_integer("sequence")?.map(|_| given.count("sequence")).transpose()?;
                result::success(&engine.logs_task(&task()?, sequence).await?)
            }
            Self::TaskDelete => result::success(&engine.delete_task(&task()?).await?),
            Self::TaskList => result::success(&engine.list_tasks().await?),
            Self::TaskWait => result::success(&wait(engine, given, cancel).await?),
            Self::TaskKill => result::success(&engine.kill_task(&task()?, given.count("sequence")?).await?),
            Self::TaskStart => result::success(&engine.start_task(&task()?, events, cancel).await?),
            Self::TaskStop => result::success(&engine.stop_task(&task()?).await?),
            Self::TaskExtend => {
                result::success(&engine.extend_task(&task()?, given.integer("ttl_seconds")?).await?)
            }
        })
    }
}

/// The schema of what a payload looks like when it is written: keys that may be missing are not required.
fn schema_of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// Removes what says how a number is held here, such as `uint64`: JSON has no such formats, and clients complain.
fn forget_formats(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.retain(|key, value| key != "format" || !value.is_string());
            object.values_mut().for_each(forget_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_formats),
        _ => {}
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

/// Waits for a command, but not longer than a client would.
async fn wait(
    engine: &Engine,
    given: &Arguments,
    cancel: &CancellationToken,
) -> Result<TaskLogEntry, Failure> {
    let (task, sequence) = (given.text(TASK_ID.name)?, given.count("sequence")?);
    let seconds = given.optional_integer("timeout_seconds")?.unwrap_or(45);
    let limit = u64::try_from(seconds).ok().filter(|seconds| (1..=3600).contains(seconds));
    let limit = limit.ok_or_else(|| "`timeout_seconds` must be between 1 and 3600".to_owned())?;
    let patience = cancel.child_token();
    let waited = engine.wait_task(&task, sequence, &patience);
    match tokio::time::timeout(std::time::Duration::from_secs(limit), waited).await {
        Ok(entry) => Ok(entry?),
        Err(_) => {
            let logs = engine.logs_task(&task, Some(sequence)).await?;
            let entry = logs.entries.into_iter().next();
            entry.ok_or_else(|| Failure::Arguments(format!("task {task} has no command {sequence}")))
        }
    }
}

fn vm_spec(given: &Arguments) -> Result<VmSpec, String> {
    let defaults = VmSpec::new(given.text(ENVIRONMENT.name)?);
    Ok(VmSpec {
        vcpu_count: given.optional_integer(VCPU_COUNT.name)?.unwrap_or(defaults.vcpu_count),
        mem_mib: given.optional_integer(MEM_MIB.name)?.unwrap_or(defaults.mem_mib),
        ttl_seconds: given.optional_integer(VM_TTL.name)?.unwrap_or(defaults.ttl_seconds),
        network: given.switch(NETWORK.name)?,
        allow_host_compat: given.switch(HOST_COMPAT.name)?,
        environment: defaults.environment,
    })
}

fn command(given: &Arguments) -> Result<Command, String> {
    let defaults = Command::new(given.text(COMMAND.name)?);
    Ok(Command {
        timeout_seconds: given.optional_integer(TIMEOUT.name)?.unwrap_or(defaults.timeout_seconds),
        output: OutputMode::CaptureAndStream,
        cwd: given.optional_text("cwd")?,
        env: given.texts("env")?,
        ..defaults
    })
}
