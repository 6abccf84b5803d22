//! The engine as an MCP server.
//!
//! ```text
//! client ──JSON-RPC──► rmcp ──► Server::call_tool ──► Tool ──► pyro-engine
//!    ▲                              │ arguments          │
//!    └── progress, result ◄─────────┴────────────────────┘
//! ```
//!
//! Tools are a table ([`tools`]): what a tool is called, what it takes, what it gives back and what it does stand side by
//! side, and the schemas that clients see are made from that. Results are the engine's payloads. A command that fails is a
//! result; only pyro's own failure is an error.

mod arguments;
mod call;
mod http;
mod journal;
mod outputs;
mod policy;
mod progress;
mod prompts;
mod resources;
mod result;
mod server;
mod tools;
mod warm;

pub use http::{HTTP_PATH, HttpAccess};
pub use policy::{Policy, Profile};
pub use server::{ServeError, Server};
