//! The agent's exemption from the OOM killer, which its commands must not inherit.
//!
//! The file with the agent's score is opened once. A command may unmount `/proc` or mount something over it; later commands
//! still start, and are still candidates of the OOM killer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::proc::Proc;

/// The score of a process that the OOM killer leaves alone, and of an ordinary one.
const EXEMPT: &[u8] = b"-1000\n";
const ORDINARY: &[u8] = b"0\n";

/// Exempts this process, and returns the file with its score.
pub(super) fn exempt_this_process(proc: &Proc) -> io::Result<File> {
    let score = proc.own_oom_score_adj()?;
    score.write_all_at(EXEMPT, 0)?;
    Ok(score)
}

/// Runs `start`, which forks, while this process is an ordinary candidate of the OOM killer. A command must be one before
/// it can fork, or its children would be exempt.
///
/// # Errors
/// The exemption could not be given up; `start` was not called. An exempt command could use up the machine's memory, and
/// the kernel would then panic because it finds no process to kill.
pub(super) fn without_exemption<T>(score: &File, start: impl FnOnce() -> T) -> io::Result<T> {
    score.write_all_at(ORDINARY, 0)?;
    let started = start();
    if let Err(error) = score.write_all_at(EXEMPT, 0) {
        // The command runs, and only the agent is less safe: that is not a failure of the command.
        eprintln!("pyro-guest: the agent can be killed when memory runs out: {error}");
    }
    Ok(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_start_runs_without_the_exemption() {
        let mut score = tempfile::tempfile().unwrap();
        score.write_all_at(EXEMPT, 0).unwrap();
        let read = |score: &File| {
            let mut start = [0; 2];
            score.read_exact_at(&mut start, 0).unwrap();
            start
        };
        let during = without_exemption(&score, || read(&score)).unwrap();
        assert_eq!((during, read(&score)), (*b"0\n", *b"-1"));
        // It cannot be given up: the start does not happen.
        score = File::open("/dev/null").unwrap();
        without_exemption(&score, || panic!("started")).unwrap_err();
    }
}
