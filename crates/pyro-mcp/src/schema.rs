//! Schemas of results for models. A model pays for every word of `tools/list`, and most key names explain themselves.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::arguments::Object;
use crate::tools::Tool;

/// Descriptions of keys whose names do not explain themselves, and the tools that have them: the first that a client reads, also if
/// it is offered only some.
const MEANINGS: [(&str, &str, &[Tool]); 8] = [
    (
        "exit_code",
        "-S if signal S ended it, 124 if it timed out",
        &[Tool::VmRun, Tool::TaskExec, Tool::TaskLogs],
    ),
    ("stdout_truncated", "Number of bytes that were dropped", &[Tool::VmRun]),
    ("sequence", "For task_wait, task_kill, task_logs", &[Tool::TaskExec]),
    ("outcome", "unknown: it may have run completely or partly", &[Tool::TaskExec, Tool::TaskLogs]),
    ("next_offset", "offset of the next part; null at the end of the file", &[Tool::TaskReadFile]),
    ("expires_at", "Unix time", &[Tool::VmCreate, Tool::VmStatus, Tool::TaskCreate, Tool::TaskStatus]),
    ("damaged_task_ids", "Tasks with a damaged record; they can only be deleted", &[Tool::TaskList]),
    ("installed", "If false, the first use takes some minutes", &[Tool::VmListEnvironments]),
];

/// The schema of what a payload looks like when it is written: keys that may be missing are not required.
pub(crate) fn schema_of<T: JsonSchema>() -> Schema {
    let settings =
        SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.meta_schema = None);
    settings.into_generator().into_root_schema_for::<T>()
}

/// The keys that are named of a type inside another payload. Its own status names all of them; of a type without keys here, a
/// schema only says that it is an object.
const LISTED: [(&str, &[&str]); 16] = [
    ("Environment", &["name", "description", "installed"]),
    ("Task", &["task_id", "environment", "state", "expires_at"]),
    ("TaskExec", &["sequence", "stdout", "stderr", "exit_code", "outcome", "timed_out", "execution_mode"]),
    ("FileInfo", &["path", "kind", "size_bytes"]),
    ("TaskDetached", &["sequence", "outcome"]),
    ("LastCommand", &["sequence", "command", "exit_code"]),
    ("NetworkPolicy", &[]),
    ("NetworkDenial", &[]),
    ("PublishedPort", &[]),
    ("TaskService", &[]),
    ("Service", &["name", "state", "exit_code", "reason", "last_output"]),
    ("DirectoryMount", &[]),
    ("TaskShellOutput", &["text", "cursor", "dropped_bytes", "reason", "running", "exit_code"]),
    ("TaskShells", &["shells"]),
    ("TaskShell", &["shell_id", "command", "running"]),
    ("TaskLogEntry", &["sequence", "command", "stdout", "stderr", "exit_code", "outcome", "timed_out"]),
];

/// Shortens a schema, and keeps only `keys` of its properties, or all if `keys` is empty. Types, enumerations, and which keys
/// are required stay.
///
/// Only keywords that mean the same in draft 7 and in 2020-12 remain, and no references: clients resolve them against parts of
/// the schema that they have not kept.
pub(crate) fn compact(tool: Tool, schema: Schema, keys: &[&str]) -> Object {
    let mut schema = Value::from(schema);
    let mut definitions = match schema.as_object_mut().and_then(|root| root.remove("$defs")) {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    for (name, keys) in LISTED {
        match definitions.get_mut(name) {
            Some(listed) if keys.is_empty() => *listed = json!({ "type": "object" }),
            Some(Value::Object(listed)) => keep(listed, keys),
            _ => {}
        }
    }
    inline(&mut schema, &definitions);
    shorten(tool, &mut schema);
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    if let Some(Value::Array(choices)) = schema.remove("anyOf") {
        schema = merged(&choices);
    }
    // Clients insist on an object.
    schema.insert("type".to_owned(), "object".into());
    if !keys.is_empty() {
        keep(&mut schema, keys);
    }
    // Draft 4 has no empty list.
    schema.retain(|keyword, value| {
        keyword != "required" || value.as_array().is_none_or(|names| !names.is_empty())
    });
    schema
}

fn keep(schema: &mut Object, keys: &[&str]) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.retain(|key, _| keys.contains(&key.as_str()));
    }
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|key| key.as_str().is_some_and(|key| keys.contains(&key)));
    }
}

/// Puts definitions in the place of references to them. No type of the contract contains itself.
fn inline(schema: &mut Value, definitions: &Map<String, Value>) {
    match schema {
        Value::Object(object) => {
            let name = object.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
            if let Some(definition) = name.and_then(|name| definitions.get(name)) {
                *schema = definition.clone();
                return inline(schema, definitions);
            }
            object.values_mut().for_each(|value| inline(value, definitions));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| inline(item, definitions)),
        _ => {}
    }
}

/// One object in place of a choice between objects, which clients that keep only `properties` and `required` do not see: it has
/// the properties of all of them, and requires what all of them require.
fn merged(choices: &[Value]) -> Object {
    let mut properties = Map::new();
    for choice in choices {
        for (name, property) in choice["properties"].as_object().into_iter().flatten() {
            match properties.get(name) {
                None => {
                    properties.insert(name.clone(), property.clone());
                }
                Some(known) if known == property => {}
                Some(known) => {
                    let either = either(known, property);
                    properties.insert(name.clone(), either);
                }
            }
        }
    }
    let required = |choice: &Value, name: &String| {
        choice["required"].as_array().is_some_and(|names| names.iter().any(|each| each == name))
    };
    let required: Vec<_> = properties
        .keys()
        .filter(|name| choices.iter().all(|choice| required(choice, name)))
        .cloned()
        .collect();
    Map::from_iter([
        ("properties".to_owned(), Value::Object(properties)),
        ("required".to_owned(), required.into()),
    ])
}

/// A property that is the one or the other.
fn either(one: &Value, other: &Value) -> Value {
    match (one["enum"].as_array(), other["enum"].as_array()) {
        (Some(words), Some(more)) => {
            let mut all = one.clone();
            let new = more.iter().filter(|word| !words.contains(word));
            all["enum"] = words.iter().chain(new).cloned().collect();
            all
        }
        _ => json!({ "anyOf": [one, other] }),
    }
}

/// Removes what a model does not need: documentation of Rust types, type names, and number formats.
fn shorten(tool: Tool, schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(nullable) = object.get("anyOf").and_then(nullable) {
                *object = nullable;
            }
            for key in ["description", "title", "format", "minimum", "default"] {
                object.remove(key);
            }
            if let Some(words) = object.get("oneOf").and_then(constants) {
                object.remove("oneOf");
                object.insert("enum".to_owned(), words);
            }
            // The values show that they are strings.
            if object.contains_key("enum") {
                object.remove("type");
            }
            for (key, value) in object.iter_mut() {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => {
                        for (name, property) in properties.iter_mut() {
                            shorten(tool, property);
                            describe(tool, name, property);
                        }
                    }
                    ("required" | "enum" | "type", _) => {}
                    (_, value) => shorten(tool, value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(tool, item)),
        _ => {}
    }
}

fn describe(tool: Tool, name: &str, property: &mut Value) {
    let meaning = MEANINGS.iter().find(|(known, _, tools)| *known == name && tools.contains(&tool));
    if let (Some((_, meaning, _)), Some(property)) = (meaning, property.as_object_mut()) {
        property.insert("description".to_owned(), (*meaning).into());
    }
}

/// The words of a choice between constants.
fn constants(choice: &Value) -> Option<Value> {
    let words: Option<Vec<Value>> =
        choice.as_array()?.iter().map(|word| word.get("const").cloned()).collect();
    words.map(Value::Array)
}

/// A choice between something and null: words or null, or an object or null.
fn nullable(choice: &Value) -> Option<Map<String, Value>> {
    let [value, null] = &choice.as_array()?[..] else { return None };
    if null.get("type")? != "null" {
        return None;
    }
    if let Some(mut words) = value.get("enum").cloned().or_else(|| constants(value.get("oneOf")?)) {
        words.as_array_mut()?.push(Value::Null);
        return Some(Map::from_iter([("enum".to_owned(), words)]));
    }
    let mut value = value.as_object()?.clone();
    let kind = value.get("type")?.as_str()?.to_owned();
    value.insert("type".to_owned(), json!([kind, "null"]));
    Some(value)
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;
    use crate::server::describe;

    use super::*;

    /// Whatever a client reads of all tools.
    #[test]
    fn all_tools_together_fit_into_what_a_model_can_be_asked_to_read() {
        let policy = Policy::default();
        let size: usize = Tool::ALL
            .into_iter()
            .map(|tool| serde_json::to_string(&describe(&policy, tool, 4)).unwrap().len() + ",".len())
            .sum();
        assert!(size < 30_000, "{size} bytes");
    }

    /// What both draft 7 and 2020-12 define, and no more: some clients reject unknown keywords. A reference would not survive
    /// clients that keep only part of a schema.
    const PORTABLE: [&str; 7] =
        ["type", "properties", "required", "items", "enum", "description", "additionalProperties"];

    #[test]
    fn every_client_can_compile_every_schema() {
        for tool in Tool::ALL {
            for schema in [tool.output_schema(), Policy::default().input_schema(tool)] {
                assert_eq!(schema["type"], "object", "{}", tool.name());
                assert!(schema.contains_key("properties"), "{}", tool.name());
                each(&Value::Object(schema), &mut |schema| {
                    for keyword in schema.keys() {
                        assert!(
                            PORTABLE.contains(&keyword.as_str()),
                            "{}: {keyword} in {schema:?}",
                            tool.name()
                        );
                    }
                    let properties = schema.get("properties").and_then(Value::as_object);
                    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                        let known = properties.is_some_and(|properties| {
                            name.as_str().is_some_and(|name| properties.contains_key(name))
                        });
                        assert!(known, "{}: {name} in {schema:?}", tool.name());
                    }
                });
            }
        }
    }

    /// The rules of strict function calling (no `default`, no objects with arbitrary keys) and of Gemini's subset of OpenAPI
    /// (one type each, words only for strings).
    #[test]
    fn arguments_convert_for_strict_models() {
        let limited = Policy {
            environments: vec!["debian:12".to_owned()],
            no_network: true,
            max_vcpu_count: Some(2),
            max_ttl_seconds: Some(300),
            ..Policy::default()
        };
        for (policy, tool) in
            [Policy::default(), limited].iter().flat_map(|policy| Tool::ALL.map(|tool| (policy, tool)))
        {
            let root = policy.input_schema(tool);
            each(&Value::Object(root), &mut |schema| {
                let name = tool.name();
                let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{name}: {schema:?}"));
                for keyword in ["default", "additionalProperties", "anyOf", "format"] {
                    assert!(!schema.contains_key(keyword), "{name}: {schema:?}");
                }
                assert_eq!(schema.contains_key("items"), kind == "array", "{name}: {schema:?}");
                assert_eq!(schema.contains_key("properties"), kind == "object", "{name}: {schema:?}");
                assert!(kind == "string" || !schema.contains_key("enum"), "{name}: {schema:?}");
            });
        }
    }

    #[test]
    fn a_command_that_ended_and_one_that_runs_are_one_object() {
        let schema = Value::Object(Tool::TaskExec.output_schema());
        assert!(
            schema["properties"]["exit_code"].is_object() && schema["properties"]["sequence"].is_object()
        );
        let words = schema["properties"]["outcome"]["enum"].as_array().unwrap();
        assert!(words.contains(&"running".into()) && words.contains(&"exited".into()), "{schema}");
        let required = schema["required"].as_array().unwrap();
        assert!(required.contains(&"sequence".into()) && !required.contains(&"exit_code".into()), "{schema}");
    }

    /// Passes a schema and every schema in it to `check`.
    fn each(schema: &Value, check: &mut impl FnMut(&Object)) {
        let object = schema.as_object().unwrap_or_else(|| panic!("not a schema: {schema}"));
        check(object);
        for (keyword, value) in object {
            match keyword.as_str() {
                "properties" => {
                    value.as_object().unwrap().values().for_each(|property| each(property, check))
                }
                "items" => each(value, check),
                "additionalProperties" if value.is_object() => each(value, check),
                "anyOf" => value.as_array().unwrap().iter().for_each(|choice| each(choice, check)),
                _ => {}
            }
        }
    }

    #[test]
    fn nothing_is_said_in_the_words_of_rust() {
        for tool in Tool::ALL {
            let schema = Value::Object(tool.output_schema()).to_string();
            for word in ["[`", "None", "::", "$schema", "uint"] {
                assert!(!schema.contains(word), "{}: {schema}", tool.name());
            }
        }
    }
}
