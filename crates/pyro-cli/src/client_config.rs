//! The settings files of AI clients, and pyro's entry in them.
//!
//! ```text
//! clients (files and formats) ─► plan ─► format (json, toml: text in, text out) ─► file (read, replace)
//! ```
//!
//! The files belong to other programs. Only pyro's entry is changed, by editors that keep the rest of the text; the result
//! is parsed and compared before anything is written.

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
