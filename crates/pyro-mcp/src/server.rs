//! The MCP server: its capabilities, and how calls come in and results go out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pyro_api::text::printable_line;
use pyro_api::{CallContext, Caller, Contract, Error};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, GetPromptRequestParams,
    GetPromptResponse, Implementation, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
    ReadResourceResult, ServerCapabilities, ServerConfig, Tool as ToolDescription,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{LocalPoolHandle, TaskTracker};

use crate::arguments::Arguments;
use crate::call::Call;
use crate::failure::Failure;
use crate::guard::{Gate, Guard};
use crate::outputs::Outputs;
use crate::policy::Policy;
use crate::stdio::Stdio;
use crate::tools::{TASK_ID, Tool};
use crate::{identity, progress, prompts, resources, result};

/// How long calls in flight may clean up after the client has gone.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);

/// How long calls in flight may go on after the client's last message, so that a client that sends some messages and ends gets
/// the answers that need no more time.
const LAST_ANSWERS_LIMIT: Duration = Duration::from_secs(1);

/// Number of resources that are read at once: one can have 16 MiB of output. A client can cancel its requests without an end, so a
/// limit of those in flight is not enough.
const READS_AT_ONCE: usize = 4;

/// Instructions for the model about the tools that the policy offers.
fn instructions(policy: &Policy) -> String {
    let mut text = "Disposable Linux virtual machines.".to_owned();
    let mut add = |sentences: &str| {
        text.push(' ');
        text.push_str(sentences);
    };
    if policy.read_only {
        add("This server is read-only: commands cannot be run, and nothing can be changed.");
        return text;
    }
    add("For a single command use vm_run.");
    if policy.has_tasks() {
        add(
            "For work that takes several commands, or files of earlier commands, create a task with task_create, run \
             commands in its /workspace with task_exec, and remove it with task_delete when the work is done.",
        );
    }
    add("A command that fails is a normal result: check exit_code and stderr.");
    add(match policy.no_network {
        true => "Machines have no network.",
        false => "Machines have no network unless `network` is set.",
    });
    add("Long output is cut in the middle; the links in the result lead to the whole output.");
    text
}

/// The engine as an MCP server. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Server {
    gate: Gate,
    /// The caller for clients that have neither a token nor a session.
    caller: Caller,
    outputs: Arc<Outputs>,
    reads: Arc<Semaphore>,
    /// Cancelled when the server ends.
    closing: CancellationToken,
    calls: TaskTracker,
    /// Threads that perform operations: the futures of the contract stay on the thread on which they begin.
    workers: LocalPoolHandle,
}

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client did not initialize the connection as the protocol requires.
    #[error(transparent)]
    Initialize(#[from] Box<rmcp::service::ServerInitializeError>),
    /// Serving was lost.
    #[error(transparent)]
    Lost(#[from] tokio::task::JoinError),
}

impl Server {
    /// A server for what `contract` can do, as far as the policy allows it. It acts on behalf of `caller`; over HTTP, clients
    /// with a token or a session have names of their own and find what `caller` could find.
    pub fn new(contract: impl Contract + 'static, policy: Policy, caller: Caller) -> Self {
        Self {
            gate: Gate::new(Arc::new(contract), policy),
            caller,
            outputs: Arc::default(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            closing: CancellationToken::new(),
            calls: TaskTracker::new(),
            workers: LocalPoolHandle::new(1),
        }
    }

    /// Serves one client on this process's standard input and output until the input ends or `stop` is done. Calls
    /// in flight are then cancelled, and their VMs are removed before this returns; tasks stay.
    ///
    /// # Errors
    /// The client does not speak the protocol.
    pub async fn serve_stdio(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        self.begin();
        let server = self.clone();
        let (input, output) = rmcp::transport::io::stdio_pipes();
        let stdio = Stdio::new(input, output);
        let ended = stdio.ended();
        let cancel_calls = async {
            ended.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS_LIMIT).await;
            server.closing.cancel();
            std::future::pending::<Infallible>().await
        };
        let serve = async {
            match self.serve(stdio).await {
                Ok(running) => Ok(running.waiting().await.map(drop)?),
                // A client may disconnect before its first message.
                Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => Ok(()),
                Err(error) => Err(Box::new(error).into()),
            }
        };
        let served = tokio::select! {
            served = serve => served,
            () = stop => Ok(()),
            never = cancel_calls => match never {},
        };
        server.end_calls().await;
        served
    }

    /// Starts what runs next to the calls: the pool of spare VMs, if this server runs single commands.
    pub(crate) fn begin(&self) {
        if !self.policy().offers(Tool::VmRun) {
            return;
        }
        let (server, in_flight) = (self.clone(), self.calls.token());
        drop(self.workers.spawn_pinned(move || async move {
            let _in_flight = in_flight;
            server.gate.keep_spares(server.policy().default_spec(), &server.closing).await;
        }));
    }

    /// Cancels calls in flight and waits until they have cleaned up.
    pub(crate) async fn end_calls(&self) {
        self.closing.cancel();
        self.calls.close();
        let _ = tokio::time::timeout(CLEANUP_LIMIT, self.calls.wait()).await;
    }

    fn policy(&self) -> &Policy {
        self.gate.policy()
    }

    /// Reads something on a thread that performs operations.
    async fn read<T: Send + 'static>(
        &self,
        context: &RequestContext<RoleServer>,
        read: impl AsyncFnOnce(Guard, Arc<Outputs>) -> Result<T, ErrorData> + Send + 'static,
    ) -> Result<T, ErrorData> {
        let (guard, outputs) = (self.guard(context), Arc::clone(&self.outputs));
        let read = self.workers.spawn_pinned(move || read(guard, outputs));
        read.await
            .unwrap_or_else(|lost| Err(ErrorData::internal_error(format!("the call was lost: {lost}"), None)))
    }

    fn describe(&self, tool: Tool) -> ToolDescription {
        describe(self.policy(), tool, self.gate.max_active_vms())
    }

    /// The contract for the client that sent a request.
    fn guard(&self, context: &RequestContext<RoleServer>) -> Guard {
        self.gate.guard(identity::caller(&self.caller, &context.extensions))
    }
}

/// A tool as clients see it.
pub(crate) fn describe(policy: &Policy, tool: Tool, max_active_vms: u32) -> ToolDescription {
    let description = policy.description(tool, max_active_vms);
    ToolDescription::new(tool.name(), description, Arc::new(policy.input_schema(tool)))
        .with_raw_output_schema(Arc::new(tool.output_schema()))
        .with_annotations(tool.annotations(policy.closes_machines()))
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_prompts()
            .enable_completions()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("pyro_mcp", env!("CARGO_PKG_VERSION")))
            .with_instructions(instructions(self.policy()))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.policy().tools().map(|tool| self.describe(tool)).collect()))
    }

    fn get_tool(&self, name: &str) -> Option<ToolDescription> {
        Tool::named(name).map(|tool| self.describe(tool))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = Tool::named(&request.name) else {
            return Err({
                let name = printable_line(&request.name, 100);
                ErrorData::invalid_params(format!("Unknown tool: {name}"), None)
            });
        };
        if self.closing.is_cancelled() {
            return Ok(result::failure(&Failure::Contract(Error::cancelled())).into());
        }
        let given = Arguments(request.arguments.unwrap_or_default());
        let task = given.optional_text(TASK_ID.name).ok().flatten();
        let token = context.meta.get_progress_token();
        let guard = self.guard(&context);
        let caller = guard.caller().clone();
        let cancel = self.closing.child_token();
        let in_flight = self.calls.token();
        // A task of its own, so that the clean-up continues if the client disconnects.
        let work = self.workers.spawn_pinned(move || async move {
            let _in_flight = in_flight;
            let (events, listener) = progress::channel(token);
            let sends_events = listener.is_some();
            let call = CallContext {
                events,
                cancel: cancel.clone(),
                caller: guard.caller().clone(),
                ..CallContext::default()
            };
            let call = Call { guard: &guard, context: &call, sends_events };
            let call = progress::during(call.carry_out(tool, given), listener, &context.peer, &context.ct);
            let mut call = std::pin::pin!(call);
            tokio::select! {
                done = &mut call => done,
                () = context.ct.cancelled() => {
                    cancel.cancel();
                    call.await
                }
            }
        });
        match work.await {
            Ok(Ok(payload)) => Ok(result::success(payload, task.as_deref(), &self.outputs, &caller).into()),
            Ok(Err(failure)) => Ok(result::failure(&failure).into()),
            Err(lost) => Err(ErrorData::internal_error(format!("the call was lost: {lost}"), None)),
        }
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let list = async |guard: Guard, outputs: Arc<Outputs>| resources::list(&guard, &outputs).await;
        let resources = self.read(&context, list).await?;
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates(self.policy())))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let read = async move |guard: Guard, outputs: Arc<Outputs>| {
            resources::read(&guard, &outputs, &request.uri).await
        };
        let _permit = tokio::select! {
            biased;
            () = context.ct.cancelled() => return Err(ErrorData::internal_error("the request was cancelled", None)),
            permit = self.reads.acquire() => permit,
        };
        let contents = self.read(&context, read).await?;
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(prompts::list(self.policy())))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        Ok(prompts::get(self.policy(), &request)?.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let complete = async move |guard: Guard, _| {
            prompts::complete(&guard, &request.argument, request.context.as_ref()).await
        };
        let values = self.read(&context, complete).await?;
        Ok(CompleteResult::new(values))
    }
}
