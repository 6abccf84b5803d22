//! Resources: what there is, what is allowed, and what commands wrote.

use std::fmt;

use pyro_api::operations::{InspectEnvironment, ListEnvironments, ListTasks, LogsTask, StatusTask};
use pyro_api::{CallContext, Entries, EnvironmentName, Error, ErrorKind, Reader};
use rmcp::ErrorData;
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};
use serde::Serialize;

use crate::guard::{Failure, Guard};
use crate::journal;
use crate::outputs::Outputs;
use crate::policy::Policy;
use crate::result::STREAMS;

const SCHEME: &str = "pyro://";
const JSON: &str = "application/json";

/// What a resource is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Policy,
    Environment(String),
    Task(String),
    Journal(String),
    CommandOutput { task: String, sequence: u64, stream: &'static str },
    VmOutput { vm: String, stream: &'static str },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        match self {
            Self::Policy => f.write_str("policy"),
            Self::Environment(name) => write!(f, "environments/{name}"),
            Self::Task(task) => write!(f, "tasks/{task}"),
            Self::Journal(task) => write!(f, "tasks/{task}/logs"),
            Self::CommandOutput { task, sequence, stream } => {
                write!(f, "tasks/{task}/commands/{sequence}/{stream}")
            }
            Self::VmOutput { vm, stream } => write!(f, "vms/{vm}/{stream}"),
        }
    }
}

impl Address {
    /// Names in it are checked by whoever is asked for what they name.
    fn parse(uri: &str) -> Option<Self> {
        let stream = |name| STREAMS.into_iter().find(|stream| *stream == name);
        let parts: Vec<&str> = uri.strip_prefix(SCHEME)?.split('/').collect();
        Some(match parts[..] {
            ["policy"] => Self::Policy,
            ["environments", name] => Self::Environment(name.to_owned()),
            ["tasks", task] => Self::Task(task.to_owned()),
            ["tasks", task, "logs"] => Self::Journal(task.to_owned()),
            ["tasks", task, "commands", sequence, name] => Self::CommandOutput {
                task: task.to_owned(),
                sequence: sequence.parse().ok()?,
                stream: stream(name)?,
            },
            ["vms", vm, name] => Self::VmOutput { vm: vm.to_owned(), stream: stream(name)? },
            _ => return None,
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Policy => "policy".to_owned(),
            Self::Environment(name) => name.clone(),
            Self::Task(task) => format!("task {task}"),
            Self::Journal(task) => format!("journal of task {task}"),
            Self::CommandOutput { task, sequence, stream } => {
                format!("{stream} of command {sequence} of task {task}")
            }
            Self::VmOutput { vm, stream } => format!("{stream} of vm {vm}"),
        }
    }

    fn description(&self) -> &'static str {
        match self {
            Self::Policy => "What the operator of this server allows",
            Self::Environment(_) => "What an environment holds, and whether it is installed",
            Self::Task(_) => "State, settings and latest command of a task",
            Self::Journal(_) => "The commands of a task and what they wrote",
            Self::CommandOutput { .. } => "All that is kept of what a command of a task wrote",
            Self::VmOutput { .. } => "What the command of a VM that is gone wrote; kept for a while",
        }
    }

    /// What clients are told of it.
    pub(crate) fn resource(&self) -> Resource {
        Resource::new(self.to_string(), self.name())
            .with_description(self.description())
            .with_mime_type(self.mime_type())
    }

    fn mime_type(&self) -> &'static str {
        match self {
            Self::CommandOutput { .. } | Self::VmOutput { .. } => "text/plain",
            _ => JSON,
        }
    }
}

/// The kinds of resources, for clients that fill in names themselves.
pub(crate) fn templates(policy: &Policy) -> Vec<ResourceTemplate> {
    let template = |uri: &str, name: &str, address: &Address| {
        ResourceTemplate::new(format!("{SCHEME}{uri}"), name)
            .with_description(address.description())
            .with_mime_type(address.mime_type())
    };
    let none = String::new;
    let output = Address::CommandOutput { task: none(), sequence: 0, stream: "" };
    let mut templates =
        vec![template("environments/{environment}", "environment", &Address::Environment(none()))];
    if policy.has_tasks() {
        templates.extend([
            template("tasks/{task_id}", "task", &Address::Task(none())),
            template("tasks/{task_id}/logs", "journal", &Address::Journal(none())),
            template("tasks/{task_id}/commands/{sequence}/{stream}", "output", &output),
        ]);
    }
    templates
}

/// Everything that there is.
pub(crate) async fn list(guard: &Guard, outputs: &Outputs) -> Result<Vec<Resource>, ErrorData> {
    let call = &CallContext::default();
    let mut addresses = vec![Address::Policy];
    for name in environment_names(guard, call).await? {
        addresses.push(Address::Environment(name));
    }
    if guard.policy().has_tasks() {
        for task in guard.perform(ListTasks {}, call).await.map_err(fault)?.tasks {
            let id = task.task_id.to_string();
            addresses.extend([Address::Task(id.clone()), Address::Journal(id)]);
        }
    }
    addresses.extend(outputs.uris().iter().filter_map(|uri| Address::parse(uri)));
    Ok(addresses.iter().map(Address::resource).collect())
}

/// Names of the environments that may be used.
pub(crate) async fn environment_names(guard: &Guard, call: &CallContext) -> Result<Vec<String>, ErrorData> {
    let environments = guard.perform(ListEnvironments {}, call).await.map_err(fault)?;
    let names = environments.into_iter().map(|environment| environment.name);
    Ok(names.filter(|name| guard.policy().allows(name)).collect())
}

/// What a resource holds.
pub(crate) async fn read(guard: &Guard, outputs: &Outputs, uri: &str) -> Result<ResourceContents, ErrorData> {
    let (policy, call) = (guard.policy(), &CallContext::default());
    let unknown = || {
        let data = serde_json::json!({ "uri": shown(uri) });
        ErrorData::resource_not_found(format!("there is no resource {}", shown(uri)), Some(data))
    };
    let address = Address::parse(uri).ok_or_else(unknown)?;
    let of_task = matches!(address, Address::Task(_) | Address::Journal(_) | Address::CommandOutput { .. });
    if of_task && !policy.has_tasks() {
        return Err(unknown());
    }
    let read = async {
        let text = match &address {
            Address::Policy => json(&Allowed { policy, max_active_vms: guard.max_active_vms() })?,
            Address::Environment(name) if !policy.allows(name) => return Ok(None),
            Address::Environment(name) => {
                let which = EnvironmentName { environment: name.clone() };
                json(&guard.perform(InspectEnvironment { which }, call).await?)?
            }
            Address::Task(task) => {
                json(&guard.perform(StatusTask { task: task.as_str().into() }, call).await?)?
            }
            Address::Journal(task) => json(&journal::latest(guard, task, journal::USUAL, call).await?)?,
            Address::CommandOutput { task, sequence, stream } => {
                let one = Entries { sequence: Some(*sequence), after: 0 };
                let request = LogsTask { task: task.as_str().into(), entries: one };
                let entries = guard.perform(request, call).await?.logs.entries;
                let Some(entry) = entries.into_iter().next() else { return Ok(None) };
                let output = if *stream == "stdout" { entry.stdout } else { entry.stderr };
                output.to_text().into_owned()
            }
            Address::VmOutput { .. } => match outputs.read(uri) {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        Ok::<_, Failure>(Some(text))
    };
    match read.await {
        Ok(Some(text)) => Ok(ResourceContents::text(text, uri).with_mime_type(address.mime_type())),
        Ok(None) => Err(unknown()),
        Err(Failure::Contract(error))
            if matches!(error.kind, ErrorKind::NotFound | ErrorKind::InvalidInput) =>
        {
            Err(unknown())
        }
        Err(failure) => Err(fault(failure)),
    }
}

/// The policy, and what limits the engine.
#[derive(Serialize)]
struct Allowed<'a> {
    #[serde(flatten)]
    policy: &'a Policy,
    max_active_vms: u32,
}

fn json(payload: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(payload).map_err(|error| {
        Failure::Contract(Error::internal("a resource cannot be written as JSON").caused_by(error))
    })
}

/// Why there is no answer, as the protocol's error.
pub(crate) fn fault(failure: Failure) -> ErrorData {
    match failure {
        Failure::Contract(error) if error.kind != ErrorKind::InvalidInput => {
            ErrorData::internal_error(error.in_full(Reader::Model), None)
        }
        Failure::Contract(error) => ErrorData::invalid_params(error.in_full(Reader::Model), None),
        Failure::Arguments(_) | Failure::NotAllowed(_) => {
            ErrorData::invalid_params(failure.to_string(), None)
        }
    }
}

/// A client's text, fit for a message.
fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let addresses = [
            Address::Policy,
            Address::Environment("debian:12".to_owned()),
            Address::Task("9775b3af1eeb".to_owned()),
            Address::Journal("9775b3af1eeb".to_owned()),
            Address::CommandOutput { task: "9775b3af1eeb".to_owned(), sequence: 7, stream: "stderr" },
            Address::VmOutput { vm: "de259a89b184".to_owned(), stream: "stdout" },
        ];
        for address in addresses {
            assert_eq!(Address::parse(&address.to_string()), Some(address));
        }
        for other in
            ["", "pyro://", "http://tasks/x", "pyro://tasks/x/commands/one/stdout", "pyro://vms/x/core"]
        {
            assert_eq!(Address::parse(other), None, "{other}");
        }
    }
}
