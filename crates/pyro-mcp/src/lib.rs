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
mod identity;
mod journal;
mod outputs;
mod policy;
mod progress;
mod prompts;
mod resources;
mod result;
mod schema;
mod server;
mod shells;
mod stdio;
mod toolbox;
mod tools;

pub use arguments::ArgumentError;
pub use failure::Failure;
pub use http::{AccessError, HTTP_PATH, HttpAccess, Tokens, TokensError};
pub use policy::{Policy, Profile};
pub use server::{ServeError, Server};
pub use toolbox::{ToolInfo, Toolbox};

/// Entry points for the fuzz targets, present only in their builds.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use serde_json::Value;

    use crate::address::Address;
    use crate::arguments::Arguments;
    use crate::policy::Policy;
    use crate::tools::Tool;

    /// Reads a client's arguments as those of each tool, under different limits.
    pub fn arguments(arguments: &serde_json::Map<String, Value>) {
        let limited = Policy { max_mem_mib: Some(512), max_ttl_seconds: Some(60), ..Policy::default() };
        for policy in [Policy::default(), limited] {
            for tool in Tool::ALL {
                if let Ok(given) = policy.allowed_arguments(tool, Arguments(arguments.clone())) {
                    let _ = given.checked(tool.arguments());
                }
            }
        }
    }

    /// Reads the address of a resource.
    ///
    /// # Panics
    /// If an address changes when it is written and read again.
    pub fn address(text: &str) {
        if let Some(address) = Address::parse(text) {
            assert_eq!(Address::parse(&address.to_string()), Some(address));
        }
    }
}
