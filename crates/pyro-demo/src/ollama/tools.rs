//! The tools that the model gets, and what becomes of a call.

use pyro_engine::operations::{ExecVm, RunInVm};
use pyro_engine::{Command, Engine, EngineError, ErrorKind, Events, RunResult, VmId, VmSpec, VmState};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::arguments::{self, Arguments, Object};
use super::failure::Failure;

/// Most characters of an output stream that the model is told: it pays for each of them.
const STREAM_CHARS: usize = 4_000;

/// One tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Run,
    ListEnvironments,
    Create,
    Start,
    Exec,
    Status,
}

/// One argument of a tool.
#[derive(Debug)]
struct Argument {
    name: &'static str,
    /// The type in the schema.
    kind: &'static str,
    required: bool,
    description: &'static str,
}

const fn required(name: &'static str, description: &'static str) -> Argument {
    Argument { name, kind: "string", required: true, description }
}

const fn optional(name: &'static str, kind: &'static str, description: &'static str) -> Argument {
    Argument { name, kind, required: false, description }
}

const ENVIRONMENT: Argument = required("environment", "Environment name, such as debian:12");
const COMMAND: Argument = required("command", "Shell text to run; not interactive");
const VM_ID: Argument = required("vm_id", "The vm_id from the result of vm_create");
const VCPU_COUNT: Argument = optional("vcpu_count", "integer", "Virtual CPUs, 1 to 8; 1 unless given");
const MEM_MIB: Argument = optional("mem_mib", "integer", "Memory in MiB, 256 to 32768; 1024 unless given");
const TIMEOUT: Argument =
    optional("timeout_seconds", "integer", "Longest time for the command; 30 unless given");
const TTL: Argument = optional("ttl_seconds", "integer", "Lifetime of the VM, 60 to 3600; 600 unless given");
const NETWORK: Argument = optional("network", "boolean", "Give the VM outbound network; false unless given");

/// Whether a command may run on this machine itself is for its owner to say, not for a model. What a model says of it
/// is read, since it may know the argument from elsewhere, and goes no further.
const HOST_COMPAT: &str = "allow_host_compat";

/// How a call ended: what is said of it, and what the model is told.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) failure: Option<String>,
    pub(super) told: Value,
}

/// The tools at work.
pub(super) struct Tools<'a> {
    engine: Engine,
    events: &'a Events,
    cancel: &'a CancellationToken,
    /// VMs that the model made, in this order. Some are gone.
    created: Vec<VmId>,
    /// Result of the last command that ran.
    pub(super) last_run: Option<RunResult>,
}

impl<'a> Tools<'a> {
    pub(super) fn new(engine: Engine, events: &'a Events, cancel: &'a CancellationToken) -> Self {
        Self { engine, events, cancel, created: Vec::new(), last_run: None }
    }

    /// Puts arguments right where it is clear what is meant. The id, if one takes the place of a placeholder.
    pub(super) fn repair(&self, name: &str, arguments: &mut Object) -> Option<&VmId> {
        let tool = Tool::named(name)?;
        if tool.takes(ENVIRONMENT.name) {
            arguments::name_environment(arguments);
        }
        if !tool.takes(VM_ID.name) || !arguments::has_placeholder(arguments) {
            return None;
        }
        let id = self.created.last()?;
        arguments.insert(VM_ID.name.to_owned(), id.as_str().into());
        Some(id)
    }

    /// Does what the model wants.
    pub(super) async fn call(&mut self, name: &str, arguments: &Object) -> Called {
        match self.carry_out(name, arguments).await {
            Ok(told) => Called { failure: None, told },
            Err(failure) => Called { told: failure.told(name, arguments), failure: Some(failure.error) },
        }
    }

    async fn carry_out(&mut self, name: &str, arguments: &Object) -> Result<Value, Failure> {
        let tool = Tool::named(name).ok_or_else(|| {
            let names = Tool::ALL.map(Tool::name).join(", ");
            let failure = Failure::unknown_tool(name);
            failure.hint(format!("the tools are: {names}"))
        })?;
        tool.refuse_others(arguments)?;
        let given = Arguments(arguments);
        let vm_id = || given.text(VM_ID.name).and_then(|id| self.own(&id));
        Ok(match tool {
            Tool::Run => {
                let (spec, command) = (vm_spec(&given)?, command(&given)?);
                let request = RunInVm { spec, command, output: Default::default() };
                let ran = self.engine.run(request, self.events, self.cancel).await?;
                self.told_of_run(ran)
            }
            Tool::ListEnvironments => payload(&self.engine.list_environments().await?.environments),
            Tool::Create => {
                let vm = self.engine.create_vm(vm_spec(&given)?, self.events, self.cancel).await?;
                self.created.push(vm.vm_id.clone());
                payload(&vm)
            }
            Tool::Start => payload(&self.engine.start_vm(vm_id()?.as_str(), self.events, self.cancel).await?),
            Tool::Exec => {
                let (vm_id, command) = (vm_id()?, command(&given)?);
                let vm_id = vm_id.as_str();
                if self.engine.status_vm(vm_id).await?.state != VmState::Started {
                    self.engine.start_vm(vm_id, self.events, self.cancel).await?;
                }
                let request = ExecVm { vm: vm_id.into(), command, output: Default::default() };
                let ran = self.engine.exec_vm(request, self.events, self.cancel).await?;
                self.told_of_run(ran)
            }
            Tool::Status => payload(&self.engine.status_vm(vm_id()?.as_str()).await?),
        })
    }

    /// The id of a VM that the model made. The user's others do not exist for it: it has no business with them, and
    /// one that may run commands on this machine would run the model's.
    fn own(&self, id: &str) -> Result<VmId, Failure> {
        if let Some(own) = self.created.iter().find(|own| own.as_str() == id) {
            return Ok(own.clone());
        }
        let unknown = match VmId::parse(id) {
            Err(ill_formed) => ill_formed,
            Ok(foreign) => EngineError::new(ErrorKind::NotFound, format!("vm '{foreign}' does not exist")),
        };
        Err(Failure::from(unknown).hint("call vm_create first and use the vm_id from its result".to_owned()))
    }

    fn told_of_run(&mut self, mut ran: RunResult) -> Value {
        ran.timings.clear();
        let mut told = payload(&ran);
        for stream in ["stdout", "stderr"] {
            if let Some(text) = told[stream].as_str()
                && let Some((end, _)) = text.char_indices().nth(STREAM_CHARS)
            {
                told[stream] =
                    format!("{}\n[cut here; {} bytes more]", &text[..end], text.len() - end).into();
            }
        }
        self.last_run = Some(ran);
        told
    }

    /// Removes every VM that the model made and that is still there, whatever became of the demo. Returns what could
    /// not be removed, and why.
    pub(super) async fn remove_created(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for id in self.created.drain(..) {
            match self.engine.delete_vm(id.as_str()).await {
                Ok(_) => {}
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => {}
                Err(error) => left.push(format!("vm {id} could not be removed: {error}")),
            }
        }
        left
    }
}

impl Tool {
    const ALL: [Self; 6] =
        [Self::Run, Self::ListEnvironments, Self::Create, Self::Start, Self::Exec, Self::Status];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Run => "vm_run",
            Self::ListEnvironments => "vm_list_environments",
            Self::Create => "vm_create",
            Self::Start => "vm_start",
            Self::Exec => "vm_exec",
            Self::Status => "vm_status",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Run => "Make a VM, run one command in it and remove the VM. The usual choice.",
            Self::ListEnvironments => "List the environments that a VM can be made from.",
            Self::Create => "Make a VM without starting it. Its vm_id is in the result.",
            Self::Start => "Start a VM that was created or stopped.",
            Self::Exec => "Run one command in a started VM, then remove the VM.",
            Self::Status => "Show the state of a VM.",
        }
    }

    fn arguments(self) -> &'static [Argument] {
        match self {
            Self::Run => &[ENVIRONMENT, COMMAND, VCPU_COUNT, MEM_MIB, TIMEOUT, TTL, NETWORK],
            Self::ListEnvironments => &[],
            Self::Create => &[ENVIRONMENT, VCPU_COUNT, MEM_MIB, TTL, NETWORK],
            Self::Start | Self::Status => &[VM_ID],
            Self::Exec => &[VM_ID, COMMAND, TIMEOUT],
        }
    }

    /// Whether its schema has an argument of this name.
    fn takes(self, name: &str) -> bool {
        self.arguments().iter().any(|argument| argument.name == name)
    }

    /// Refuses arguments that the tool does not have, as its schema says.
    fn refuse_others(self, arguments: &Object) -> Result<(), Failure> {
        let makes_vm = self.takes(ENVIRONMENT.name);
        let has = |name: &str| self.takes(name) || (name == HOST_COMPAT && makes_vm);
        let Some(other) = arguments.keys().find(|name| !has(name)) else { return Ok(()) };
        let failure = Failure::arguments(format!("{} has no argument '{other}'", self.name()));
        Err(match other.as_str() {
            "profile" if makes_vm => failure.hint("use `environment` instead of `profile`".to_owned()),
            _ => failure,
        })
    }

    fn describe(self) -> Value {
        let arguments = self.arguments();
        let property = |argument: &Argument| {
            (argument.name.to_owned(), json!({ "type": argument.kind, "description": argument.description }))
        };
        let required = arguments.iter().filter(|argument| argument.required).map(|argument| argument.name);
        json!({ "type": "function", "function": {
            "name": self.name(),
            "description": self.description(),
            "parameters": {
                "type": "object",
                "properties": arguments.iter().map(property).collect::<Object>(),
                "required": required.collect::<Vec<_>>(),
                "additionalProperties": false,
            },
        } })
    }
}

/// The tools as the model is told of them.
pub(super) fn descriptions() -> Vec<Value> {
    Tool::ALL.into_iter().map(Tool::describe).collect()
}

fn payload(value: &impl Serialize) -> Value {
    // The engine's payloads have only texts for keys, which is all that could go wrong.
    serde_json::to_value(value).unwrap_or_default()
}

fn vm_spec(given: &Arguments<'_>) -> Result<VmSpec, Failure> {
    let defaults = VmSpec::new(given.text(ENVIRONMENT.name)?);
    given.switch(HOST_COMPAT)?;
    Ok(VmSpec {
        vcpu_count: given.integer(VCPU_COUNT.name)?.unwrap_or(defaults.vcpu_count),
        mem_mib: given.integer(MEM_MIB.name)?.unwrap_or(defaults.mem_mib),
        ttl_seconds: given.integer(TTL.name)?.unwrap_or(defaults.ttl_seconds),
        network: given.switch(NETWORK.name)?,
        ..defaults
    })
}

fn command(given: &Arguments<'_>) -> Result<Command, Failure> {
    let defaults = Command::new(given.text(COMMAND.name)?);
    let timeout_seconds = given.integer(TIMEOUT.name)?.unwrap_or(defaults.timeout_seconds);
    Ok(Command { timeout_seconds, ..defaults })
}
