//! JSON, with comments.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstRootNode};
use serde_json::{Map, Value};

use super::entry::Entry;
use super::error::Problem;

/// The extensions that editors of settings files accept. The rest of JSON5 is refused: no client reads it.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn read(text: &str) -> Result<Value, Problem> {
    let root = CstRootNode::parse(text, &OPTIONS)?;
    match root.value() {
        None => Ok(Value::Object(Map::new())),
        Some(value) => value.to_serde_value().ok_or_else(|| "it contains a value that is not JSON".into()),
    }
}

pub(super) fn edited(text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
    let root = CstRootNode::parse(text, &OPTIONS)?;
    let servers = root.object_value_or_create().and_then(|top| top.object_value_or_create(key));
    let servers = servers.ok_or("the file has no object for servers")?;
    let entry =
        CstInputValue::Object(entry.iter().map(|(field, value)| (field.clone(), input(value))).collect());
    match servers.get(name) {
        Some(present) => present.set_value(entry),
        None => drop(servers.append(name, entry)),
    }
    Ok(root.to_string())
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(value) => CstInputValue::Number(value.to_string()),
        Value::String(value) => CstInputValue::String(value.clone()),
        Value::Array(values) => CstInputValue::Array(values.iter().map(input).collect()),
        Value::Object(values) => {
            CstInputValue::Object(values.iter().map(|(name, value)| (name.clone(), input(value))).collect())
        }
    }
}
