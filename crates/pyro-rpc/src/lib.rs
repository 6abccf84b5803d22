//! The contract as a JSON-RPC 2.0 server for one program, which starts it and talks to it through two pipes.
//!
//! ```text
//! client ──lines──► Session ──► methods ──► the contract
//!    ▲                 │           │
//!    └── events, ◄─────┴─ Teller ◄─┘
//!        answers          (window)
//! ```
//!
//! Methods are the operations of the contract (`pyro-api`): both the dispatch and the OpenRPC document come from its table.
//! Results are the contract's payloads. A command that fails is a result;
//! only pyro's own failure is an error.

mod document;
mod fault;
mod handshake;
mod limits;
mod lines;
mod message;
mod methods;
mod note;
mod params;
mod session;
mod teller;
mod under_way;

pub use document::document;
pub use session::Server;
