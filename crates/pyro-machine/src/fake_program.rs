//! Shell scripts that take the place of a program in tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes `script` to an executable file in `dir`, and returns its path.
pub(crate) fn fake_program(dir: &Path, script: &str) -> PathBuf {
    let program = dir.join("program");
    // Another process writes it. Otherwise a child that another test forks meanwhile would keep the file open for writing,
    // and running the program would fail.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#"printf %s "$1" > "$2""#, "sh", &format!("#!/bin/sh\n{script}\n")]).arg(&program);
    assert!(shell.status().expect("a shell").success());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    program
}
