//! Why a call has no payload.

use pyro_api::{Error, ErrorKind, Reader};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::ArgumentError;

/// Why a call of a tool has no payload.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments are wrong.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// The operator does not allow it; one sentence.
    #[error("{0}")]
    NotAllowed(String),
    /// There is no such tool.
    #[error("unknown tool: {}", .0.escape_debug())]
    UnknownTool(String),
    /// The operation failed.
    #[error(transparent)]
    Contract(#[from] Error),
}

impl Failure {
    /// The kind of failure, as a word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Arguments(_) | Self::UnknownTool(_) => ErrorKind::InvalidInput.as_str(),
            Self::NotAllowed(_) => "not_allowed",
            Self::Contract(error) => error.kind.as_str(),
        }
    }

    /// What happened, with its causes, in one line for a model.
    pub fn message(&self) -> String {
        match self {
            Self::Arguments(error) => error.to_string(),
            Self::NotAllowed(sentence) => sentence.clone(),
            Self::UnknownTool(_) => self.to_string(),
            Self::Contract(error) => error.in_full(),
        }
    }

    /// What a model can do about it, one entry each.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Arguments(_) | Self::UnknownTool(_) => Vec::new(),
            Self::NotAllowed(_) => {
                vec!["the operator of this server set this limit; no call can change it".to_owned()]
            }
            Self::Contract(error) => error.hints_for(Reader::Model),
        }
    }
}

/// The JSON form of a result.
pub(crate) fn payload(payload: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(payload).map_err(|error| {
        Failure::Contract(Error::internal("the result cannot be written as JSON").caused_by(error))
    })
}
