//! Schemas of results for models. A model pays for every word of `tools/list`, and most key names explain themselves.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::arguments::Object;

/// Descriptions of keys whose names do not explain themselves.
const MEANINGS: [(&str, &str); 8] = [
    ("exit_code", "-S if signal S ended it, 124 if it timed out"),
    ("stdout_truncated", "Number of bytes that were dropped"),
    ("sequence", "For task_wait, task_kill, task_logs"),
    ("outcome", "unknown: it may have run completely or partly"),
    ("next_offset", "offset of the next part; null at the end of the file"),
    ("expires_at", "Unix time"),
    ("damaged_task_ids", "Tasks with a damaged record; they can only be deleted"),
    ("installed", "If false, the first use takes some minutes"),
];

/// The schema of what a payload looks like when it is written: keys that may be missing are not required.
pub(crate) fn schema_of<T: JsonSchema>() -> Schema {
    let settings =
        SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.meta_schema = None);
    settings.into_generator().into_root_schema_for::<T>()
}

/// The keys that are named of a type inside another payload. Its own status names all of them; of a type without keys here, a
/// schema only says that it is an object.
const LISTED: [(&str, &[&str]); 9] = [
    ("Environment", &["name", "version", "description", "default_packages", "installed"]),
    ("Task", &["task_id", "environment", "state", "expires_at", "command_count", "stop_reason"]),
    ("TaskExec", &["sequence", "stdout", "stderr", "exit_code", "outcome", "timed_out", "execution_mode"]),
    ("TaskDetached", &["sequence", "outcome"]),
    ("LastCommand", &["sequence", "command", "exit_code"]),
    ("NetworkPolicy", &[]),
    ("NetworkDenial", &[]),
    ("PublishedPort", &[]),
    ("TaskLogEntry", &["sequence", "command", "stdout", "stderr", "exit_code", "outcome", "timed_out"]),
];

/// Shortens a schema, and keeps only `keys` of its properties, or all if `keys` is empty. Types, enumerations, and which keys
/// are required stay.
pub(crate) fn compact(schema: Schema, keys: &[&str]) -> Object {
    let mut schema = Value::from(schema);
    if !keys.is_empty() {
        keep(&mut schema, keys);
    }
    for (name, keys) in LISTED {
        if let Some(listed) = schema.pointer_mut(&format!("/$defs/{name}")) {
            match keys {
                [] => *listed = json!({ "type": "object" }),
                keys => keep(listed, keys),
            }
        }
    }
    inline_words(&mut schema);
    shorten(&mut schema);
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    // Clients insist on an object, which a choice between objects does not say by itself.
    schema.insert("type".to_owned(), "object".into());
    schema
}

fn keep(schema: &mut Value, keys: &[&str]) {
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.retain(|key, _| keys.contains(&key.as_str()));
    }
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|key| key.as_str().is_some_and(|key| keys.contains(&key)));
    }
}

/// Puts definitions that are short, such as enumerations, in the place of references to them.
fn inline_words(schema: &mut Value) {
    let Some(Value::Object(mut definitions)) = schema.as_object_mut().and_then(|root| root.remove("$defs"))
    else {
        return;
    };
    definitions.values_mut().for_each(shorten);
    let (short, long): (Map<_, _>, Map<_, _>) =
        definitions.into_iter().partition(|(_, definition)| definition.get("properties").is_none());
    let mut whole = json!({ "root": schema.take(), "$defs": long });
    replace(&mut whole, &short);
    *schema = whole["root"].take();
    let (Some(root), Value::Object(mut long)) = (schema.as_object_mut(), whole["$defs"].take()) else {
        return;
    };
    let all = Value::Object(root.clone()).to_string() + &Value::Object(long.clone()).to_string();
    long.retain(|name, _| all.contains(&format!("\"#/$defs/{name}\"")));
    if !long.is_empty() {
        root.insert("$defs".to_owned(), Value::Object(long));
    }
}

fn replace(schema: &mut Value, short: &Map<String, Value>) {
    match schema {
        Value::Object(object) => {
            let name = object.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
            if let Some(definition) = name.and_then(|name| short.get(name)) {
                *schema = definition.clone();
                return;
            }
            object.values_mut().for_each(|value| replace(value, short));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, short)),
        _ => {}
    }
}

/// Removes what a model does not need: documentation of Rust types, type names, and number formats.
fn shorten(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for key in ["description", "title", "format", "minimum", "default"] {
                object.remove(key);
            }
            if let Some(words) = object.get("oneOf").and_then(constants) {
                object.remove("oneOf");
                object.insert("enum".to_owned(), words);
            }
            if let Some(nullable) = object.get("anyOf").and_then(nullable) {
                *object = nullable;
            }
            // The values show that they are strings.
            if object.contains_key("enum") {
                object.remove("type");
            }
            for (key, value) in object.iter_mut() {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => {
                        for (name, property) in properties.iter_mut() {
                            shorten(property);
                            describe(name, property);
                        }
                    }
                    ("required" | "enum" | "type", _) => {}
                    (_, value) => shorten(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}

fn describe(name: &str, property: &mut Value) {
    let meaning = MEANINGS.iter().find(|(known, _)| *known == name);
    if let (Some((_, meaning)), Some(property)) = (meaning, property.as_object_mut()) {
        property.insert("description".to_owned(), (*meaning).into());
    }
}

/// The words of a choice between constants.
fn constants(choice: &Value) -> Option<Value> {
    let words: Option<Vec<Value>> =
        choice.as_array()?.iter().map(|word| word.get("const").cloned()).collect();
    words.map(Value::Array)
}

/// A choice between some words and null is one of the words or null.
fn nullable(choice: &Value) -> Option<Map<String, Value>> {
    let [value, null] = &choice.as_array()?[..] else { return None };
    if null.get("type")? != "null" {
        return None;
    }
    let mut words = value.get("enum").cloned().or_else(|| constants(value.get("oneOf")?))?;
    words.as_array_mut()?.push(Value::Null);
    Some(Map::from_iter([("enum".to_owned(), words)]))
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;
    use crate::server::describe;
    use crate::tools::Tool;

    use super::*;

    /// Whatever a client reads of all tools.
    #[test]
    fn all_tools_together_fit_into_what_a_model_can_be_asked_to_read() {
        let policy = Policy::default();
        let size: usize = Tool::ALL
            .into_iter()
            .map(|tool| serde_json::to_string(&describe(&policy, tool, 4)).unwrap().len() + ",".len())
            .sum();
        assert!(size < 25_000, "{size} bytes");
    }

    #[test]
    fn nothing_is_said_in_the_words_of_rust() {
        for tool in Tool::ALL {
            let schema = Value::Object(tool.output_schema()).to_string();
            for word in ["[`", "None", "::", "$schema", "uint"] {
                assert!(!schema.contains(word), "{}: {schema}", tool.name());
            }
            assert!(jsonschema_like(&tool.output_schema()), "{}", tool.name());
        }
    }

    /// Every required key has a property, and every reference a definition.
    fn jsonschema_like(root: &Object) -> bool {
        fn sound(value: &Value, root: &Object) -> bool {
            match value {
                Value::Object(object) => {
                    let required = object.get("required").and_then(Value::as_array).into_iter().flatten();
                    let known = |key: &Value| {
                        let properties = object.get("properties").and_then(Value::as_object);
                        properties.is_some_and(|properties| {
                            key.as_str().is_some_and(|key| properties.contains_key(key))
                        })
                    };
                    let reference = object.get("$ref").and_then(Value::as_str);
                    let leads = |path: &str| {
                        let name = path.rsplit('/').next().unwrap_or_default();
                        root.get("$defs").and_then(|definitions| definitions.get(name)).is_some()
                    };
                    required.into_iter().all(known)
                        && reference.is_none_or(leads)
                        && object.values().all(|value| sound(value, root))
                }
                Value::Array(items) => items.iter().all(|item| sound(item, root)),
                _ => true,
            }
        }
        sound(&Value::Object(root.clone()), root)
    }
}
