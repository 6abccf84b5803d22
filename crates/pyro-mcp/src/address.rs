//! Addresses of resources.

use std::fmt;

use rmcp::model::Resource;

/// Keys of the streams that a command writes.
pub(crate) const STREAMS: [&str; 2] = ["stdout", "stderr"];
pub(crate) const SCHEME: &str = "pyro://";
const JSON: &str = "application/json";

/// Address of a resource.
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
    /// Parses an address. The engine checks the names in it.
    pub(crate) fn parse(uri: &str) -> Option<Self> {
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

    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Policy => "Limits set by the operator of this server",
            Self::Environment(_) => "Contents of an environment, and whether it is installed",
            Self::Task(_) => "State, settings, and latest command of a task",
            Self::Journal(_) => "Commands of a task with their output",
            Self::CommandOutput { .. } => "Output of a command of a task",
            Self::VmOutput { .. } => "Output of the command of a removed VM; kept for a limited time",
        }
    }

    /// The resource as clients see it.
    pub(crate) fn resource(&self) -> Resource {
        Resource::new(self.to_string(), self.name())
            .with_description(self.description())
            .with_mime_type(self.mime_type())
    }

    pub(crate) fn mime_type(&self) -> &'static str {
        match self {
            Self::CommandOutput { .. } | Self::VmOutput { .. } => "text/plain",
            _ => JSON,
        }
    }
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
