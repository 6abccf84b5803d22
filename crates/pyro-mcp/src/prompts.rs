//! Prompts that explain the workflow, and completion of names in prompts and addresses.

use pyro_api::operations::{ListTasks, StatusTask};
use pyro_api::{CallContext, TaskFilter};
use rmcp::ErrorData;
use rmcp::model::{
    ArgumentInfo, CompletionContext, CompletionInfo, GetPromptRequestParams, GetPromptResult, Prompt,
    PromptArgument, PromptMessage, Role,
};

use crate::address::STREAMS;
use crate::guard::Guard;
use crate::policy::Policy;
use crate::resources::{environment_names, protocol_error};
use crate::tools::Tool;

const RUN: &str = "run_in_vm";
const WORK: &str = "work_in_task";

/// The prompts for the tools that the policy offers.
pub(crate) fn list(policy: &Policy) -> Vec<Prompt> {
    let environment = PromptArgument::new("environment")
        .with_description(format!("Environment to use; the default is {}", policy.default_environment()))
        .with_required(false);
    let prompt = |name: &str, description: &str, goal: &str| {
        let goal = PromptArgument::new("goal").with_description(goal).with_required(true);
        Prompt::new(name, Some(description), Some(vec![goal, environment.clone()]))
    };
    let mut prompts = Vec::new();
    if policy.offers(Tool::VmRun) {
        prompts.push(prompt(RUN, "Run one command in a new machine", "What to find out or try"));
    }
    if policy.offers(Tool::TaskExec) {
        prompts.push(prompt(WORK, "Work in a machine that stays until the goal is reached", "The goal"));
    }
    prompts
}

/// A prompt with its arguments filled in.
pub(crate) fn get(policy: &Policy, request: &GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    let argument = |name: &str| {
        let value = request.arguments.as_ref().and_then(|arguments| arguments.get(name));
        value
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .filter(|text| !text.is_empty())
    };
    if !list(policy).iter().any(|prompt| prompt.name == request.name) {
        return Err(ErrorData::invalid_params("unknown prompt", None));
    }
    let goal = argument("goal").ok_or_else(|| ErrorData::invalid_params("`goal` is required", None))?;
    let environment = argument("environment").unwrap_or_else(|| policy.default_environment().to_owned());
    let other = match policy.no_network {
        true => "another environment",
        false => "another environment, or `network` and apt-get",
    };
    let text = match request.name.as_str() {
        RUN => format!(
            "{goal}\n\n\
             Use the tool vm_run with the environment {environment}. Each call gets a new machine, so put everything that \
             belongs together into one command. Check exit_code and stderr: a command that fails is a normal result. If \
             something is missing in the machine, try {other}. Base your answer on the output of the commands."
        ),
        _ => format!(
            "{goal}\n\n\
             1. Create a task with task_create from the environment {environment} and remember its task_id.\n\
             2. Write files to its /workspace with task_write_file, run commands with task_exec, and check exit_code and \
             stderr after each.\n\
             3. Run commands that take more than a minute with `detach`, and call task_wait with the sequence until outcome \
             is not `running`.\n\
             4. If the work takes longer than the task's lifetime, call task_extend; if the task has been stopped, start it \
             again with task_start, which keeps its files.\n\
             5. When the goal is reached, report what was done and the output of the commands, and remove the task with \
             task_delete, unless its files are still needed."
        ),
    };
    Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]))
}

/// Possible values of an argument of a prompt or of a name in an address.
pub(crate) async fn complete(
    guard: &Guard,
    argument: &ArgumentInfo,
    context: Option<&CompletionContext>,
) -> Result<CompletionInfo, ErrorData> {
    let (policy, call) = (guard.policy(), &CallContext::default());
    let known = match argument.name.as_str() {
        "environment" => environment_names(guard, call).await?,
        "task_id" if policy.has_tasks() => {
            let tasks = guard
                .perform(ListTasks { filter: TaskFilter::default() }, call)
                .await
                .map_err(protocol_error)?
                .tasks;
            tasks.into_iter().map(|task| task.task_id.to_string()).collect()
        }
        "sequence" if policy.has_tasks() => {
            let task = context.and_then(|context| context.arguments.as_ref()?.get("task_id"));
            match task {
                // Commands are numbered from 1 without gaps; the latest come first.
                Some(task) => {
                    let request = StatusTask { task: task.as_str().into() };
                    let count = guard.perform(request, call).await.map_err(protocol_error)?.command_count;
                    (1..=count).rev().map(|sequence| sequence.to_string()).collect()
                }
                None => Vec::new(),
            }
        }
        "stream" => STREAMS.map(str::to_owned).into(),
        _ => Vec::new(),
    };
    let fitting: Vec<String> = known.into_iter().filter(|name| name.starts_with(&argument.value)).collect();
    let total = u32::try_from(fitting.len()).unwrap_or(u32::MAX);
    let shown: Vec<String> = fitting.into_iter().take(CompletionInfo::MAX_VALUES).collect();
    let has_more = (shown.len() as u32) < total;
    CompletionInfo::with_pagination(shown, Some(total), has_more)
        .map_err(|text| ErrorData::internal_error(text, None))
}
