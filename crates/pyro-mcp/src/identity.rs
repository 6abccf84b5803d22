//! Names of clients: what they create belongs to their name.

use hyper::http::request::Parts;
use pyro_api::{Caller, OwnerName};
use rmcp::model::Extensions;

/// Name of the client that sent an HTTP request, as an extension of the request.
#[derive(Debug, Clone)]
pub(crate) struct ClientName(pub(crate) OwnerName);

/// The caller of a request. A client with a name of its own finds what `server`, the caller of the others, could find.
pub(crate) fn caller(server: &Caller, request: &Extensions) -> Caller {
    let name = request.get::<Parts>().and_then(|parts| parts.extensions.get::<ClientName>());
    match (name, server) {
        (Some(ClientName(name)), Caller::Client { visibility, .. }) => {
            Caller::Client { name: name.clone(), visibility: *visibility }
        }
        _ => server.clone(),
    }
}
