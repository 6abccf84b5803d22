//! The methods: the operations of the contract, and `rpc.discover`.

use std::sync::Arc;

use pyro_api::{CallContext, Contract, Error, InvalidRequest, Operation};
use serde::Serialize;

use crate::document::{self, DISCOVER};
use crate::failure::{Failure, Problem};
use crate::message::{self, Id, Object};

/// One call.
pub(crate) struct Call {
    pub(crate) contract: Arc<dyn Contract>,
    pub(crate) context: CallContext,
}

macro_rules! dispatch {
    ($($Request:ident)+) => {
        /// Performs a call and returns the line of its result.
        pub(crate) async fn carry_out(call: &Call, method: &str, id: &Id, given: &Object) -> Result<Vec<u8>, Failure> {
            match method {
                $(name if name == pyro_api::operations::$Request::INFO.name => {
                    perform::<pyro_api::operations::$Request>(call, id, given).await
                })+
                DISCOVER => match given.keys().next() {
                    Some(name) => {
                        let name = name.escape_debug().to_string();
                        Err(InvalidRequest::UnknownParameter { operation: DISCOVER, name, known: &[] }.into())
                    }
                    None => answer(id, document::document().clone()).await,
                },
                _ => {
                    let message = format!("unknown method: `{}`", method.escape_debug());
                    Err(Failure::new(Problem::UnknownMethod, message).hint("rpc.discover lists the methods"))
                }
            }
        }
    };
}

pyro_api::for_each_operation!(dispatch);

async fn perform<O: Operation>(call: &Call, id: &Id, given: &Object) -> Result<Vec<u8>, Failure> {
    let request = O::read(given)?;
    answer(id, request.perform(&*call.contract, &call.context).await?).await
}

/// The line with a result. A long one is serialized on another thread, so that other calls go on.
async fn answer<T: Serialize + Send + 'static>(id: &Id, result: T) -> Result<Vec<u8>, Failure> {
    if let Some(line) = message::short_success(id, &result) {
        return Ok(line);
    }
    let id = id.clone();
    let written = tokio::task::spawn_blocking(move || message::success(&id, &result)).await;
    written.unwrap_or_else(|lost| Err(Error::internal("cannot serialize the result").caused_by(lost).into()))
}
