//! Decodes messages, and says which error one that is invalid gets.

use std::fmt::Display;

use rmcp::RoleServer;
use rmcp::model::{ClientRequest, ErrorData, JsonRpcMessage, RequestId};
use rmcp::service::RxJsonRpcMessage;
use serde_json::Value;
use serde_json::error::Category;

use super::message_id;

/// Methods whose parameters rmcp decodes. It takes one whose parameters are invalid for a method that it does not know.
const METHODS: [&str; 14] = [
    "completion/complete",
    "initialize",
    "logging/setLevel",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "server/discover",
    "tools/call",
    "tools/list",
];

/// The answer to a message that is not taken.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    /// The id of the request, as far as it can be known.
    pub(super) id: Option<RequestId>,
    pub(super) error: ErrorData,
}

impl Refused {
    /// An invalid request.
    pub(super) fn invalid(id: Option<RequestId>, text: impl Display) -> Self {
        Self { id, error: ErrorData::invalid_request(format!("Invalid request: {text}"), None) }
    }
}

/// Decodes a message. `None`: it needs no answer, such as an empty line or a notification of an unknown kind.
pub(super) fn decode(line: &[u8]) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
    let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let parse_error = |text: &dyn Display| Refused {
        id: message_id::find(line),
        error: ErrorData::parse_error(format!("Parse error: {text}"), None),
    };
    let text = std::str::from_utf8(line).map_err(|error| parse_error(&error))?;
    match serde_json::from_str::<RxJsonRpcMessage<RoleServer>>(text) {
        Ok(JsonRpcMessage::Request(request)) => match request.request {
            ClientRequest::CustomRequest(custom) if METHODS.contains(&custom.method.as_str()) => {
                Err(invalid_params(request.id, &custom.method))
            }
            known => Ok(Some(JsonRpcMessage::request(known, request.id))),
        },
        Ok(message) => Ok(Some(message)),
        Err(error) if matches!(error.classify(), Category::Syntax | Category::Eof) => {
            Err(parse_error(&error))
        }
        Err(_) => match serde_json::from_str(text) {
            Ok(Value::Object(message)) => undecoded(&message),
            Ok(_) => Err(Refused::invalid(None, "expected an object")),
            Err(error) => Err(parse_error(&error)),
        },
    }
}

/// What an object gets that is not a valid message.
fn undecoded(
    message: &serde_json::Map<String, Value>,
) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Refused> {
    let given = message.get("id");
    let id: Option<RequestId> = given.and_then(|id| serde_json::from_value(id.clone()).ok());
    if message.get("jsonrpc") != Some(&"2.0".into()) {
        return Err(Refused::invalid(id, "expected `\"jsonrpc\": \"2.0\"`"));
    }
    if given.is_some() && id.is_none() {
        return Err(Refused::invalid(None, "expected a string or an integer as `id`"));
    }
    match (message.get("method"), id) {
        (Some(Value::String(method)), Some(id)) => Err(invalid_params(id, method)),
        // Notifications and responses are not answered.
        (Some(Value::String(_)), None) => Ok(None),
        (None, _) if message.contains_key("result") || message.contains_key("error") => Ok(None),
        (_, id) => Err(Refused::invalid(id, "expected a string as `method`")),
    }
}

fn invalid_params(id: RequestId, method: &str) -> Refused {
    let method: String = method.chars().take(64).collect();
    Refused {
        id: Some(id),
        error: ErrorData::invalid_params(format!("Invalid parameters of {method}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &[u8]) -> (i32, Option<RequestId>) {
        let refused = decode(line).unwrap_err();
        (refused.error.code.0, refused.id)
    }

    #[test]
    fn text_that_is_not_json_is_a_parse_error() {
        let id = Some(RequestId::Number(5));
        let deep = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"ping","params":{}"#, "[".repeat(100_000));
        let invalid: [&[u8]; 6] = [
            br#"{"jsonrpc":"2.0","id":5,"method":"ping""#,
            br#"{"jsonrpc":"2.0","id":5,"method":"ping","params":{"x":"\ud800"}}"#,
            b"{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"\xff\"}",
            br#"{"jsonrpc":"2.0","id":5,}"#,
            br#"{'id':5}"#,
            deep.as_bytes(),
        ];
        for line in invalid {
            let expected = if line.starts_with(b"{'") { None } else { id.clone() };
            assert_eq!(
                code(line),
                (-32700, expected),
                "{}",
                String::from_utf8_lossy(&line[..line.len().min(80)])
            );
        }
        assert_eq!(code(b"ping"), (-32700, None));
    }

    #[test]
    fn what_is_no_request_is_an_invalid_request() {
        for (line, id) in [
            ("[]", None),
            ("7", None),
            (r#"[{"jsonrpc":"2.0","id":5,"method":"ping"}]"#, None),
            ("{}", None),
            (r#"{"jsonrpc":"1.0","id":5,"method":"ping"}"#, Some(RequestId::Number(5))),
            (r#"{"id":"a","method":"ping"}"#, Some(RequestId::String("a".into()))),
            (r#"{"jsonrpc":"2.0","id":5}"#, Some(RequestId::Number(5))),
            (r#"{"jsonrpc":"2.0","id":5,"method":7}"#, Some(RequestId::Number(5))),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, None),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#, None),
        ] {
            assert_eq!(code(line.as_bytes()), (-32600, id), "{line}");
        }
    }

    #[test]
    fn invalid_parameters_of_a_known_method_are_named() {
        for params in ["[]", "7", r#""x""#, r#"{"name":7}"#, r#"{"name":"vm_run","arguments":[]}"#] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{params}}}"#);
            assert_eq!(code(line.as_bytes()), (-32602, Some(RequestId::Number(5))), "{params}");
        }
    }

    #[test]
    fn what_needs_no_answer_gets_none() {
        for line in [
            "",
            " \r",
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":7}"#,
            r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
            r#"{"jsonrpc":"2.0","result":{}}"#,
        ] {
            let decoded = decode(line.as_bytes());
            assert!(!matches!(decoded, Ok(Some(JsonRpcMessage::Request(_)))), "{line}: {decoded:?}");
        }
        let message = decode(b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r").unwrap();
        assert!(matches!(message, Some(JsonRpcMessage::Request(_))), "{message:?}");
    }
}
