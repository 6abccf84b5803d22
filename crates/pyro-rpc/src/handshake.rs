//! The first request, in which client and server compare their versions.

use std::sync::LazyLock;

use pyro_api::{Hint, InvalidRequest, Reader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Failure, Problem};
use crate::limits::PROTOCOL;
use crate::message::Object;
use crate::params;

/// The method.
pub(crate) const INITIALIZE: &str = "initialize";
/// Its description.
pub(crate) const ABOUT: &str = "Must be the first request. Fails with version_mismatch unless client and server have the same \
    version and protocol.";
/// The version of this server.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Parameters of `initialize`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Initialize {
    /// Protocol version of the client: 1.
    protocol: u64,
    /// The client.
    client: Client,
}

/// The program that uses this server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Client {
    /// Its name.
    name: String,
    /// Its version.
    version: String,
}

/// Result of `initialize`.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Initialized {
    /// Protocol version.
    protocol: u64,
    /// The server.
    server: Server,
}

/// The server program.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Server {
    /// `pyro`.
    name: String,
    /// Its version.
    version: String,
}

/// Checks the version of the client.
pub(crate) fn greet(given: &Object) -> Result<Initialized, Failure> {
    // Other protocol versions may have other parameters.
    let protocol = given.get("protocol").and_then(Value::as_u64);
    if protocol.is_none_or(|protocol| protocol == PROTOCOL) {
        refuse_unknown(given)?;
    }
    let Initialize { protocol, client } = params::read(given)?;
    let both = format!("{} {} cannot work with pyro {VERSION}", client.name, client.version);
    if client.version != VERSION {
        return Err(mismatch(format!("{both}: both must have the same version")));
    }
    if protocol != PROTOCOL {
        return Err(mismatch(format!("{both}: its protocol version is {protocol}, not {PROTOCOL}")));
    }
    let server = Server { name: "pyro".to_owned(), version: VERSION.to_owned() };
    Ok(Initialized { protocol: PROTOCOL, server })
}

fn refuse_unknown(given: &Object) -> Result<(), Failure> {
    static KNOWN: LazyLock<[String; 2]> = LazyLock::new(|| ["client", "protocol"].map(str::to_owned));
    match given.keys().find(|name| !KNOWN.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let name = name.escape_debug().to_string();
            Err(InvalidRequest::UnknownParameter { operation: INITIALIZE, name, known: &*KNOWN }.into())
        }
    }
}

fn mismatch(message: String) -> Failure {
    let hint = Hint::SameVersion { version: VERSION.to_owned() };
    let failure = Failure::new(Problem::VersionMismatch, message);
    hint.words(Reader::Program).into_iter().fold(failure, Failure::hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn greeted(params: Value) -> Result<Initialized, Failure> {
        greet(params.as_object().unwrap())
    }

    #[test]
    fn both_must_be_of_the_same_version_and_speak_the_same_protocol() {
        let client = json!({ "name": "pyro-mcp", "version": VERSION });
        let hello = greeted(json!({ "protocol": 1, "client": client })).unwrap();
        let expected = json!({ "protocol": 1, "server": { "name": "pyro", "version": VERSION } });
        assert_eq!(serde_json::to_value(hello).unwrap(), expected);

        let old = json!({ "protocol": 1, "client": { "name": "pyro-mcp", "version": "2.0.0" } });
        let error = greeted(old).unwrap_err().error();
        assert_eq!(
            error.message,
            format!("pyro-mcp 2.0.0 cannot work with pyro {VERSION}: both must have the same version")
        );
        assert_eq!((error.data.code.as_str(), error.data.hints.len()), ("version_mismatch", 1));
        let other = greeted(json!({ "protocol": 2, "client": client, "more": 1 })).unwrap_err();
        assert_eq!(other.problem, Problem::VersionMismatch);
        for wrong in
            [json!({}), json!({ "protocol": 1, "client": client, "more": 1 }), json!({ "protocol": 1 })]
        {
            assert_eq!(greeted(wrong).unwrap_err().problem, Problem::InvalidParams);
        }
    }
}
