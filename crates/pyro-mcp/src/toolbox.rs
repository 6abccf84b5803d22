//! The tools without the protocol, for a program that calls them itself.

use std::sync::Arc;

use pyro_api::{CallContext, Caller, Contract};
use serde_json::Value;

use crate::arguments::{Arguments, Object};
use crate::call::Call;
use crate::failure::Failure;
use crate::guard::{Gate, Guard};
use crate::policy::Policy;
use crate::tools::Tool;

/// The tools that a policy offers. Calls are checked as those of a client of the server are.
#[derive(Clone, Debug)]
pub struct Toolbox {
    guard: Guard,
}

/// A tool as a model sees it.
#[derive(Clone, Debug)]
pub struct ToolInfo {
    /// Its name, such as `vm_run`.
    pub name: &'static str,
    /// What it does, and its limits.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: Object,
    /// Arguments that the policy turns off, so that a model need not see them.
    pub turned_off: Vec<&'static str>,
}

impl Toolbox {
    /// The tools of `contract` that `policy` offers, on behalf of `caller`.
    pub fn new(contract: impl Contract + 'static, policy: Policy, caller: Caller) -> Self {
        Self { guard: Gate::new(Arc::new(contract), policy).guard(caller) }
    }

    /// The tools, in the order in which clients see them.
    pub fn tools(&self) -> impl Iterator<Item = ToolInfo> {
        let (policy, max_active_vms) = (self.guard.policy(), self.guard.max_active_vms());
        policy.tools().map(move |tool| ToolInfo {
            name: tool.name(),
            description: policy.description(tool, max_active_vms),
            input_schema: policy.input_schema(tool),
            turned_off: policy.turned_off(tool).collect(),
        })
    }

    /// Calls a tool and returns its whole payload, without the cuts that the server makes. The output of a command is in
    /// the payload, not among the events.
    ///
    /// # Errors
    /// There is no such tool, the policy does not offer it, the arguments are wrong or not allowed, or the operation failed.
    pub async fn call(&self, name: &str, arguments: Object, context: &CallContext) -> Result<Value, Failure> {
        let tool = Tool::named(name).ok_or_else(|| Failure::UnknownTool(name.to_owned()))?;
        let call = Call { guard: &self.guard, context, sends_events: false };
        call.carry_out(tool, Arguments(arguments)).await
    }
}
