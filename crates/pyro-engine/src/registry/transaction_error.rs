//! Converts SQLite's errors into errors that say what to do.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::{Error, ErrorKind, Hint};

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransactionError {
    /// An error of the file or the statement.
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    /// An error of the request.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl TransactionError {
    /// Converts the error into that of the caller's error; `file` is the registry's.
    pub(super) fn into_error(self, file: &Path) -> Error {
        let error = match self {
            Self::Refused(error) => return error,
            Self::Sql(error) => error,
        };
        let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull) || is_full(file);
        let file = file.display();
        let unusable = |what: String, hint: Hint| Error::new(ErrorKind::StateUnusable, what).hint(hint);
        let described = match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => unusable(
                format!("the state file {file} is damaged"),
                Hint::MoveStateFile { file: file.to_string() },
            ),
            // If its shared memory does not fit on the disk, SQLite reports an I/O error.
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) if full => {
                unusable(format!("no space left for the state file {file}"), Hint::FreeState)
            }
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                unusable(format!("the state file {file} cannot be opened for writing"), Hint::WritableState)
            }
            Some(ErrorCode::SystemIoFailure) => {
                unusable(format!("reading or writing the state file {file} failed"), Hint::CheckDisk)
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => unusable(
                format!("the state file {file} stayed locked by another process"),
                Hint::EndHolderOrRetry,
            ),
            // A table or column is missing: the version matches, but another program changed the tables.
            Some(ErrorCode::Unknown) => unusable(
                format!("the state file {file} does not have pyro's tables"),
                Hint::MoveStateFile { file: file.to_string() },
            ),
            None if is_row_error(&error) => {
                unusable(format!("a record in the state file {file} is damaged"), Hint::DeleteDamaged)
            }
            _ => Error::internal(format!("a statement on the state file {file} failed")),
        };
        described.caused_by(error)
    }
}

/// Returns whether the disk that holds `file` has less free space than SQLite's own files need.
fn is_full(file: &Path) -> bool {
    const NEEDED_BYTES: u64 = 256 * 1024;
    let Some(directory) = file.parent() else { return false };
    rustix::fs::statvfs(directory)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < NEEDED_BYTES)
}

/// Returns whether the error is in one row's values and not in the file or the statement.
pub(super) fn is_row_error(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
    )
}
