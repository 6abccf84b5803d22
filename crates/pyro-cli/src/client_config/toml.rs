//! TOML.

use serde::Serialize as _;
use serde_json::Value;
use toml_edit::ser::ValueSerializer;
use toml_edit::{DocumentMut, Item, Table, TomlError};

use super::entry::Entry;
use super::error::Problem;

pub(super) fn read(text: &str) -> Result<Value, Problem> {
    Ok(toml_edit::de::from_document(parse(text)?)?)
}

pub(super) fn edited(text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
    // The editor writes Unix line ends.
    let windows = text.matches("\r\n").count();
    match text.matches('\n').count() {
        _ if windows == 0 => edited_lines(text, key, name, entry),
        lines if lines == windows => {
            let edited = edited_lines(&text.replace("\r\n", "\n"), key, name, entry)?;
            Ok(edited.replace('\n', "\r\n"))
        }
        _ => Err("some of its lines end with CR LF and others with LF".into()),
    }
}

fn edited_lines(text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
    let mut document = parse(text)?;
    let servers = document.entry(key).or_insert_with(|| {
        let mut table = Table::new();
        // No header of its own: `[mcp_servers.pyro]` implies it.
        table.set_implicit(true);
        Item::Table(table)
    });
    let inline = servers.is_inline_table();
    let servers = servers.as_table_like_mut().ok_or("the file has no object for servers")?;
    let mut table = Table::new();
    for (field, value) in entry {
        table.insert(field, item(value)?);
    }
    match servers.get_mut(name) {
        Some(Item::Table(present)) => {
            table.set_position(present.position());
            *table.decor_mut() = present.decor().clone();
            *present = table;
        }
        Some(present) => *present = Item::Value(table.into_inline_table().into()),
        None if inline => drop(servers.insert(name, Item::Value(table.into_inline_table().into()))),
        None => drop(servers.insert(name, Item::Table(table))),
    }
    Ok(document.to_string())
}

/// The error names the line and does not quote it, as the parser would: it may hold a secret.
fn parse(text: &str) -> Result<DocumentMut, Problem> {
    text.parse().map_err(|error: TomlError| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("{} on line {}", error.message(), before.matches('\n').count() + 1).into()
    })
}

fn item(value: &Value) -> Result<Item, Problem> {
    Ok(match value.serialize(ValueSerializer::new())? {
        toml_edit::Value::InlineTable(table) => Item::Table(table.into_table()),
        value => Item::Value(value),
    })
}
