//! Messages to the model, and its replies.

use serde::Serialize;
use serde_json::{Value, json};

use super::arguments::{self, Object};
use super::error::DemoError;

/// Maximum number of tool calls in a reply.
const MAX_CALLS: usize = 16;
/// Maximum length of the name of a tool or a role, in characters. It is OpenAI's limit for tools.
const NAME_CHARS: usize = 64;

/// One message of the conversation, as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub(super) enum Message {
    User {
        content: String,
    },
    Assistant {
        content: Value,
        /// In the form that every server accepts, even if the model's server wrote another one.
        tool_calls: Vec<Value>,
    },
    Tool {
        tool_call_id: String,
        content: String,
    },
}

impl Message {
    /// Role and content; `None` for the model's own messages.
    pub(super) fn input(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::User { content } => Some(("user", content)),
            Self::Tool { content, .. } => Some(("tool", content)),
            Self::Assistant { .. } => None,
        }
    }
}

/// A reply of the model.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) role: String,
    pub(super) content: Value,
    pub(super) calls: Vec<ToolCall>,
}

/// A tool that a model wants to be called.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Object,
}

impl Reply {
    /// Reads the first choice of an answer.
    ///
    /// # Errors
    /// It has none, or too many tool calls, or one of them is malformed.
    pub(super) fn read(answer: &Value) -> Result<Self, DemoError> {
        let message = answer["choices"][0]["message"]
            .as_object()
            .ok_or_else(|| DemoError::Answer("it has no `choices` with a `message`".to_owned()))?;
        let field = |name: &str| message.get(name).unwrap_or(&Value::Null);
        let calls = match field("tool_calls") {
            Value::Null => Vec::new(),
            Value::Array(calls) if calls.len() > MAX_CALLS => {
                return Err(DemoError::Calls { count: calls.len(), most: MAX_CALLS });
            }
            Value::Array(calls) => calls.iter().map(ToolCall::read).collect::<Result<_, _>>()?,
            _ => return Err(DemoError::ToolCall("`tool_calls` is not an array".to_owned())),
        };
        let role = field("role").as_str().unwrap_or("assistant").chars().take(NAME_CHARS).collect();
        Ok(Self { role, content: field("content").clone(), calls })
    }

    /// Its text for people; empty if it has none.
    pub(super) fn text(&self) -> String {
        match &self.content {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            parts => parts.to_string(),
        }
    }

    /// The same as part of the conversation.
    pub(super) fn as_message(&self) -> Message {
        Message::Assistant {
            content: self.content.clone(),
            tool_calls: self.calls.iter().map(ToolCall::to_value).collect(),
        }
    }
}

impl ToolCall {
    fn read(call: &Value) -> Result<Self, DemoError> {
        let malformed = |why: &str| DemoError::ToolCall(why.to_owned());
        let id =
            call["id"].as_str().filter(|id| !id.is_empty()).ok_or_else(|| malformed("it has no `id`"))?;
        let function = call["function"].as_object().ok_or_else(|| malformed("it has no `function`"))?;
        let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| malformed("its function has no `name`"))?;
        if name.chars().count() > NAME_CHARS {
            return Err(malformed(&format!(
                "the `name` of its function is longer than {NAME_CHARS} characters"
            )));
        }
        let arguments = arguments::decode(function.get("arguments"))
            .map_err(|error| DemoError::ToolCall(format!("the arguments of {name} {error}")))?;
        Ok(Self { id: id.to_owned(), name: name.to_owned(), arguments })
    }

    fn to_value(&self) -> Value {
        let arguments = Value::Object(self.arguments.clone()).to_string();
        json!({ "id": self.id, "type": "function", "function": { "name": self.name, "arguments": arguments } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_message(message: Value) -> Value {
        json!({ "choices": [{ "message": message, "finish_reason": "stop" }, { "message": "never looked at" }] })
    }

    fn fault(answer: &Value) -> String {
        let error = Reply::read(answer).unwrap_err();
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        error.to_string() + &cause.unwrap_or_default()
    }

    #[test]
    fn the_first_choice_is_read() {
        let call =
            json!({ "id": "c1", "function": { "name": "vm_run", "arguments": "{\"a\": 1}" }, "index": 0 });
        let answer = with_message(json!({ "role": "assistant", "content": null, "tool_calls": [call] }));
        let reply = Reply::read(&answer).unwrap();
        assert_eq!((reply.role.as_str(), reply.text().as_str()), ("assistant", ""));
        assert_eq!(reply.calls[0].arguments, *json!({ "a": 1 }).as_object().unwrap());
        let sent = serde_json::to_value(reply.as_message()).unwrap();
        assert_eq!(
            sent,
            json!({ "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "vm_run", "arguments": "{\"a\":1}" } }
            ] })
        );
        let plain = Reply::read(&with_message(json!({ "content": "done" }))).unwrap();
        assert_eq!((plain.role.as_str(), plain.text().as_str(), plain.calls.len()), ("assistant", "done", 0));
    }

    #[test]
    fn malformed_replies_are_rejected() {
        let call = |call: Value| with_message(json!({ "tool_calls": [call] }));
        let faults = [
            json!([]),
            json!({ "choices": [] }),
            json!({ "choices": [{ "message": "text" }] }),
            with_message(json!({ "tool_calls": {} })),
            call(json!("vm_run")),
            call(json!({ "function": { "name": "vm_run" } })),
            call(json!({ "id": "", "function": { "name": "vm_run" } })),
            call(json!({ "id": "1" })),
            call(json!({ "id": "1", "function": {} })),
            call(json!({ "id": "1", "function": { "name": 5 } })),
            call(json!({ "id": "1", "function": { "name": "ü".repeat(65) } })),
            with_message(json!({ "tool_calls": vec![json!(null); 17] })),
            call(json!({ "id": "1", "function": { "name": "vm_run", "arguments": "{" } })),
            call(json!({ "id": "1", "function": { "name": "vm_run", "arguments": [] } })),
        ]
        .map(|answer| fault(&answer));
        insta::assert_snapshot!(faults.join("\n"), @r"
        the endpoint's response is not a chat completion: it has no `choices` with a `message`
        the endpoint's response is not a chat completion: it has no `choices` with a `message`
        the endpoint's response is not a chat completion: it has no `choices` with a `message`
        malformed tool call: `tool_calls` is not an array
        malformed tool call: it has no `id`
        malformed tool call: it has no `id`
        malformed tool call: it has no `id`
        malformed tool call: it has no `function`
        malformed tool call: its function has no `name`
        malformed tool call: its function has no `name`
        malformed tool call: the `name` of its function is longer than 64 characters
        too many tool calls in one reply: 17; the maximum is 16
        malformed tool call: the arguments of vm_run are not JSON: EOF while parsing an object at line 1 column 1
        malformed tool call: the arguments of vm_run are not an object
        ");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let words = prop_oneof![
            Just("choices"),
            Just("message"),
            Just("tool_calls"),
            Just("id"),
            Just("function"),
            Just("name"),
            Just("arguments"),
            Just("{}"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            words.clone().prop_map(Value::from)
        ];
        leaf.prop_recursive(6, 48, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(words.clone(), inner, 0..5)
                    .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_read_or_refused_and_said_back_the_same(answer in any_json(), wrapped in any::<bool>()) {
            let answer = if wrapped { with_message(answer) } else { answer };
            if let Ok(reply) = Reply::read(&answer) {
                let again = with_message(serde_json::to_value(reply.as_message()).unwrap());
                prop_assert_eq!(Reply::read(&again).unwrap().calls, reply.calls);
            }
        }
    }
}
