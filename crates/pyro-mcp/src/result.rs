//! Results of calls.

use pyro_api::Caller;
use pyro_api::text::printable;
use rmcp::model::{CallToolResult, ContentBlock, MetaObject};
use serde_json::{Map, Value, json};

use crate::address::{Address, STREAMS};
use crate::failure::Failure;
use crate::outputs::Outputs;

/// Maximum length of an output stream in a result, in characters. A model pays for each of them, and clients cut results of
/// more than about 25,000 tokens without telling the model.
const STREAM_CHARS: usize = 16_000;
/// Maximum total length of the streams of a result, in characters, unless each has only [`LEAST_CHARS`].
const RESULT_CHARS: usize = 64_000;
/// Minimum share of each stream in a result, however many there are, in characters.
const LEAST_CHARS: usize = 200;

/// Metadata key of the error, for programs.
const ERROR_META: &str = "pyro/error";

const COMMAND: &str = "command";
/// Maximum length of a command in a result, in characters: the caller knows it.
const COMMAND_CHARS: usize = 2000;
/// Maximum number of links in a result.
const MAX_LINKS: usize = 20;

/// Converts a payload to the result of a call. `task` is the id of the task that it concerns, if any. The whole output of
/// removed VMs is kept in `outputs` for `caller`; that of tasks is in their journals.
pub(crate) fn success(
    mut payload: Value,
    task: Option<&str>,
    outputs: &Outputs,
    caller: &Caller,
) -> CallToolResult {
    let vm = payload["vm_id"].as_str().map(str::to_owned);
    let most = share(count_streams(&payload));
    cut(&mut payload, most, &mut |stream, text| {
        if let Some(vm) = &vm {
            outputs.keep(caller, Address::VmOutput { vm: vm.clone(), stream }.to_string(), text);
        }
    });
    let mut addresses = Vec::new();
    find_cut(&payload, &mut |stream, sequence| match (task, sequence, &vm) {
        (Some(task), Some(sequence), _) => {
            addresses.push(Address::CommandOutput { task: task.to_owned(), sequence, stream });
        }
        (_, _, Some(vm)) => addresses.push(Address::VmOutput { vm: vm.clone(), stream }),
        _ => {}
    });
    let latest = addresses.len().saturating_sub(MAX_LINKS);
    let links = addresses[latest..].iter().map(|address| ContentBlock::resource_link(address.resource()));
    let note = denial_note(&payload).map(ContentBlock::text);
    let mut result = CallToolResult::structured(payload);
    // The same JSON as text, for clients without structured content.
    let value = result.structured_content.as_ref().unwrap_or(&Value::Null);
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    result.content = std::iter::once(ContentBlock::text(text)).chain(note).chain(links).collect();
    result
}

/// Maximum number of denials that a note names, the latest ones.
const NAMED_DENIALS: usize = 3;

/// The line that tells a model why its command did not reach something. `None` if the call ran no command, or nothing was denied.
fn denial_note(payload: &Value) -> Option<String> {
    payload.get("exit_code")?;
    let denials = payload.get("network_denials")?.as_array().filter(|denials| !denials.is_empty())?;
    let named: Vec<_> = denials.iter().rev().take(NAMED_DENIALS).map(denial).collect();
    let more = match denials.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("Network policy denied: {}{more}", named.join(", ")))
}

/// `example.test:443 (not on the allowlist)`.
fn denial(denial: &Value) -> String {
    let text = |key: &str| denial.get(key).and_then(Value::as_str);
    let port = denial.get("port").and_then(Value::as_u64).map(|port| format!(":{port}")).unwrap_or_default();
    let host = match (text("name"), text("address")) {
        (Some(name), _) => name.to_owned(),
        (None, Some(address)) if address.contains(':') && !port.is_empty() => format!("[{address}]"),
        (None, address) => address.unwrap_or("unknown").to_owned(),
    };
    let rule = match text("rule").unwrap_or_default() {
        "not_on_allowlist" | "name_not_on_allowlist" => "not on the allowlist".to_owned(),
        rule => rule.replace('_', " "),
    };
    printable(&format!("{host}{port} ({rule})")).into_owned()
}

/// The result of a call that failed.
pub(crate) fn failure(failure: &Failure) -> CallToolResult {
    // Clients show errors to people, and text of guests and of other clients can be in them.
    let hints: Vec<_> = failure.hints().iter().map(|hint| printable(hint).into_owned()).collect();
    error(failure.code(), &printable(&failure.message()), &hints)
}

/// Puts everything into the text, because models see nothing else; programs find the same in the metadata. There is no
/// structured content, because clients would validate it against the schema of the tool's results.
fn error(code: &str, message: &str, hints: &[String]) -> CallToolResult {
    let hint_lines = hints.iter().map(|hint| format!("hint: {hint}"));
    let lines: Vec<_> =
        std::iter::once(message.to_owned()).chain(hint_lines).chain([format!("code: {code}")]).collect();
    let mut result = CallToolResult::error(vec![ContentBlock::text(lines.join("\n"))]);
    let mut meta = MetaObject::new();
    meta.insert(ERROR_META.to_owned(), json!({ "code": code, "message": message, "hints": hints }));
    result.meta = Some(meta);
    result
}

/// Maximum length of each stream in a result with `streams` streams, in characters.
pub(crate) fn share(streams: u64) -> usize {
    let share = RESULT_CHARS as u64 / streams.max(1);
    usize::try_from(share).unwrap_or(STREAM_CHARS).clamp(LEAST_CHARS, STREAM_CHARS)
}

fn count_streams(value: &Value) -> u64 {
    match value {
        Value::Object(object) => {
            let here = STREAMS.iter().filter(|stream| object.get(**stream).is_some_and(|text| text != ""));
            here.count() as u64 + object.values().map(count_streams).sum::<u64>()
        }
        Value::Array(items) => items.iter().map(count_streams).sum(),
        _ => 0,
    }
}

/// Cuts output streams anywhere in a value to `most` characters, and commands to [`COMMAND_CHARS`]. An additional key has the
/// number of characters that were cut; `took` receives the whole stream.
pub(crate) fn cut(value: &mut Value, most: usize, took: &mut impl FnMut(&'static str, String)) {
    match value {
        Value::Object(object) => {
            for stream in STREAMS {
                if let Some(whole) = cut_text(object, stream, most) {
                    took(stream, whole);
                }
            }
            cut_text(object, COMMAND, most.min(COMMAND_CHARS));
            object.values_mut().for_each(|value| cut(value, most, took));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| cut(value, most, took)),
        _ => {}
    }
}

/// Cuts one text of an object. Returns the whole text if it was too long.
fn cut_text(object: &mut Map<String, Value>, name: &str, most: usize) -> Option<String> {
    let Value::String(text) = object.get_mut(name)? else { return None };
    let (kept, missing) = shorten(text, most)?;
    let whole = std::mem::replace(text, kept);
    count_cut(object, name, missing);
    Some(whole)
}

/// Calls `found` for every stream that was cut, with the number of its command, if it has one.
fn find_cut(value: &Value, found: &mut impl FnMut(&'static str, Option<u64>)) {
    match value {
        Value::Object(object) => {
            for stream in STREAMS {
                if object.contains_key(&cut_key(stream)) {
                    found(stream, object.get("sequence").and_then(Value::as_u64));
                }
            }
            object.values().for_each(|value| find_cut(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| find_cut(value, found)),
        _ => {}
    }
}

/// Cuts the streams of a journal entry to the page that begins at character `offset`.
pub(crate) fn begin_at(entry: &mut Value, offset: u64) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let Some(object) = entry.as_object_mut() else { return };
    for stream in STREAMS {
        let Some(Value::String(text)) = object.get_mut(stream) else { continue };
        let rest = &text[index(text, offset)..];
        let end = index(rest, STREAM_CHARS);
        let (page, missing) = (rest[..end].to_owned(), rest[end..].chars().count());
        *text = page;
        if missing > 0 {
            count_cut(object, stream, missing);
        }
    }
}

fn count_cut(object: &mut Map<String, Value>, name: &str, missing: usize) {
    object.insert(cut_key(name), missing.into());
}

fn cut_key(name: &str) -> String {
    format!("{name}_cut_chars")
}

/// Returns the head and tail of a text that is too long, with a line between them, and the number of characters cut.
fn shorten(text: &str, most: usize) -> Option<(String, usize)> {
    let length = text.chars().count();
    if length <= most {
        return None;
    }
    let half = most / 2;
    let missing = length - 2 * half;
    let (head, tail) = (&text[..index(text, half)], &text[index(text, length - half)..]);
    Some((format!("{head}\n[{missing} characters omitted, starting at character {half}]\n{tail}"), missing))
}

/// Byte index of a character; the length of the text if it is shorter.
fn index(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use pyro_api::Error;

    use super::*;

    fn task_logs() -> Value {
        let text: String = (0..20_000).map(|index| if index < 10_000 { 'ä' } else { 'z' }).collect();
        json!({ "entries": [{ "sequence": 4, "stdout": text, "stderr": "short" }] })
    }

    #[test]
    fn long_output_keeps_its_head_and_its_tail_and_says_so() {
        let result = success(task_logs(), Some("9775b3af1eeb"), &Outputs::default(), &Caller::Operator);
        let content = serde_json::to_value(&result.content).unwrap();
        assert_eq!(content[1]["uri"], "pyro://tasks/9775b3af1eeb/commands/4/stdout");
        let value = result.structured_content.unwrap();
        let entry = &value["entries"][0];
        assert_eq!(entry["stdout_cut_chars"], 4000);
        let kept = entry["stdout"].as_str().unwrap();
        assert!(kept.starts_with("ää") && kept.ends_with("zz"));
        assert!(kept.contains("\n[4000 characters omitted, starting at character 8000]\n"));
        assert_eq!(entry["stderr"], "short");
        assert!(entry.get("stderr_cut_chars").is_none());
        assert_eq!(serde_json::from_str::<Value>(content[0]["text"].as_str().unwrap()).unwrap(), value);
    }

    #[test]
    fn the_pages_of_a_stream_are_the_whole() {
        let whole = task_logs()["entries"][0]["stdout"].as_str().unwrap().to_owned();
        let mut read = String::new();
        loop {
            let mut entry = task_logs()["entries"][0].clone();
            begin_at(&mut entry, read.chars().count() as u64);
            read.push_str(entry["stdout"].as_str().unwrap());
            if entry.get("stdout_cut_chars").is_none() {
                break;
            }
        }
        assert_eq!(read, whole);
        let mut entry = task_logs()["entries"][0].clone();
        begin_at(&mut entry, u64::MAX);
        assert_eq!(entry["stdout"], "");
    }

    #[test]
    fn a_command_is_cut_like_output() {
        let result = success(
            json!({ "vm_id": "de259a89b184", "command": "x".repeat(3000) }),
            None,
            &Outputs::default(),
            &Caller::Operator,
        );
        assert_eq!(result.structured_content.unwrap()["command_cut_chars"], 1000);
        assert_eq!(result.content.len(), 1, "there is nothing to be linked to");
    }

    #[test]
    fn many_streams_share_what_there_is() {
        let entries: Vec<Value> =
            (1..=100).map(|n| json!({ "sequence": n, "stdout": "x".repeat(2000) })).collect();
        let result = success(
            json!({ "entries": entries }),
            Some("9775b3af1eeb"),
            &Outputs::default(),
            &Caller::Operator,
        );
        let value = result.structured_content.unwrap();
        assert_eq!(value["entries"][99]["stdout_cut_chars"], 2000 - 640);
        assert!(value.to_string().len() < 80_000);
        assert_eq!(result.content.len(), 1 + MAX_LINKS);
    }

    #[test]
    fn output_of_a_vm_that_is_gone_can_still_be_read() {
        let outputs = Outputs::default();
        let result = success(
            json!({ "vm_id": "de259a89b184", "stderr": "y".repeat(17_000) }),
            None,
            &outputs,
            &Caller::Operator,
        );
        let uri = serde_json::to_value(&result.content[1]).unwrap()["uri"].as_str().unwrap().to_owned();
        assert_eq!(outputs.read(&Caller::Operator, &uri).unwrap().len(), 17_000);
    }

    #[test]
    fn what_a_command_was_denied_is_one_line_of_text() {
        let denials = json!([
            { "protocol": "tcp", "address": "10.0.0.1", "port": 22, "name": null, "rule": "private" },
            { "protocol": "tcp", "address": "fd00::1", "port": 80, "name": null, "rule": "link_local" },
            { "protocol": "dns", "address": null, "port": null, "name": "a.test", "rule": "name_not_on_allowlist" },
            { "protocol": "tcp", "address": "192.0.2.1", "port": 443, "name": "b.test", "rule": "not_on_allowlist" },
        ]);
        let texts = |payload: Value| {
            let result = success(payload, None, &Outputs::default(), &Caller::Operator);
            let content = serde_json::to_value(&result.content).unwrap();
            let texts = content.as_array().unwrap().iter().skip(1);
            texts.map(|block| block["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let ran = json!({ "vm_id": "de259a89b184", "exit_code": 1, "network_denials": denials });
        assert_eq!(
            texts(ran),
            ["Network policy denied: b.test:443 (not on the allowlist), a.test (not on the allowlist), \
              [fd00::1]:80 (link local) and 1 more"]
        );
        let one = json!({ "exit_code": 0, "network_denials": [denials[0]] });
        assert_eq!(texts(one), ["Network policy denied: 10.0.0.1:22 (private)"]);
        // The state of a task lists what was denied since its start, and has a line for nothing.
        assert!(texts(json!({ "state": "started", "network_denials": denials })).is_empty());
        assert!(texts(json!({ "exit_code": 0 })).is_empty());
    }

    #[test]
    fn a_model_is_not_invited_to_use_the_host() {
        let unavailable = Failure::Contract(Error::boot_unavailable("no VMM was found"));
        let told = serde_json::to_string(&failure(&unavailable)).unwrap();
        assert!(told.contains("no VMM was found"), "{told}");
        assert!(!told.contains("allow_host_compat") && !told.contains("allow-host-compat"), "{told}");
    }

    #[test]
    fn a_failure_has_a_code_a_message_and_hints_and_says_the_same_as_text() {
        let result = error("not_found", "task 'x' does not exist", &["look at the list".to_owned()]);
        let result = serde_json::to_value(result).unwrap();
        assert_eq!(result["isError"], true);
        assert!(result.get("structuredContent").is_none());
        let expected = json!({ "code": "not_found", "message": "task 'x' does not exist", "hints": ["look at the list"] });
        assert_eq!(result["_meta"]["pyro/error"], expected);
        assert_eq!(
            result["content"][0]["text"],
            "task 'x' does not exist\nhint: look at the list\ncode: not_found"
        );
    }
}
