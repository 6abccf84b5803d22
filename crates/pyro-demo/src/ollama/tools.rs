//! The tools that the model gets: some of those of the MCP server, called as a client of it would.
//!
//! Here is only what small models need besides: their usual mistakes are corrected or explained, and they reach no VM that
//! they did not make.

use pyro_api::{CallContext, Contract, Error, ErrorKind, Kind, RunResult};
use pyro_mcp::{Policy, ToolInfo, Toolbox};
use serde_json::{Value, json};

use super::arguments::{self, Arguments, Object};
use super::failure::Failure;

/// The tools that the model is offered, in this order.
const OFFERED: [&str; 6] =
    ["vm_run", "vm_list_environments", "vm_create", "vm_start", "vm_exec", "vm_status"];

/// Maximum length of an output stream that the model receives, in characters: it pays for each of them.
const STREAM_CHARS: usize = 4_000;

const ENVIRONMENT: &str = "environment";
const VM_ID: &str = "vm_id";

/// How a call ended.
#[derive(Debug)]
pub(super) struct Called {
    /// Why it failed, in one line for the transcript.
    pub(super) failure: Option<String>,
    /// What the model receives.
    pub(super) answer: Value,
}

/// The tools at work.
pub(super) struct Tools<'a> {
    toolbox: Toolbox,
    offered: Vec<ToolInfo>,
    descriptions: Vec<Value>,
    context: &'a CallContext,
    /// Ids of the VMs that the model made, in this order. Some are gone.
    created: Vec<String>,
    /// Result of the last command that ran.
    pub(super) last_run: Option<RunResult>,
}

impl<'a> Tools<'a> {
    pub(super) fn new(contract: impl Contract + 'static, context: &'a CallContext) -> Self {
        let toolbox = Toolbox::new(contract, Policy::default(), context.caller.clone());
        let offered: Vec<ToolInfo> = toolbox.tools().filter(|tool| OFFERED.contains(&tool.name)).collect();
        let descriptions = offered.iter().map(describe).collect();
        Self { toolbox, offered, descriptions, context, created: Vec::new(), last_run: None }
    }

    /// The tools in the form in which a model receives them.
    pub(super) fn descriptions(&self) -> &[Value] {
        &self.descriptions
    }

    /// Corrects arguments where it is clear what is meant. Returns the id that replaces a placeholder, if there is one.
    pub(super) fn repair(&self, name: &str, arguments: &mut Object) -> Option<&str> {
        let tool = self.named(name)?;
        if takes(tool, ENVIRONMENT) {
            arguments::name_environment(arguments);
        }
        if !takes(tool, VM_ID) || !arguments::has_placeholder(arguments) {
            return None;
        }
        let id = self.created.last()?;
        arguments.insert(VM_ID.to_owned(), id.as_str().into());
        Some(id)
    }

    /// Calls a tool for the model.
    pub(super) async fn call(&mut self, name: &str, arguments: &Object) -> Called {
        match self.carry_out(name, arguments).await {
            Ok(answer) => Called { failure: None, answer },
            Err(failure) => Called { answer: failure.answer(name, arguments), failure: Some(failure.error) },
        }
    }

    async fn carry_out(&mut self, name: &str, arguments: &Object) -> Result<Value, Failure> {
        let tool = self.named(name).ok_or_else(|| {
            let failure = Failure::unknown_tool(name);
            failure.hint(format!("the tools are: {}", OFFERED.join(", ")))
        })?;
        let given = self.checked(tool, arguments)?;
        if name == "vm_exec" {
            self.start(&given).await?;
        }
        let payload = self.toolbox.call(name, given, self.context).await?;
        match name {
            "vm_run" | "vm_exec" => self.ran(payload),
            "vm_list_environments" => Ok(payload["result"].clone()),
            "vm_create" => {
                self.created.extend(payload[VM_ID].as_str().map(str::to_owned));
                Ok(payload)
            }
            _ => Ok(payload),
        }
    }

    /// The arguments for the tool: all that it has, each of its type. What they say is then checked with everything else
    /// that comes from a model.
    fn checked(&self, tool: &ToolInfo, arguments: &Object) -> Result<Object, Failure> {
        refuse_others(tool, arguments)?;
        let given = Arguments(arguments);
        let mut checked = Object::new();
        for name in required(tool) {
            let text = given.text(name)?;
            if name == VM_ID {
                self.check_own(&text)?;
            }
            checked.insert(name.to_owned(), text.into());
        }
        for (name, property) in
            properties(tool).filter(|(name, _)| !checked.contains_key(*name)).collect::<Vec<_>>()
        {
            // What is turned off is read, as a model may know it from elsewhere, and goes no further.
            if let Some(value) = given.value(name, property)?
                && !is_turned_off(tool, name)
            {
                checked.insert(name.clone(), value);
            }
        }
        Ok(checked)
    }

    /// Starts the VM of a command, unless it is running.
    async fn start(&self, given: &Object) -> Result<(), Failure> {
        let vm: Object = given
            .iter()
            .filter(|(name, _)| *name == VM_ID)
            .map(|(name, id)| (name.clone(), id.clone()))
            .collect();
        let status = self.toolbox.call("vm_status", vm.clone(), self.context).await?;
        if status["state"] != "started" {
            self.toolbox.call("vm_start", vm, self.context).await?;
        }
        Ok(())
    }

    /// The model reaches only VMs that it made. The user's others do not exist for it: one that may run commands on this
    /// host would run the model's.
    fn check_own(&self, id: &str) -> Result<(), Failure> {
        if self.created.iter().any(|own| own == id) {
            return Ok(());
        }
        let unknown = pyro_mcp::Failure::from(Error::not_found(Kind::Vm, id));
        Err(Failure::from(unknown).hint("call vm_create first and use the vm_id from its result".to_owned()))
    }

    fn ran(&mut self, mut payload: Value) -> Result<Value, Failure> {
        if let Some(payload) = payload.as_object_mut() {
            payload.remove("timings");
        }
        self.last_run = Some(serde_json::from_value(payload.clone()).map_err(|error| {
            pyro_mcp::Failure::from(Error::internal("the result of a run cannot be read").caused_by(error))
        })?);
        for stream in ["stdout", "stderr"] {
            if let Some(text) = payload[stream].as_str()
                && let Some((end, _)) = text.char_indices().nth(STREAM_CHARS)
            {
                payload[stream] =
                    format!("{}\n[{} more bytes omitted]", &text[..end], text.len() - end).into();
            }
        }
        Ok(payload)
    }

    /// Removes every VM that the model made and that still exists, even after the demo is cancelled. Returns a line for each
    /// that could not be removed.
    pub(super) async fn remove_created(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for id in self.created.drain(..) {
            let vm = Object::from_iter([(VM_ID.to_owned(), id.as_str().into())]);
            match self.toolbox.call("vm_delete", vm, &CallContext::default()).await {
                Ok(_) => {}
                Err(pyro_mcp::Failure::Contract(error))
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Expired) => {}
                Err(error) => left.push(format!("cannot delete vm {id}: {error}")),
            }
        }
        left
    }

    fn named(&self, name: &str) -> Option<&ToolInfo> {
        self.offered.iter().find(|tool| tool.name == name)
    }
}

fn properties(tool: &ToolInfo) -> impl Iterator<Item = (&String, &Value)> {
    tool.input_schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn required(tool: &ToolInfo) -> impl Iterator<Item = &str> {
    tool.input_schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn takes(tool: &ToolInfo, name: &str) -> bool {
    properties(tool).any(|(known, _)| known == name)
}

/// An argument that the policy turns off. A model is not offered it.
fn is_turned_off(tool: &ToolInfo, name: &str) -> bool {
    tool.turned_off.contains(&name)
}

/// Rejects arguments that the tool does not have, as its schema says.
fn refuse_others(tool: &ToolInfo, arguments: &Object) -> Result<(), Failure> {
    let Some(other) = arguments.keys().find(|name| !takes(tool, name)) else { return Ok(()) };
    let failure = Failure::arguments(format!("{} has no argument '{other}'", tool.name));
    Err(match other.as_str() {
        "profile" if takes(tool, ENVIRONMENT) => {
            failure.hint("use `environment` instead of `profile`".to_owned())
        }
        _ => failure,
    })
}

/// A tool in the form of the chat completions API.
fn describe(tool: &ToolInfo) -> Value {
    let mut parameters = tool.input_schema.clone();
    if let Some(Value::Object(properties)) = parameters.get_mut("properties") {
        properties.retain(|name, _| !is_turned_off(tool, name));
    }
    parameters.insert("additionalProperties".to_owned(), false.into());
    json!({ "type": "function", "function": {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters,
    } })
}
