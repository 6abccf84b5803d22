//! Runs programs that nearly every command needs, so that a template holds their pages.

use std::process::{Command, Stdio};

/// Programs that only read. Nothing that makes keys, random numbers or temporary files may be here: every
/// machine restored from the template would share them.
const PROGRAMS: [&str; 3] = ["true", "git --version", "python3 -S -c pass"];

/// Runs each program, then writes everything to disk: the layer's image is saved together with the memory.
pub(crate) fn run() {
    run_programs(&PROGRAMS);
    rustix::fs::sync();
}

/// Runs each program through the shell that also runs commands. One that is not in the image is skipped.
fn run_programs(programs: &[&str]) {
    for program in programs {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_or_is_missing_does_not_keep_the_next_from_running() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let last = format!("pwd > {0}; echo $HOME >> {0}; cat >> {0}", mark.display());
        run_programs(&["no-such-program-here", "exit 3", &last]);
        assert_eq!(std::fs::read_to_string(mark).unwrap(), "/\n/nonexistent\n");
    }
}
