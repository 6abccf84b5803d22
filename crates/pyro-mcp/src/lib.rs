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
mod progress;
mod result;
mod server;
mod tools;

pub use server::{ServeError, Server};
