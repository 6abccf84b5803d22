//! Parameters of the protocol's own messages; those of operations are the contract's.

use pyro_api::InvalidRequest;
use pyro_api::operations::read_part;
use serde::Deserialize;

use crate::failure::{Failure, Problem};
use crate::message::Object;

/// Reads parameters. Unknown ones are ignored.
pub(crate) fn read<'a, P: Deserialize<'a>>(given: &'a Object) -> Result<P, Failure> {
    Ok(read_part(given)?)
}

impl From<InvalidRequest> for Failure {
    fn from(error: InvalidRequest) -> Self {
        let failure = Self::new(Problem::InvalidParams, error.to_string());
        match error {
            InvalidRequest::UnknownParameter { known: [], .. } => failure.hint("it has no parameters"),
            InvalidRequest::UnknownParameter { known, .. } => {
                failure.hint(format!("its parameters are {}", known.join(", ")))
            }
            InvalidRequest::Parameter(_) => failure,
        }
    }
}
