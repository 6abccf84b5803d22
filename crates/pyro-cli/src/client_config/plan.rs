//! The planned change of one file: computed first, shown, and written only on request.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::clients::Client;
use super::entry::Entry;
use super::error::{InstallError, Problem};
use super::file;

const LEFT_ALONE: &str = "correct the file, or move it away; it was not changed";
/// Stands for a value that is not shown.
const MASK: &str = "***";

/// A change that was computed and not made.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) file: PathBuf,
    pub(crate) change: Change,
    before: Option<String>,
    after: String,
}

/// The kind of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is no file yet.
    Create,
    /// The file has no entry of this name.
    Add,
    /// It has a different one: here in the file's format, with possible secrets masked.
    Replace(String),
    /// It has this entry already.
    Nothing,
}

impl Plan {
    /// Reads the file and computes its new text.
    pub(crate) fn new(
        file: PathBuf,
        client: &Client,
        name: &str,
        entry: &Entry,
    ) -> Result<Self, InstallError> {
        let shown = file.display();
        let unreadable = |problem: Problem| {
            InstallError::new(format!("cannot parse {shown}")).caused_by(problem).hint(LEFT_ALONE)
        };
        let before = file::read(&file)?;
        let text = before.as_deref().unwrap_or_default();
        let document = client.format.read(text).map_err(unreadable)?;
        let no_place = |problem: String| {
            InstallError::new(format!("cannot add a server to {shown}: {problem}")).hint(LEFT_ALONE)
        };
        let top = document.as_object().ok_or_else(|| no_place("it does not hold an object".to_owned()))?;
        let servers @ (None | Some(Value::Object(_))) = top.get(client.key) else {
            return Err(no_place(format!("`{}` is not an object", client.key)));
        };
        let wanted: Map<String, Value> = entry.iter().cloned().collect();
        let change = match servers.and_then(|servers| servers.get(name)) {
            Some(Value::Object(present)) if *present == wanted => {
                return Ok(Self { file, change: Change::Nothing, after: text.to_owned(), before });
            }
            Some(Value::Object(present)) => {
                let mut present: Entry =
                    present.iter().map(|(field, value)| (field.clone(), value.clone())).collect();
                // In the order of the new one, for comparison.
                present.sort_by_key(|(field, _)| {
                    entry.iter().position(|(name, _)| name == field).unwrap_or(usize::MAX)
                });
                present.iter_mut().for_each(|(field, value)| hide_secrets(field, value));
                Change::Replace(client.snippet(name, &present)?)
            }
            Some(other) => {
                let mut other = other.clone();
                hide_secrets(name, &mut other);
                Change::Replace(format!("{other}\n"))
            }
            None if before.is_some() => Change::Add,
            None => Change::Create,
        };
        let by_hand = || {
            let message = format!("cannot change only pyro's entry in {shown}: its layout does not allow it");
            InstallError::new(message).hint("add the entry by hand; the file was not changed")
        };
        let after = client
            .format
            .edited(text, client.key, name, entry)
            .map_err(|problem| by_hand().caused_by(problem))?;
        let mut expected = document;
        expected[client.key][name] = Value::Object(wanted);
        if client.format.read(&after).ok() != Some(expected) {
            return Err(by_hand());
        }
        Ok(Self { file, change, before, after })
    }

    /// Makes the change. Returns the path of the copy of the old file, if there was one.
    pub(crate) fn write(&self) -> Result<Option<PathBuf>, InstallError> {
        match self.change {
            Change::Nothing => Ok(None),
            _ => file::replace(&self.file, self.before.as_deref(), &self.after),
        }
    }
}

/// Masks the values that an entry passes to its server: it may be another server's, with its tokens.
fn hide_secrets(name: &str, value: &mut Value) {
    let secret = ["env", "environment", "headers", "http_headers"].contains(&name);
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(field, value)| {
            if secret {
                *value = MASK.into();
            } else {
                hide_secrets(field, value);
            }
        }),
        Value::Array(values) => values.iter_mut().for_each(|value| hide_secrets(name, value)),
        other if secret => *other = MASK.into(),
        _ => {}
    }
}

impl Client {
    /// Returns the entry as the whole text of a file.
    pub(crate) fn snippet(&self, name: &str, entry: &Entry) -> Result<String, InstallError> {
        self.format.edited("", self.key, name, entry).map_err(|problem| {
            InstallError::new(format!("cannot describe `{name}` for {}", self.name)).caused_by(problem)
        })
    }
}
