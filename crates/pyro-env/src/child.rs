//! Commands for the build's tools, which inherit no descriptors of this process except the standard streams.
#![expect(unsafe_code, reason = "code between fork and exec")]

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// First descriptor after the standard streams.
const FIRST_DESCRIPTOR: RawFd = 3;

/// Returns a command that runs `program`. Descriptors that another part of this process opened without close-on-exec
/// stay closed to it.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let close_descriptors = || {
        close_fds::set_fds_cloexec(FIRST_DESCRIPTOR, &[]);
        Ok(())
    };
    // SAFETY: the closure marks descriptors close-on-exec by system calls alone, which close_fds documents as
    // async-signal-safe on Linux; it neither allocates nor takes locks.
    unsafe { command.pre_exec(close_descriptors) };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_inherits_only_its_standard_streams() {
        let secret = tempfile::NamedTempFile::new().expect("temporary file");
        // `dup` does not set close-on-exec.
        let leaky = rustix::io::dup(secret.as_file()).expect("duplicated");
        assert!(!rustix::io::fcntl_getfd(&leaky).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
        let list = |mut command: Command| {
            let output = command.args(["-l", "/proc/self/fd"]).output().expect("started");
            assert!(output.status.success());
            String::from_utf8(output.stdout).expect("UTF-8")
        };
        let name = secret.path().to_str().expect("UTF-8");
        let (ours, plain) = (list(command(Path::new("/bin/ls"))), list(Command::new("/bin/ls")));
        assert!(plain.contains(name), "the descriptor must be one that a plain child inherits: {plain}");
        assert!(!ours.contains(name), "{ours}");
    }
}
