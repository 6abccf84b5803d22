//! Why a call has no payload.

use pyro_api::Error;
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
    /// The operation failed.
    #[error(transparent)]
    Contract(#[from] Error),
}

/// The JSON form of a result.
pub(crate) fn payload(payload: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(payload).map_err(|error| {
        Failure::Contract(Error::internal("the result cannot be written as JSON").caused_by(error))
    })
}
