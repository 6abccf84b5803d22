//! Runs what nearly every command will need once, so that a template holds those pages already.

use std::process::{Command, Stdio};

/// Programs that only read. Nothing that makes keys, random numbers or temporary files may be here: every
/// machine restored from the template would share them.
const PROGRAMS: [&str; 3] = ["true", "git --version", "python3 -S -c pass"];

/// Runs each program through the shell that commands are run by. One that is not in the image is no fault.
pub(crate) fn run() {
    for program in PROGRAMS {
        let _ = Command::new("/bin/sh")
            .args(["-lc", program])
            .env("HOME", "/nonexistent")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    // What was written so far goes to the layer's image, which is saved beside the memory.
    rustix::fs::sync();
}
