//! The contract as an MCP server.
//!
//! ```text
//! client ──JSON-RPC──► rmcp ──► Server::call_tool ──► Tool ──► Guard ──► the contract
//!    ▲                              │ arguments          │
//!    └── progress, result ◄─────────┴────────────────────┘
//! ```
//!
//! Tools are a table ([`tools`]): the name, arguments, result, and operation of each tool, from which the schemas are made.
//! The policy is checked in one place ([`guard`]), by the class of access that the contract gives each operation and by what
//! a request asks for. Results are the contract's payloads. A command that fails is a result; only pyro's own failure is an
//! error.

mod address;
mod arguments;
mod call;
mod failure;
mod guard;
mod http;
mod journal;
mod outputs;
mod policy;
mod progress;
mod prompts;
mod resources;
mod result;
mod schema;
mod server;
mod toolbox;
mod tools;

pub use arguments::ArgumentError;
pub use failure::Failure;
pub use http::{AccessError, HTTP_PATH, HttpAccess};
pub use policy::{Policy, Profile};
pub use server::{ServeError, Server};
pub use toolbox::{ToolInfo, Toolbox};
