//! The limits that the operator of a server sets.

use std::collections::BTreeMap;

use pyro_api::{
    Command, DirectoryMount, Disk, EnvironmentName, Lifetime, MountRoot, NetworkPolicy, Operation, Ports,
    Task, Vm, VmSpec,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::arguments::{self, Argument, ArgumentError, Arguments, Given, Kind, Object};
use crate::failure::Failure;
use crate::tools::{
    ALLOW_DOMAINS, DISK, ENVIRONMENT, HOST_COMPAT, MEM_MIB, MOUNTS, NETWORK, NEW_TTL, TASK_TIMEOUT, TASK_TTL,
    TIMEOUT, Tool, VCPU_COUNT, VM_TTL,
};

/// The set of tools that a server offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// `vm_run` and the list of environments.
    VmRun,
    /// Those, and the tools for tasks.
    Task,
    /// All.
    #[default]
    Full,
}

/// Limits that the operator of a server sets and no client can widen. By default the engine's limits hold, and no command
/// runs on the host.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Policy {
    /// The set of tools.
    pub profile: Profile,
    /// Offer only tools that change nothing.
    pub read_only: bool,
    /// Environments that may be used; empty: all.
    pub environments: Vec<String>,
    /// Guests have no network.
    pub no_network: bool,
    /// What guests with a network may reach. A call can only narrow it.
    pub network_policy: NetworkPolicy,
    /// Guests with a network may use the host's proxies.
    pub host_proxy: bool,
    /// Commands may run on the host if VMs cannot run there and the client allows it.
    pub allow_host_compat: bool,
    /// Directories of the host that guests may have mounted, and enter where others mounted them. Their paths are without
    /// symbolic links. The engine must have the same limit: it knows the true paths that calls name.
    pub allow_mounts: Vec<MountRoot>,
    /// Maximum number of virtual CPUs of a VM.
    pub max_vcpu_count: Option<i64>,
    /// Maximum memory in MiB.
    pub max_mem_mib: Option<i64>,
    /// Maximum size of a task's disk in MiB.
    pub max_disk_mib: Option<i64>,
    /// Maximum lifetime in seconds, from creation or the latest extension, and maximum time limit of a command. The engine
    /// must have the same limit: it raises lifetimes for long time limits, and then adds the time to start and to end.
    pub max_ttl_seconds: Option<i64>,
}

/// The contract's parameter that [`ALLOW_DOMAINS`] becomes a part of.
const NETWORK_POLICY: &str = "network_policy";
const PUBLISH: &str = "publish";

/// A limit of one argument.
enum Pin<'a> {
    OneOf(&'a [String]),
    AtMost(i64),
    Off,
}

impl Policy {
    /// The tools that the policy offers, in the order in which clients see them.
    pub(crate) fn tools(&self) -> impl Iterator<Item = Tool> {
        Tool::ALL.into_iter().filter(|tool| self.offers(*tool))
    }

    pub(crate) fn offers(&self, tool: Tool) -> bool {
        let name = tool.name();
        let in_profile = match self.profile {
            Profile::VmRun => matches!(tool, Tool::VmRun | Tool::VmListEnvironments),
            Profile::Task => {
                matches!(tool, Tool::VmRun | Tool::VmListEnvironments) || name.starts_with("task_")
            }
            Profile::Full => true,
        };
        in_profile && (!self.read_only || tool.reads_only())
    }

    /// The profile includes tasks.
    pub(crate) fn has_tasks(&self) -> bool {
        self.profile != Profile::VmRun
    }

    /// An environment may be used.
    pub(crate) fn allows(&self, environment: &str) -> bool {
        self.environments.is_empty() || self.environments.iter().any(|allowed| allowed == environment)
    }

    fn allows_mount(&self, mount: &DirectoryMount) -> bool {
        self.allow_mounts.iter().any(|root| root.allows(mount))
    }

    fn pin(&self, argument: &Argument) -> Option<Pin<'_>> {
        let one_of = (!self.environments.is_empty()).then_some(Pin::OneOf(&self.environments));
        let off = |is_off: bool| is_off.then_some(Pin::Off);
        let at_most = |most: Option<i64>| most.map(Pin::AtMost);
        let pins = [
            (ENVIRONMENT, one_of),
            (NETWORK, off(self.no_network)),
            (HOST_COMPAT, off(!self.allow_host_compat)),
            (VCPU_COUNT, at_most(self.max_vcpu_count)),
            (MEM_MIB, at_most(self.max_mem_mib)),
            (DISK, at_most(self.max_disk_mib)),
            (VM_TTL, at_most(self.max_ttl_seconds)),
            (TASK_TTL, at_most(self.max_ttl_seconds)),
            (NEW_TTL, at_most(self.max_ttl_seconds)),
            (TIMEOUT, at_most(self.max_ttl_seconds)),
            (TASK_TIMEOUT, at_most(self.max_ttl_seconds)),
        ];
        pins.into_iter().find(|(known, _)| known == argument)?.1
    }

    /// The schema of a tool's arguments, with the limits in it.
    pub(crate) fn input_schema(&self, tool: Tool) -> Object {
        let mut schema = arguments::schema(tool.arguments());
        if self.allow_mounts.is_empty()
            && let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut)
        {
            properties.remove(MOUNTS.name);
        }
        for argument in tool.arguments() {
            let (Some(pin), Some(property)) = (self.pin(argument), property(&mut schema, argument.name))
            else {
                continue;
            };
            match pin {
                Pin::OneOf(names) => property["enum"] = names.into(),
                Pin::AtMost(most) => {
                    property["maximum"] = most.into();
                    if let Kind::OptionalInteger(Some(default)) = argument.kind
                        && default > most
                    {
                        property["description"] = argument.description_with(most).into();
                    }
                }
                Pin::Off => property["description"] = "Must be false on this server".into(),
            }
        }
        for argument in tool.arguments().iter().filter(|argument| self.is_described_before(tool, argument)) {
            if let Some(Value::Object(property)) = property(&mut schema, argument.name) {
                property.remove("description");
            }
        }
        schema
    }

    /// Whether clients have read the description of an argument when they come to this tool. A model pays for every word. The
    /// tools that models use most describe all of theirs, because many clients show a model only some tools. So are time limits
    /// each time: a model that does not know them waits in vain.
    fn is_described_before(&self, tool: Tool, argument: &Argument) -> bool {
        !matches!(tool, Tool::VmRun | Tool::TaskCreate | Tool::TaskExec)
            && *argument != TIMEOUT
            && self
                .tools()
                .take_while(|earlier| *earlier != tool)
                .any(|earlier| earlier.arguments().contains(argument))
    }

    /// The arguments of a tool that this policy turns off.
    pub(crate) fn turned_off(&self, tool: Tool) -> impl Iterator<Item = &'static str> {
        let arguments = tool.arguments().iter();
        arguments
            .filter(|argument| matches!(self.pin(argument), Some(Pin::Off)))
            .map(|argument| argument.name)
    }

    /// Description of a tool, with its limits.
    pub(crate) fn description(&self, tool: Tool, max_active_vms: u32) -> String {
        let limits: Vec<String> =
            tool.arguments().iter().filter_map(|argument| self.limit_text(argument)).collect();
        let mut text = tool.description().to_owned();
        if tool.creates() {
            text.push_str(&format!(" At most {max_active_vms} VMs and tasks exist at once."));
        }
        if !limits.is_empty() {
            text.push_str(&format!(" Limits set by the operator: {}.", limits.join("; ")));
        }
        text
    }

    fn limit_text(&self, argument: &Argument) -> Option<String> {
        // The schema shows it. A description that names it would invite agents to ask for it.
        if argument.name == HOST_COMPAT.name {
            return None;
        }
        Some(match self.pin(argument)? {
            Pin::OneOf(names) => format!("{} must be {}", argument.name, names.join(" or ")),
            Pin::AtMost(most) => format!("{} at most {most}", argument.name),
            Pin::Off => format!("{} must be false", argument.name),
        })
    }

    /// Checks that the tool is offered, and lowers defaults that are beyond a limit.
    pub(crate) fn allowed_arguments(&self, tool: Tool, mut given: Arguments) -> Result<Arguments, Failure> {
        if !self.offers(tool) {
            return Err(Failure::NotAllowed(format!("this server does not offer {}", tool.name())));
        }
        for argument in tool.arguments() {
            if let (Some(Pin::AtMost(most)), Kind::OptionalInteger(Some(default))) =
                (self.pin(argument), argument.kind)
                && default > most
                && given.optional_integer(argument.name)?.is_none()
            {
                given.set(argument.name, most.into());
            }
        }
        Ok(given)
    }

    /// Replaces `allow_domains` by the policy that it stands for. A guest with a network for which the client names no domains
    /// gets what the operator allows.
    pub(crate) fn apply_network_policy(&self, given: &mut Given) -> Result<(), Failure> {
        let domains = given.take(&ALLOW_DOMAINS);
        let has_network = given.0.get(NETWORK.name) == Some(&Value::Bool(true));
        let policy = match domains {
            Some(_) if !has_network => {
                return Err(ArgumentError::Needs("`allow_domains` needs `network`").into());
            }
            Some(domains) => json!({ "egress": "allowlist", "allow_domains": domains }),
            None if has_network => json!(self.network_policy),
            None => return Ok(()),
        };
        given.0.insert(NETWORK_POLICY.to_owned(), policy);
        Ok(())
    }

    /// Replaces the texts of `mounts` by the mounts that they stand for.
    pub(crate) fn apply_mounts(&self, given: &mut Given) -> Result<(), Failure> {
        let Some(Value::Array(texts)) = given.take(&MOUNTS) else { return Ok(()) };
        let read = |text: &Value| {
            let mount: DirectoryMount = text.as_str()?.parse().ok()?;
            Some(json!(mount))
        };
        let mounts = texts.iter().map(read).collect::<Option<Vec<_>>>();
        let mounts =
            mounts.ok_or(ArgumentError::Needs("each of `mounts` must be /HOST:/GUEST or /HOST:/GUEST:rw"))?;
        given.0.insert(MOUNTS.name.to_owned(), mounts.into());
        Ok(())
    }

    /// Checks everything that a request asks for against the limits, whichever tool it comes from.
    pub(crate) fn check<O: Operation>(&self, request: &O) -> Result<(), Failure> {
        let spec = request.part::<VmSpec>();
        let named = || Some(&request.part::<EnvironmentName>()?.environment);
        let environment = spec.map(|spec| &spec.environment).or_else(named);
        let ttl = spec.map(|spec| spec.ttl_seconds);
        let timeout = request.part::<Command>().and_then(|command| command.timeout_seconds);
        let disk = request.part::<Disk>().map(|disk| disk.disk_mib.unwrap_or(Disk::DEFAULT_MIB));
        let sizes = [
            (VCPU_COUNT.name, spec.map(|spec| spec.vcpu_count), self.max_vcpu_count),
            (MEM_MIB.name, spec.map(|spec| spec.mem_mib), self.max_mem_mib),
            (
                TASK_TTL.name,
                ttl.or(request.part().map(|new: &Lifetime| new.ttl_seconds)),
                self.max_ttl_seconds,
            ),
            (TIMEOUT.name, timeout, self.max_ttl_seconds),
            (DISK.name, disk, self.max_disk_mib),
        ];
        let switches = [
            (NETWORK.name, spec.is_some_and(|spec| spec.network), !self.no_network),
            (HOST_COMPAT.name, spec.is_some_and(|spec| spec.allow_host_compat), self.allow_host_compat),
            (MOUNTS.name, spec.is_some_and(|spec| !spec.mounts.is_empty()), !self.allow_mounts.is_empty()),
            // It opens something on the host.
            (PUBLISH, request.part().is_some_and(|ports: &Ports| !ports.publish.is_empty()), false),
        ];
        if environment.is_some_and(|environment| !self.allows(environment)) {
            let names = self.environments.join(" or ");
            return Err(Failure::NotAllowed(format!("environment must be {names} on this server")));
        }
        for (name, asked, most) in sizes {
            if let (Some(asked), Some(most)) = (asked, most)
                && asked > most
            {
                let refused = format!("{name} must be at most {most} on this server, not {asked}");
                return Err(Failure::NotAllowed(refused));
            }
        }
        if let Some(spec) = spec.filter(|spec| spec.network) {
            let asked = spec.network_policy.clone().unwrap_or_default();
            let refused = |error| Failure::NotAllowed(format!("{error} on this server"));
            asked.check_within(&self.network_policy).map_err(refused)?;
        }
        match switches.into_iter().find(|(_, asked, allowed)| *asked && !allowed) {
            Some((name, ..)) => Err(Failure::NotAllowed(format!("{name} is turned off on this server"))),
            None => Ok(()),
        }
    }

    /// The environment for clients that have no preference.
    pub(crate) fn default_environment(&self) -> &str {
        self.environments.first().map_or("debian:12", String::as_str)
    }

    /// The size and lifetime of a VM for which a client gives none, within the limits.
    pub(crate) fn default_spec(&self) -> VmSpec {
        let spec = VmSpec::new(self.default_environment());
        let at_most = |value: i64, most: Option<i64>| most.map_or(value, |most| value.min(most));
        VmSpec {
            vcpu_count: at_most(spec.vcpu_count, self.max_vcpu_count),
            mem_mib: at_most(spec.mem_mib, self.max_mem_mib),
            ttl_seconds: at_most(spec.ttl_seconds, self.max_ttl_seconds),
            ..spec
        }
    }

    /// Commands reach nothing outside their machine.
    pub(crate) fn closes_machines(&self) -> bool {
        self.no_network && !self.allow_host_compat
    }

    /// Checks an existing machine before something runs in it.
    pub(crate) fn check_machine(&self, machine: &Machine) -> Result<(), Failure> {
        let sizes = [
            ("vcpu_count", machine.vcpu_count, self.max_vcpu_count),
            ("mem_mib", machine.mem_mib, self.max_mem_mib),
            ("disk_mib", machine.disk_mib, self.max_disk_mib),
            ("ttl_seconds", machine.ttl_seconds, self.max_ttl_seconds),
        ];
        let beyond = sizes.into_iter().find(|(_, value, most)| most.is_some_and(|most| *value > most));
        let fault = if !self.allows(&machine.environment) {
            format!("its environment is {}", machine.environment)
        } else if self.no_network && machine.network_enabled {
            "it has a network".to_owned()
        } else if let Some(policy) = &machine.network_policy
            && let Err(error) = policy.check_within(&self.network_policy)
        {
            format!("its network reaches more than this server allows: {error}")
        } else if machine.host_proxy && !self.host_proxy {
            "it uses the proxies of this host".to_owned()
        } else if let Some(mount) = machine.mounts.iter().find(|mount| !self.allows_mount(mount)) {
            let access = if mount.writable { "writable" } else { "read-only" };
            format!("it has {} of this host mounted, {access}", mount.host)
        } else if !self.allow_host_compat && machine.allow_host_compat {
            "it may run commands on the host".to_owned()
        } else if let Some((name, value, _)) = beyond {
            format!("its {name} is {value}")
        } else {
            return Ok(());
        };
        Err(Failure::NotAllowed(format!("{} cannot be used on this server: {fault}", machine.name)))
    }
}

/// The properties of a VM or a task that a policy limits.
pub(crate) struct Machine {
    /// Its kind and id.
    pub(crate) name: String,
    pub(crate) environment: String,
    pub(crate) network_enabled: bool,
    pub(crate) network_policy: Option<NetworkPolicy>,
    pub(crate) host_proxy: bool,
    pub(crate) mounts: Vec<DirectoryMount>,
    pub(crate) allow_host_compat: bool,
    pub(crate) vcpu_count: i64,
    pub(crate) mem_mib: i64,
    pub(crate) ttl_seconds: i64,
    /// 0 if it has no disk of its own, or not yet.
    pub(crate) disk_mib: i64,
}

impl From<Vm> for Machine {
    fn from(vm: Vm) -> Self {
        Self {
            name: format!("vm {}", vm.vm_id),
            environment: vm.environment,
            network_enabled: vm.network_enabled,
            network_policy: vm.network_policy,
            host_proxy: uses_proxy(&vm.metadata),
            mounts: vm.mounts,
            allow_host_compat: vm.allow_host_compat,
            vcpu_count: vm.vcpu_count.into(),
            mem_mib: vm.mem_mib.into(),
            ttl_seconds: vm.ttl_seconds.into(),
            disk_mib: 0,
        }
    }
}

impl From<Task> for Machine {
    fn from(task: Task) -> Self {
        Self {
            name: format!("task {}", task.task_id),
            environment: task.environment,
            network_enabled: task.network_enabled,
            network_policy: task.network_policy,
            host_proxy: uses_proxy(&task.metadata),
            mounts: task.mounts,
            allow_host_compat: task.allow_host_compat,
            vcpu_count: task.vcpu_count.into(),
            mem_mib: task.mem_mib.into(),
            ttl_seconds: task.ttl_seconds.into(),
            disk_mib: task.disk_mib.and_then(|mib| i64::try_from(mib).ok()).unwrap_or(0),
        }
    }
}

/// Returns whether a guest has the host's proxy settings.
fn uses_proxy(metadata: &BTreeMap<String, String>) -> bool {
    metadata.get("host_proxy").is_some_and(|value| value == "true")
}

fn property<'a>(schema: &'a mut Object, name: &str) -> Option<&'a mut Value> {
    schema.get_mut("properties")?.get_mut(name)
}

#[cfg(test)]
mod tests;
