//! The executable as its users see it: run in an empty home, its whole output compared.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod completions;
mod demo;
mod doctor;
mod env;
mod harness;
mod help;
mod http_client;
mod json_lines;
mod man;
mod mcp;
mod mcp_http;
mod mcp_install;
mod model;
mod policy;
mod rpc;
mod rpc_client;
mod run;
mod run_on_host;
mod settings;
mod task_on_host;
mod usage;
