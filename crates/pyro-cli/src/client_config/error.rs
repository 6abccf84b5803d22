//! Why a client's settings were not changed.

use std::error::Error;

use crate::config::ConfigError;

/// The error of a parser or an editor.
pub(super) type Problem = Box<dyn Error + Send + Sync>;

/// Why a client's settings were not changed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct InstallError {
    message: String,
    source: Option<Problem>,
    pub(crate) hint: Option<String>,
}

impl InstallError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None, hint: None }
    }

    pub(super) fn caused_by(mut self, source: impl Into<Problem>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ConfigError> for InstallError {
    fn from(error: ConfigError) -> Self {
        Self { message: error.to_string(), source: None, hint: error.hint }
    }
}
