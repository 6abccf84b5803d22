//! Opens the registry: the directory, the file, and the connection's settings.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema;
use super::transaction_error::TransactionError;
use crate::{Error, ErrorKind, Hint, state_dir};

/// How long a transaction waits for others. Transactions last milliseconds, so this limit is reached only if a process
/// was stopped in the middle of one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size to which SQLite's write-ahead log is cut when it restarts, in bytes.
const LOG_BYTES: u64 = 4 << 20;
/// Pause between attempts where SQLite does not wait by itself.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// A connection and the file that it was opened on.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Device and inode.
    identity: (u64, u64),
}

impl Opened {
    /// Opens `file` in `base_dir`; creates both if they do not exist.
    pub(super) fn open(base_dir: &Path, file: &Path) -> Result<Self, Error> {
        prepare_directory(base_dir)?;
        let connection = connect(file).map_err(|error| error.into_error(file))?;
        let metadata = fs::metadata(file).map_err(|error| {
            Error::new(ErrorKind::StateUnusable, format!("the state file {} vanished", file.display()))
                .hint(Hint::Retry)
                .caused_by(error)
        })?;
        Ok(Self { connection, identity: identity(&metadata) })
    }

    /// Returns whether `file` is still the opened file. Looks only at its name: opening and closing the file would drop
    /// the locks that SQLite holds on it for this process.
    pub(super) fn is_current(&self, file: &Path) -> bool {
        fs::metadata(file).is_ok_and(|metadata| identity(&metadata) == self.identity)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Creates the state directory unless it exists, and checks that no other user can change it.
pub(crate) fn prepare_directory(base_dir: &Path) -> Result<(), Error> {
    let shown = base_dir.display();
    DirBuilder::new().recursive(true).mode(0o700).create(base_dir).or_else(|error| {
        // Whatever exists at that path is checked below, with a better message.
        if error.kind() == io::ErrorKind::AlreadyExists {
            Ok(())
        } else {
            Err(unusable_directory(base_dir, error))
        }
    })?;
    let metadata = fs::metadata(base_dir).map_err(|error| unusable_directory(base_dir, error))?;
    match state_dir::problem(&metadata) {
        None => Ok(()),
        Some(problem) => {
            let message = format!("the state directory {shown} {problem}");
            Err(Error::new(ErrorKind::StateUnusable, message).hint(Hint::PrivateDirectory))
        }
    }
}

fn unusable_directory(base_dir: &Path, error: io::Error) -> Error {
    let message = format!("the state directory {} cannot be used", base_dir.display());
    Error::new(ErrorKind::StateUnusable, message).hint(Hint::WritableDirectory).caused_by(error)
}

fn connect(file: &Path) -> Result<Connection, TransactionError> {
    // Do not use the default flags: they parse a path that begins with `file:` as a URI.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(file, flags)?;
    // SQLite's journal files take this mode from the file, so set it before the first statement. A file of another user
    // is unchanged and fails below.
    let _ = fs::set_permissions(file, Permissions::from_mode(0o600));

    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Otherwise, the last process to close the file would write the journal back, wait for the disk, and remove the
    // journal, which the next process would have to create again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Check before any change: the file of a newer program must stay exactly the same.
    let version = patiently(|| schema::version(&connection))?;
    // A new file can give back the space of deleted records; later it would have to be rewritten for that.
    patiently(|| Ok(connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?))?;
    patiently(|| use_wal(&connection))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    if version < schema::latest() {
        patiently(|| schema::migrate(&mut connection))?;
        if version > 0 {
            rewrite(&connection);
        }
    }
    Ok(connection)
}

/// Rewrites a file of an earlier version, so that it can give back space. It stays usable if that is not possible now.
fn rewrite(connection: &Connection) {
    if let Err(error) = connection.execute_batch("VACUUM") {
        tracing::info!(%error, "the state file was not rewritten");
    }
}

fn use_wal(connection: &Connection) -> Result<(), TransactionError> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    let message = "the file system of the state directory cannot share a database between processes";
    Err(Error::new(ErrorKind::StateUnusable, message).hint(Hint::LocalDisk).into())
}

/// Repeats `attempt` while the file is busy. Switching to write-ahead logging and recovering a log need exclusive
/// access to the file and return "busy" regardless of the connection's timeout.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, TransactionError>) -> Result<T, TransactionError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match attempt() {
            Err(TransactionError::Sql(error))
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                thread::sleep(RETRY_PAUSE);
            }
            result => return result,
        }
    }
}
