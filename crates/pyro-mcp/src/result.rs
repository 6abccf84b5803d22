//! What a call gives back.

use pyro_engine::EngineError;
use rmcp::model::{CallToolResult, ContentBlock};
use serde::Serialize;
use serde_json::{Value, json};

/// Most characters of one output stream that a result holds. A model pays for each of them, and clients cut results of
/// more than about 25,000 tokens, which nobody would notice.
const STREAM_CHARS: usize = 16_000;

/// A payload of the engine as the result of a call.
pub(crate) fn success(payload: &impl Serialize) -> CallToolResult {
    match serde_json::to_value(payload) {
        Ok(mut value) => {
            fit(&mut value);
            with_text(CallToolResult::structured(value))
        }
        Err(error) => failure("internal", &format!("the result cannot be written as JSON: {error}"), &[]),
    }
}

/// pyro could not do what was asked.
pub(crate) fn engine_failure(error: &EngineError) -> CallToolResult {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let message = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    failure(error.kind.as_str(), &message, &error.hints)
}

/// The arguments are wrong.
pub(crate) fn refusal(sentence: &str) -> CallToolResult {
    failure("invalid_input", sentence, &[])
}

fn failure(code: &str, message: &str, hints: &[String]) -> CallToolResult {
    let mut result =
        CallToolResult::structured_error(json!({ "code": code, "message": message, "hints": hints }));
    let lines: Vec<_> = std::iter::once(message).chain(hints.iter().map(String::as_str)).collect();
    result.content = vec![ContentBlock::text(lines.join("\n"))];
    result
}

/// The same JSON as text, for clients that know no other.
fn with_text(mut result: CallToolResult) -> CallToolResult {
    let value = result.structured_content.as_ref().unwrap_or(&Value::Null);
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    result.content = vec![ContentBlock::text(text)];
    result
}

/// Cuts output streams, wherever they are in the payload, to what fits; what was cut is counted beside them.
fn fit(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for stream in ["stdout", "stderr"] {
                let Some(Value::String(text)) = object.get(stream) else { continue };
                if let Some((kept, cut)) = shorten(text) {
                    object.insert(stream.to_owned(), kept.into());
                    object.insert(format!("{stream}_cut_chars"), cut.into());
                }
            }
            object.values_mut().for_each(fit);
        }
        Value::Array(items) => items.iter_mut().for_each(fit),
        _ => {}
    }
}

/// Head and tail of a text that is too long, with a line between them, and how many characters are missing.
fn shorten(text: &str) -> Option<(String, usize)> {
    let length = text.chars().count();
    if length <= STREAM_CHARS {
        return None;
    }
    let half = STREAM_CHARS / 2;
    let cut = length - 2 * half;
    let at = |character: usize| text.char_indices().nth(character).map_or(text.len(), |(index, _)| index);
    let (head, tail) = (&text[..at(half)], &text[at(length - half)..]);
    Some((format!("{head}\n[{cut} characters cut here]\n{tail}"), cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_head_and_its_tail_and_says_so() {
        let text: String = (0..20_000).map(|index| if index < 10_000 { 'ä' } else { 'z' }).collect();
        let mut value = json!({ "entries": [{ "stdout": text, "stderr": "short" }] });
        fit(&mut value);
        let entry = &value["entries"][0];
        assert_eq!(entry["stdout_cut_chars"], 4000);
        let kept = entry["stdout"].as_str().unwrap();
        assert!(kept.starts_with("ää") && kept.ends_with("zz"));
        assert!(kept.contains("\n[4000 characters cut here]\n"));
        assert_eq!(entry["stderr"], "short");
        assert!(entry.get("stderr_cut_chars").is_none());
    }

    #[test]
    fn a_failure_has_a_code_a_message_and_hints_and_says_the_same_as_text() {
        let result = failure("not_found", "task 'x' does not exist", &["look at the list".to_owned()]);
        assert_eq!(result.is_error, Some(true));
        let expected = json!({ "code": "not_found", "message": "task 'x' does not exist", "hints": ["look at the list"] });
        assert_eq!(result.structured_content, Some(expected));
        let text = serde_json::to_value(&result.content).unwrap();
        assert_eq!(text[0]["text"], "task 'x' does not exist\nlook at the list");
    }
}
