//! The protocol's side: what the server says of itself, and how calls come in and results go out.

use std::sync::Arc;
use std::time::Duration;

use pyro_engine::Engine;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool as ToolDescription,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{LocalPoolHandle, TaskTracker};

use crate::arguments::{self, Arguments};
use crate::tools::{Failure, Tool};
use crate::{progress, result};

/// How long calls that are under way may clean up when the client has gone.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);

/// What a model should know before it uses the tools.
const INSTRUCTIONS: &str = "\
Disposable Linux virtual machines. For a single command use vm_run. For work that takes several commands create a task \
with task_create, run commands in its /workspace with task_exec, and remove it with task_delete when the work is done. \
A command's failure is a normal result: look at exit_code and stderr. Machines have no network unless `network` is set.";

/// The engine as an MCP server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    engine: Engine,
    /// Cancelled when the client has gone.
    closing: CancellationToken,
    calls: TaskTracker,
    /// Where the engine works: its futures stay on the thread on which they begin.
    workers: LocalPoolHandle,
}

/// Why serving ended early.
#[derive(Debug)]
pub struct ServeError(String);

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

impl Server {
    /// A server for what this engine can do.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            closing: CancellationToken::new(),
            calls: TaskTracker::new(),
            workers: LocalPoolHandle::new(1),
        }
    }

    /// Serves one client on this process's standard input and output until the input ends or `stop` is done. Calls that
    /// are under way then are cancelled, and what they hold is freed before this returns; tasks stay.
    ///
    /// # Errors
    /// The client does not speak the protocol.
    pub async fn serve_stdio(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let (closing, calls) = (self.closing.clone(), self.calls.clone());
        let serve = async {
            match self.serve(rmcp::transport::io::stdio_pipes()).await {
                Ok(running) => {
                    running.waiting().await.map(drop).map_err(|error| ServeError(error.to_string()))
                }
                // A client that goes before it has said anything is no error.
                Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => Ok(()),
                Err(error) => Err(ServeError(error.to_string())),
            }
        };
        let served = tokio::select! {
            served = serve => served,
            () = stop => Ok(()),
        };
        closing.cancel();
        calls.close();
        let _ = tokio::time::timeout(CLEANUP_LIMIT, calls.wait()).await;
        served
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("pyro_mcp", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(Tool::ALL.map(describe).into()))
    }

    fn get_tool(&self, name: &str) -> Option<ToolDescription> {
        Tool::named(name).map(describe)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = Tool::named(&request.name) else {
            return Err(ErrorData::invalid_params(format!("Unknown tool: {}", request.name), None));
        };
        let given = Arguments(request.arguments.unwrap_or_default());
        let token = context.meta.get_progress_token();
        let engine = self.engine.clone();
        let cancel = self.closing.child_token();
        let under_way = self.calls.token();
        // On its own, so that a client that goes away does not take the clean-up with it.
        let work = self.workers.spawn_pinned(move || async move {
            let _under_way = under_way;
            let (events, listener) = progress::channel(token);
            let call = tool.call(&engine, &given, &events, &cancel);
            let call = progress::during(call, listener, &context.peer);
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
            Ok(done) => Ok(answer(done).into()),
            Err(lost) => Err(ErrorData::internal_error(format!("the call was lost: {lost}"), None)),
        }
    }
}

fn answer(done: Result<CallToolResult, Failure>) -> CallToolResult {
    match done {
        Ok(result) => result,
        Err(Failure::Arguments(sentence)) => result::refusal(&sentence),
        Err(Failure::Engine(error)) => result::engine_failure(&error),
    }
}

fn describe(tool: Tool) -> ToolDescription {
    let input = Arc::new(arguments::schema(tool.arguments()));
    ToolDescription::new(tool.name(), tool.description(), input)
        .with_raw_output_schema(Arc::new(tool.output_schema()))
        .with_annotations(tool.annotations())
}
