//! Names and labels of tasks, and what a text stands for that a caller gives instead of an id.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{OptionalExtension as _, Transaction, named_params};
use std::collections::BTreeMap;

use super::transaction_error::TransactionError;
use super::{Registry, load, row};
use crate::{
    Caller, Error, ErrorKind, Hint, Kind, MIN_PREFIX_DIGITS, OwnerName, TaskChanges, VmId, check_labels,
};

/// Maximum number of tasks that an error about an ambiguous text lists.
const SHOWN_CANDIDATES: usize = 8;

impl Registry {
    /// Returns the id of the task that `text` stands for: its name, or the first digits of its id. Only tasks that `caller`
    /// may find are considered, those of damaged records included. Among tasks of the same name, the caller's own is meant.
    ///
    /// # Errors
    ///
    /// `NotFound`; `InvalidInput` if `text` stands for several tasks.
    pub(crate) fn resolve(&self, caller: &Caller, text: &str) -> Result<VmId, Error> {
        let candidates = self.read(|tx| match is_prefix(text) {
            true => candidates(tx, caller, "substr(vm_id, 1, length(:text)) = :text", text),
            false => candidates(tx, caller, "name = :text", text),
        })?;
        let own =
            candidates.iter().filter(|(_, owner)| owner.as_deref() == caller.owner().map(OwnerName::as_str));
        let own: Vec<&VmId> = own.map(|(id, _)| id).collect();
        match (candidates.as_slice(), own.as_slice()) {
            ([], _) => Err(Error::not_found(Kind::Task, text)),
            ([(only, _)], _) => Ok(only.clone()),
            (_, [only]) if !is_prefix(text) => Ok((*only).clone()),
            (several, _) => Err(ambiguous(text, several.iter().map(|(id, _)| id))),
        }
    }

    /// Checks that no other task of this owner has this name.
    ///
    /// # Errors
    ///
    /// `WrongState` if one has.
    pub(crate) fn check_name(&self, owner: Option<&OwnerName>, name: &str) -> Result<(), Error> {
        self.read(|tx| refuse_taken(tx, owner.map(OwnerName::as_str), name, None))
    }

    /// Changes the name, the labels, and the renewal of a task.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`]; `WrongState` if another task has the name, `InvalidInput` if there would be too many labels.
    pub(crate) fn update(&self, id: &VmId, changes: &TaskChanges) -> Result<(), Error> {
        self.write(|tx| {
            let mut record = load(tx, Kind::Task, id)?;
            match changes.name.as_deref() {
                None => {}
                Some("") => record.name = None,
                Some(name) => {
                    refuse_taken(tx, record.owner.as_deref(), name, Some(id))?;
                    record.name = Some(name.to_owned());
                }
            }
            record.labels.retain(|key, _| !changes.remove_labels.contains(key));
            record.labels.extend(changes.labels.clone());
            check_labels(&record.labels)?;
            if let Some(ttl_from) = changes.ttl_from {
                record.ttl_from = ttl_from;
            }
            record.update(tx)
        })
    }
}

/// Returns whether `text` can only be the beginning of an id. No name is hexadecimal.
fn is_prefix(text: &str) -> bool {
    (MIN_PREFIX_DIGITS..=VmId::LEN).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the tasks that match `condition` on `:text`, with their owners.
fn candidates(
    tx: &Transaction<'_>,
    caller: &Caller,
    condition: &str,
    text: &str,
) -> Result<Vec<(VmId, Option<String>)>, TransactionError> {
    let sql = format!(
        "SELECT vm_id, owner FROM vms WHERE is_task AND expired_at IS NULL AND {condition} ORDER BY created_at, vm_id"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(named_params! { ":text": text }, |row| {
        Ok((row.get(0).map(|row::Stored(id)| id)?, row.get(1)?))
    })?;
    let mut found: Vec<(VmId, Option<String>)> = row::readable(rows)?;
    found.retain(|(_, owner)| caller.finds(owner.as_deref()));
    Ok(found)
}

fn ambiguous<'a>(text: &str, candidates: impl ExactSizeIterator<Item = &'a VmId>) -> Error {
    let more = candidates.len().saturating_sub(SHOWN_CANDIDATES);
    let mut listed: Vec<String> = candidates.take(SHOWN_CANDIDATES).map(ToString::to_string).collect();
    if more > 0 {
        listed.push(format!("{more} more"));
    }
    let message = format!("'{text}' stands for several tasks: {}", listed.join(", "));
    Error::new(ErrorKind::InvalidInput, message).hint(Hint::MoreDigits)
}

/// Fails if a task of this owner, other than `this`, has the name.
pub(super) fn refuse_taken(
    tx: &Transaction<'_>,
    owner: Option<&str>,
    name: &str,
    this: Option<&VmId>,
) -> Result<(), TransactionError> {
    let sql = "SELECT vm_id FROM vms WHERE name = :name AND owner IS :owner AND vm_id IS NOT :this";
    let values = named_params! { ":name": name, ":owner": owner, ":this": this.map(VmId::as_str) };
    let taken: Option<String> = tx.query_row(sql, values, |row| row.get(0)).optional()?;
    match taken {
        None => Ok(()),
        Some(id) => {
            let message = format!("task name '{name}' is in use by task {id}");
            Err(Error::new(ErrorKind::WrongState, message).hint(Hint::AnotherName).into())
        }
    }
}

/// Labels stored as JSON.
pub(super) struct StoredLabels(pub(super) BTreeMap<String, String>);

impl StoredLabels {
    pub(super) fn to_json(labels: &BTreeMap<String, String>) -> Option<String> {
        (!labels.is_empty()).then(|| serde_json::json!(labels).to_string())
    }
}

impl FromSql for StoredLabels {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let labels = serde_json::from_str(value.as_str()?);
        labels.map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

#[cfg(test)]
mod tests;
