//! What a call of each tool does.

use std::time::Duration;

use pyro_engine::{
    Command, Engine, EngineError, Events, FileContent, FileEncoding, FileRange, OutputMode, TaskLogEntry,
    TaskSpec, VmSpec,
};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::arguments::Arguments;
use crate::journal;
use crate::policy::{Machine, Policy};
use crate::result;
use crate::tools::*;

/// Most bytes of a file that one call returns.
const MAX_FILE_PART: u64 = 1_000_000;
/// Most entries of a journal that one call returns.
const MOST_ENTRIES: u64 = 1000;

/// Why a call has no payload.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments are wrong; one sentence.
    Arguments(String),
    /// The operator does not allow it; one sentence.
    NotAllowed(String),
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

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) policy: &'a Policy,
    pub(crate) events: &'a Events,
    /// Somebody wants to know how far the call is.
    pub(crate) is_heard: bool,
    pub(crate) cancel: &'a CancellationToken,
}

impl Call<'_> {
    /// Does what is asked, and gives the payload.
    pub(crate) async fn carry_out(&self, tool: Tool, given: Arguments) -> Result<Value, Failure> {
        let given = &self.policy.check(tool, given)?;
        let Self { engine, events, cancel, .. } = self;
        let vm = || given.text(VM_ID.name);
        let task = || given.text(TASK_ID.name);
        match tool {
            Tool::VmRun => payload(engine.run(vm_spec(given)?, command(given)?, events, cancel).await?),
            Tool::VmListEnvironments => {
                let mut result = engine.list_environments().await?.environments;
                result.retain(|environment| self.policy.allows(&environment.name));
                payload(EnvironmentResult { result })
            }
            Tool::VmCreate => payload(engine.create_vm(vm_spec(given)?, events, cancel).await?),
            Tool::VmStart => {
                self.admit_vm(&vm()?).await?;
                payload(engine.start_vm(&vm()?, events, cancel).await?)
            }
            Tool::VmExec => {
                self.admit_vm(&vm()?).await?;
                payload(engine.exec_vm(&vm()?, command(given)?, events, cancel).await?)
            }
            Tool::VmStop => payload(engine.stop_vm(&vm()?).await?),
            Tool::VmDelete => payload(engine.delete_vm(&vm()?).await?),
            Tool::VmStatus => payload(engine.status_vm(&vm()?).await?),
            Tool::VmNetworkInfo => payload(engine.network_info_vm(&vm()?).await?),
            Tool::VmReapExpired => payload(engine.reap_expired().await?),
            Tool::TaskCreate => {
                let spec = TaskSpec { vm: vm_spec(given)?, disk_mib: given.optional_integer(DISK.name)? };
                payload(engine.create_task(spec, events, cancel).await?)
            }
            Tool::TaskExec => {
                self.admit_task(&task()?).await?;
                if given.switch(DETACH.name)? {
                    payload(engine.detach_task(&task()?, command(given)?).await?)
                } else {
                    payload(engine.exec_task(&task()?, command(given)?, events, cancel).await?)
                }
            }
            Tool::TaskStatus => payload(engine.status_task(&task()?).await?),
            Tool::TaskLogs => self.logs(given).await,
            Tool::TaskDelete => payload(engine.delete_task(&task()?).await?),
            Tool::TaskList => payload(engine.list_tasks().await?),
            Tool::TaskWait => payload(self.wait(given).await?),
            Tool::TaskKill => payload(engine.kill_task(&task()?, given.count(SEQUENCE.name)?).await?),
            Tool::TaskStart => {
                self.admit_task(&task()?).await?;
                payload(engine.start_task(&task()?, events, cancel).await?)
            }
            Tool::TaskStop => payload(engine.stop_task(&task()?).await?),
            Tool::TaskExtend => payload(engine.extend_task(&task()?, given.integer(NEW_TTL.name)?).await?),
            Tool::TaskReadFile => {
                self.admit_task(&task()?).await?;
                let offset = given.count_or_default(&FILE_OFFSET)?;
                let max_bytes = given.count_or_default(&MAX_BYTES)?;
                if !(1..=MAX_FILE_PART).contains(&max_bytes) {
                    return Err(format!("`max_bytes` must be between 1 and {MAX_FILE_PART}").into());
                }
                let (path, range) = (given.text(PATH.name)?, FileRange { offset, max_bytes });
                payload(engine.read_task_file(&task()?, &path, range, cancel).await?)
            }
            Tool::TaskWriteFile => {
                self.admit_task(&task()?).await?;
                let encoding = match given.optional_text(ENCODING.name)?.as_deref() {
                    None | Some("utf-8") => FileEncoding::Utf8,
                    Some("base64") => FileEncoding::Base64,
                    Some(_) => return Err("`encoding` must be utf-8 or base64".to_owned().into()),
                };
                let content = FileContent { text: given.text(CONTENT.name)?, encoding };
                let (path, executable) = (given.text(PATH.name)?, given.switch(EXECUTABLE.name)?);
                payload(engine.write_task_file(&task()?, &path, &content, executable, cancel).await?)
            }
        }
    }

    async fn admit_vm(&self, id: &str) -> Result<(), Failure> {
        if !self.policy.limits_machines() {
            return Ok(());
        }
        let vm = self.engine.status_vm(id).await?;
        self.policy.admit(&Machine {
            name: format!("vm {}", vm.vm_id),
            environment: vm.environment,
            network_enabled: vm.network_enabled,
            allow_host_compat: vm.allow_host_compat,
            vcpu_count: vm.vcpu_count.into(),
            mem_mib: vm.mem_mib.into(),
            ttl_seconds: vm.ttl_seconds.into(),
            disk_mib: 0,
        })
    }

    async fn admit_task(&self, id: &str) -> Result<(), Failure> {
        if !self.policy.limits_machines() {
            return Ok(());
        }
        let task = self.engine.status_task(id).await?;
        self.policy.admit(&Machine {
            name: format!("task {}", task.task_id),
            environment: task.environment,
            network_enabled: task.network_enabled,
            allow_host_compat: task.allow_host_compat,
            vcpu_count: task.vcpu_count.into(),
            mem_mib: task.mem_mib.into(),
            ttl_seconds: task.ttl_seconds.into(),
            disk_mib: task.disk_mib.and_then(|mib| i64::try_from(mib).ok()).unwrap_or(0),
        })
    }

    async fn logs(&self, given: &Arguments) -> Result<Value, Failure> {
        let task = given.text(TASK_ID.name)?;
        let offset = given.optional_count(OUTPUT_OFFSET.name)?;
        match (given.optional_count(ANY_SEQUENCE.name)?, offset) {
            (None, Some(_)) => {
                let sentence = "`offset` needs `sequence`, the number of the command whose output is meant";
                Err(sentence.to_owned().into())
            }
            (None, None) => {
                let last = given.count_or_default(&LAST)?.min(MOST_ENTRIES);
                Ok(journal::latest(self.engine, &task, last).await?)
            }
            (sequence, offset) => {
                let mut logs = payload(self.engine.logs_task(&task, sequence).await?)?;
                if let (Some(offset), Some(entry)) = (offset, logs["entries"].get_mut(0)) {
                    result::begin_at(entry, offset);
                }
                Ok(logs)
            }
        }
    }

    /// Waits for a command, but not longer than a client would.
    async fn wait(&self, given: &Arguments) -> Result<TaskLogEntry, Failure> {
        let (task, sequence) = (given.text(TASK_ID.name)?, given.count(SEQUENCE.name)?);
        let limit = given.count_or_default(&WAIT)?;
        if !(1..=3600).contains(&limit) {
            return Err("`timeout_seconds` must be between 1 and 3600".to_owned().into());
        }
        let ended = async {
            if !self.is_heard {
                return self.engine.wait_task(&task, sequence, self.cancel).await;
            }
            // For the sake of whoever is told how far it is.
            self.engine.follow_task(&task, sequence, self.events, self.cancel).await
        };
        if let Ok(ended) = tokio::time::timeout(Duration::from_secs(limit), ended).await {
            ended?;
        }
        let entry = self.engine.logs_task(&task, Some(sequence)).await?.entries.into_iter().next();
        entry.ok_or_else(|| Failure::Arguments(format!("task {task} has no command {sequence}")))
    }
}

fn payload(payload: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(payload).map_err(|error| {
        Failure::Engine(EngineError::internal("the result cannot be written as JSON").caused_by(error))
    })
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
        cwd: given.optional_text(CWD.name)?,
        env: given.texts(ENV.name)?,
        ..defaults
    })
}
