//! The settings files of AI clients, and pyro's entry in them.
//!
//! ```text
//! clients (who keeps what where) ─► plan ─► format (json, toml: text in, text out) ─► file (read, replace)
//! ```
//!
//! The files belong to others. Only our entry is touched, by editors that keep the rest of the text; the result
//! is read again and compared before anything is written.

mod clients;
mod entry;
mod error;
mod file;
mod format;
mod json;
mod plan;
mod toml;

pub(crate) use clients::{Client, Scope};
pub(crate) use error::InstallError;
pub(crate) use plan::{Change, Plan};
