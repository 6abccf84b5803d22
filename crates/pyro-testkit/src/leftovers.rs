//! What an ended VM must not leave.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::process;

/// Describes everything that is left of VMs in a sandbox. Empty if nothing is left.
pub fn find(sandbox: &Path, state: &Path) -> Vec<String> {
    let mut left: Vec<String> =
        process::mentioning(sandbox).iter().map(|process| format!("process {process:?}")).collect();
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") {
        let ours = mounts.lines().filter(|line| line.contains(&*sandbox.to_string_lossy()));
        left.extend(ours.map(|line| format!("mount {line}")));
    }
    left.extend(files(state));
    left.extend(records(&state.join("state.sqlite3")));
    left
}

fn files(state: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for name in names(state) {
        match name.as_str() {
            "state.sqlite3" | "state.sqlite3-wal" | "state.sqlite3-shm" | "accelerator.json"
            | "boot-times.json" | "mcp-token" => {}
            // They stay. One whose process was killed is removed when the next is made.
            "templates" => {}
            "vms" => left.extend(names(&state.join("vms")).into_iter().map(|vm| format!("file vms/{vm}"))),
            "spares" => {
                let kinds = names(&state.join("spares")).into_iter();
                left.extend(kinds.filter(|kind| kind != "lock").map(|kind| format!("file spares/{kind}")));
            }
            "layers" => {
                let layers = names(&state.join("layers")).into_iter();
                left.extend(
                    layers
                        .filter(|layer| !layer.ends_with(".img"))
                        .map(|layer| format!("file layers/{layer}")),
                );
            }
            other => left.push(format!("file {other}")),
        }
    }
    left
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// Records of VMs that exist according to pyro. A file that is not a database has none.
fn records(file: &Path) -> Vec<String> {
    let Ok(connection) = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE) else {
        return Vec::new();
    };
    let rows = || -> rusqlite::Result<Vec<String>> {
        let mut statement =
            connection.prepare("SELECT vm_id || ' ' || state FROM vms WHERE expired_at IS NULL")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    rows().unwrap_or_default().into_iter().map(|row| format!("record {row}")).collect()
}
