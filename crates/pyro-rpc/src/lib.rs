//! The engine as a JSON-RPC 2.0 server for one program, which starts it and talks to it through two pipes.
//!
//! ```text
//! client ──lines──► Session ──► methods ──► pyro-engine
//!    ▲                 │           │
//!    └── events, ◄─────┴─ Teller ◄─┘
//!        answers          (window)
//! ```
//!
//! Methods are a table ([`methods`]): the name, the parameters, the result and what is done stand side by side, and both the
//! dispatch and the OpenRPC document come from that. Results are the engine's payloads. A command that fails is a result;
//! only pyro's own failure is an error.

mod document;
mod event;
mod fault;
mod handshake;
mod journal;
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
