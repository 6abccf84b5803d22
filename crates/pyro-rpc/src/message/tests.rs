use serde_json::json;

use super::*;

fn refused(line: &str) -> (Value, i32) {
    let Unusable { id, failure } = Message::read(line.as_bytes()).unwrap_err();
    let answer: Value = serde_json::from_slice(&error(id.as_ref(), failure)).unwrap();
    (answer["id"].clone(), answer["error"]["code"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn requests_and_notifications_are_parsed() {
    let line = r#"{"jsonrpc":"2.0","id":"a","method":"m","params":{"x":null,"y":1}}"#;
    let mut params = Object::new();
    params.insert("y".to_owned(), json!(1));
    let message = Message { id: Some(Id::Text("a".to_owned())), method: "m".to_owned(), params };
    assert_eq!(Message::read(line.as_bytes()).unwrap(), message);
    let message = Message::read(b"{\"jsonrpc\":\"2.0\",\"method\":\"m\"}\r").unwrap();
    assert_eq!((message.id, message.params), (None, Object::new()));
}

#[test]
fn invalid_requests_are_rejected_with_their_id_if_they_have_one() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("not JSON", Value::Null, -32700),
        ("", Value::Null, -32700),
        ("\u{0}", Value::Null, -32700),
        (&deep, Value::Null, -32700),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m"} x"#, Value::Null, -32700),
        ("null", Value::Null, -32600),
        ("[]", Value::Null, -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#, Value::Null, -32600),
        ("{}", Value::Null, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, Value::Null, -32600),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"m"}"#, Value::Null, -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, json!(1), -32600),
        (r#"{"id":1,"method":"m"}"#, json!(1), -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, json!(1), -32600),
        (r#"{"jsonrpc":"2.0","id":"x","result":{}}"#, json!("x"), -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#, json!(1), -32602),
    ];
    for (line, id, code) in cases {
        assert_eq!(refused(line), (id, code), "{}", &line[..line.len().min(80)]);
    }
    let Unusable { failure, .. } = Message::read(b"{\"jsonrpc\":\"\xff\"}").unwrap_err();
    assert_eq!(failure.problem, Problem::NoJson);
}

#[test]
fn a_result_that_is_too_long_is_an_error() {
    let id = Id::Number(1);
    let line = success_within(RESPONSE_BYTES, &id, &"12345").unwrap();
    let length = line.len() - 1;
    assert_eq!(success_within(length, &id, &"12345").unwrap(), line);
    let failure = success_within(length - 1, &id, &"12345").unwrap_err();
    assert_eq!(failure.problem, Problem::MessageTooLong);
}
