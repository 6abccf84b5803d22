//! What tests of several crates share: a [`Sandbox`] for the program under test, clients for each of its protocols, a
//! model that plays by a script, the commands of the documentation, and checks on the tests themselves. Only ever a
//! dev-dependency.
//!
//! Everything here panics where a test would fail.
#![expect(clippy::unwrap_used, reason = "all of it runs inside tests, which fail by panicking")]

mod calls;
pub mod http;
mod json_lines;
pub mod leftovers;
mod mcp;
pub mod model;
pub mod pages;
mod process;
mod pty;
mod rpc;
mod running;
mod sandbox;
mod seed;
mod test_files;
mod waiting;

pub use json_lines::Session;
pub use mcp::McpClient;
pub use process::{Process, kill, mentioning};
pub use pty::pty;
pub use rpc::RpcClient;
pub use running::{Ended, Running, Stream};
pub use sandbox::Sandbox;
pub use seed::Seed;
pub use test_files::assert_none_is_forgotten;
pub use waiting::{LONG, reached_within, scaled, wait_until};
