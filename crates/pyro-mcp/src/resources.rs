//! Resources: environments, tasks, the policy, and the output of commands.

use pyro_api::operations::{InspectEnvironment, ListTasks, LogsTask, StatusTask};
use pyro_api::text::{printable, printable_line};
use pyro_api::{CallContext, Entries, EnvironmentName, Error, ErrorKind, OwnerName, TaskFilter};
use rmcp::ErrorData;
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};
use serde::Serialize;

use crate::address::{Address, SCHEME};
use crate::failure::Failure;
use crate::guard::Guard;
use crate::journal;
use crate::outputs::Outputs;
use crate::policy::Policy;
use crate::tools::DEFAULT_ENTRIES;

/// Templates of addresses, for clients that fill in names.
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

/// Lists all resources.
pub(crate) async fn list(guard: &Guard, outputs: &Outputs) -> Result<Vec<Resource>, ErrorData> {
    let call = &CallContext::default();
    let mut addresses = vec![Address::Policy];
    for name in environment_names(guard, call).await? {
        addresses.push(Address::Environment(name));
    }
    if guard.policy().has_tasks() {
        for task in guard
            .perform(ListTasks { filter: TaskFilter::default() }, call)
            .await
            .map_err(protocol_error)?
            .tasks
        {
            let id = task.task_id.to_string();
            addresses.extend([Address::Task(id.clone()), Address::Journal(id)]);
        }
    }
    addresses.extend(outputs.uris(guard.caller()).iter().filter_map(|uri| Address::parse(uri)));
    Ok(addresses.iter().map(Address::resource).collect())
}

/// Names of the environments that the policy allows.
pub(crate) async fn environment_names(guard: &Guard, call: &CallContext) -> Result<Vec<String>, ErrorData> {
    let environments = guard.environments(call).await.map_err(protocol_error)?;
    Ok(environments.into_iter().map(|environment| environment.name).collect())
}

/// Reads a resource.
pub(crate) async fn read(guard: &Guard, outputs: &Outputs, uri: &str) -> Result<ResourceContents, ErrorData> {
    let (policy, call) = (guard.policy(), &CallContext::default());
    let unknown = || {
        let data = serde_json::json!({ "uri": shown(uri) });
        ErrorData::resource_not_found(format!("resource not found: {}", shown(uri)), Some(data))
    };
    let address = Address::parse(uri).ok_or_else(unknown)?;
    let of_task = matches!(address, Address::Task(_) | Address::Journal(_) | Address::CommandOutput { .. });
    if of_task && !policy.has_tasks() {
        return Err(unknown());
    }
    let read = async {
        let text = match &address {
            Address::Policy => json(&Allowed::to(guard))?,
            Address::Environment(name) => {
                let which = EnvironmentName { environment: name.clone() };
                json(&guard.perform(InspectEnvironment { which }, call).await?)?
            }
            Address::Task(task) => {
                json(&guard.perform(StatusTask { task: task.as_str().into() }, call).await?)?
            }
            Address::Journal(task) => json(&journal::latest(guard, task, DEFAULT_ENTRIES, call).await?)?,
            Address::CommandOutput { task, sequence, stream } => {
                let one = Entries { sequence: Some(*sequence), after: 0 };
                let request = LogsTask { task: task.as_str().into(), entries: one };
                let entries = guard.perform(request, call).await?.logs.entries;
                let Some(entry) = entries.into_iter().next() else { return Ok(None) };
                let output = if *stream == "stdout" { entry.stdout } else { entry.stderr };
                output.to_text().into_owned()
            }
            Address::VmOutput { .. } => match outputs.read(guard.caller(), uri) {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        Ok::<_, Failure>(Some(text))
    };
    match read.await {
        Ok(Some(text)) => Ok(ResourceContents::text(text, uri).with_mime_type(address.mime_type())),
        Ok(None) => Err(unknown()),
        // An environment that the policy does not allow is not shown.
        Err(Failure::NotAllowed(_)) if matches!(address, Address::Environment(_)) => Err(unknown()),
        Err(Failure::Contract(error))
            if matches!(error.kind, ErrorKind::NotFound | ErrorKind::InvalidInput) =>
        {
            Err(unknown())
        }
        Err(failure) => Err(protocol_error(failure)),
    }
}

/// The policy, the engine's limit, and what the client finds.
#[derive(Serialize)]
struct Allowed<'a> {
    #[serde(flatten)]
    policy: &'a Policy,
    max_active_vms: u32,
    /// The owner of what the client creates.
    owner: Option<&'a str>,
    /// Which VMs and tasks the client finds.
    tasks: &'static str,
}

impl<'a> Allowed<'a> {
    fn to(guard: &'a Guard) -> Self {
        Self {
            policy: guard.policy(),
            max_active_vms: guard.max_active_vms(),
            owner: guard.caller().owner().map(OwnerName::as_str),
            tasks: if guard.caller().finds_all() { "all" } else { "own" },
        }
    }
}

fn json(payload: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(payload).map_err(|error| {
        Failure::Contract(Error::internal("a resource cannot be written as JSON").caused_by(error))
    })
}

/// Converts a failure to an error of the protocol.
pub(crate) fn protocol_error(failure: Failure) -> ErrorData {
    match failure {
        Failure::Contract(error) => {
            let message = printable(&error.in_full()).into_owned();
            match error.kind {
                ErrorKind::InvalidInput => ErrorData::invalid_params(message, None),
                _ => ErrorData::internal_error(message, None),
            }
        }
        Failure::Arguments(_) | Failure::NotAllowed(_) | Failure::UnknownTool(_) => {
            ErrorData::invalid_params(printable(&failure.to_string()).into_owned(), None)
        }
    }
}

/// A client's text, escaped and cut for a message.
fn shown(text: &str) -> String {
    printable_line(text, 100)
}
