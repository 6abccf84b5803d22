//! The settings files of AI clients, and pyro's entry in them.
//!
//! ```text
//! clients (who keeps what where) ─► plan ─► format (json, toml: text in, text out) ─► file (read, replace)
//! ```
//!
//! The files belong to others. Only our entry is touched, by editors that keep the rest of the text; the result
//! is read again and compared before anything is written.

mod clients;
mod file;
mod format;
mod json;
mod plan;
mod toml;

use std::error::Error;

use crate::config::ConfigError;

pub(crate) use clients::{Client, Scope};
pub(crate) use plan::{Change, Plan};

/// One server as a client's file describes it: fields in the order in which they are written.
pub(crate) type Entry = Vec<(String, serde_json::Value)>;

/// Why a client's settings were left as they are.
#[derive(Debug)]
pub(crate) struct InstallError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    pub(crate) hint: Option<String>,
}

impl InstallError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None, hint: None }
    }

    fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ConfigError> for InstallError {
    fn from(error: ConfigError) -> Self {
        Self { message: error.to_string(), source: None, hint: error.hint }
    }
}

impl std::fmt::Display for InstallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for InstallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
