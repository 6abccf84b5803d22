//! The contract as a JSON-RPC 2.0 server for one program, which starts the server and uses it through two pipes.
//!
//! ```text
//! client ──lines──► Session ──► methods ──► the contract
//!    ▲                 ├── InputSender ──────► (window)
//!    │                 │           │
//!    └── events, ◄─────┴───────────┴── EventSender (window)
//!        responses
//! ```
//!
//! Methods are the operations of the contract (`pyro-api`): both the dispatch and the OpenRPC document come from its table.
//! Results are the contract's payloads. A command that fails is a result; only pyro's own failure is an error.

mod document;
mod event_sender;
mod failure;
mod handshake;
mod in_flight;
mod input_sender;
mod limits;
mod lines;
mod message;
mod methods;
mod notification;
mod params;
mod session;

pub use document::document;
pub use session::Server;
