//! Names of tasks and services, for a shell that completes a word: read without waiting, and without changing anything.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::schema;
use crate::state_dir;

/// How long another process may hold the file. The person who types waits for this.
const BUSY_TIMEOUT: Duration = Duration::from_millis(200);

/// What a state directory has names for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNames {
    /// The tasks, sorted by their ids.
    pub tasks: Vec<KnownTask>,
    /// Names of services, each with the id of its task.
    pub services: Vec<(String, String)>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTask {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its environment.
    pub environment: String,
    /// The state that was recorded last.
    pub state: String,
}

/// Returns what is known in a state directory; nothing, if it cannot be read now.
pub fn known_names(base_dir: &Path) -> KnownNames {
    read(base_dir).unwrap_or_default()
}

/// Opens the file for reading. Where no other process uses it, SQLite would make files next to it, which it cannot remove without
/// the right to write, unless it may assume that the file does not change. If a process begins to change it now, what is read may be
/// old or not make sense, which here does no harm.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let log = [path.as_os_str(), OsStr::new("-wal")].into_iter().collect::<OsString>();
    if Path::new(&log).exists() {
        return Connection::open_with_flags(path, flags);
    }
    let mut uri = b"file:".to_vec();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(*byte),
            byte => uri.extend(format!("%{byte:02x}").bytes()),
        }
    }
    uri.extend(b"?immutable=1");
    Connection::open_with_flags(OsStr::from_bytes(&uri), flags | OpenFlags::SQLITE_OPEN_URI)
}

fn read(base_dir: &Path) -> rusqlite::Result<KnownNames> {
    let connection = open(&state_dir::registry(base_dir))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != schema::latest() {
        return Ok(KnownNames::default());
    }
    let mut tasks = connection.prepare(
        "SELECT vm_id, name, environment, state FROM vms WHERE is_task = 1 AND expired_at IS NULL ORDER BY vm_id",
    )?;
    let tasks = tasks.query_map([], |row| {
        Ok(KnownTask { id: row.get(0)?, name: row.get(1)?, environment: row.get(2)?, state: row.get(3)? })
    })?;
    let tasks = tasks.collect::<Result<_, _>>()?;
    let mut services = connection.prepare("SELECT name, task_id FROM services ORDER BY name, task_id")?;
    let services = services.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(KnownNames { tasks, services: services.collect::<Result<_, _>>()? })
}
