//! What the protocol's own messages take; the parameters of operations are the contract's.

use pyro_api::InvalidRequest;
use pyro_api::operations::read_part;
use serde::Deserialize;

use crate::fault::{Fault, Problem};
use crate::message::Object;

/// Reads parameters, of which there may be others too.
pub(crate) fn read<'a, P: Deserialize<'a>>(given: &'a Object) -> Result<P, Fault> {
    Ok(read_part(given)?)
}

impl From<InvalidRequest> for Fault {
    fn from(error: InvalidRequest) -> Self {
        let fault = Self::new(Problem::InvalidParams, error.to_string());
        match error {
            InvalidRequest::UnknownParameter { known: [], .. } => fault.hint("it has none"),
            InvalidRequest::UnknownParameter { known, .. } => {
                fault.hint(format!("it has {}", known.join(", ")))
            }
            InvalidRequest::Parameter(_) => fault,
        }
    }
}
