//! Runs the build's tools: confined to their own namespaces, cancellable, and never outliving this process.
//!
//! Every command runs under `unshare` in new mount, process-id, IPC, UTS, and control group namespaces, without new
//! privileges. Those that only read and write files also have a network namespace of their own. Where the kernel lacks one of
//! these, only those for mounts and processes are new. Without root, each also runs in a new user
//! namespace where the user is root and all other ids are the subordinate ids. Killing the first process of that
//! namespace ends all others and undoes all mounts, so no cleanup is needed. `setpriv` ties `unshare` to this process,
//! and `--kill-child` ties the namespace to `unshare`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cancel::CancelFlag;
use crate::child;
use crate::error::{PullError, ToolFailure};

/// Longer than any step goes without output while it makes progress, even on slow machines and slow networks.
pub(crate) const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 60);

const TAIL_LINES: usize = 12;
const LONGEST_LINE: u64 = 4096;

/// Programs of the build. By default, they are searched for in the cache's search path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Builds the tree from the archive.
    pub mmdebstrap: PathBuf,
    /// Writes the base image.
    pub mkfs_erofs: PathBuf,
    /// Unpacks the kernel package.
    pub dpkg_deb: PathBuf,
    /// Reports the archive that the host itself uses.
    pub apt_get: PathBuf,
    /// Creates namespaces.
    pub unshare: PathBuf,
    /// Ties a process to its parent.
    pub setpriv: PathBuf,
    /// Removes trees whose files belong to subordinate ids.
    pub rm: PathBuf,
    /// Maps subordinate ids; only used without root.
    pub newuidmap: PathBuf,
    /// The archive's public keys.
    pub keyring: PathBuf,
    /// Where to search for the programs; set by the cache that uses them.
    pub search_path: OsString,
    /// Which namespaces they run in; found out before the first build.
    pub namespaces: Namespaces,
}

/// The namespaces of a build's programs, once they have been tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces(OnceLock<Kinds>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinds {
    All,
    /// Those without which a build could not be ended and cleaned up.
    MountAndPid,
}

impl Default for Tools {
    fn default() -> Self {
        Tools {
            mmdebstrap: "mmdebstrap".into(),
            mkfs_erofs: "mkfs.erofs".into(),
            dpkg_deb: "dpkg-deb".into(),
            apt_get: "apt-get".into(),
            unshare: "unshare".into(),
            setpriv: "setpriv".into(),
            rm: "rm".into(),
            newuidmap: "newuidmap".into(),
            keyring: "/usr/share/keyrings/debian-archive-keyring.gpg".into(),
            search_path: OsString::new(),
            namespaces: Namespaces::default(),
        }
    }
}

impl Tools {
    /// Fails with the first requirement of a build that this host does not meet.
    pub(crate) fn check(&self) -> Result<(), PullError> {
        let mut wanted = vec![
            (&self.mmdebstrap, "mmdebstrap"),
            (&self.mkfs_erofs, "erofs-utils"),
            (&self.dpkg_deb, "dpkg"),
            (&self.unshare, "util-linux"),
            (&self.setpriv, "util-linux"),
        ];
        if !is_root() {
            wanted.push((&self.newuidmap, "uidmap"));
        }
        for (tool, package) in wanted {
            if !self.is_executable_somewhere(tool) {
                return Err(PullError::ToolMissing { tool: tool.display().to_string(), package });
            }
        }
        if !self.keyring.is_file() {
            let tool = self.keyring.display().to_string();
            return Err(PullError::ToolMissing { tool, package: "debian-archive-keyring" });
        }
        self.check_namespaces()
    }

    /// Tries to create the namespaces, because only that is reliable: the kernel, capabilities, the security module,
    /// and the id files all play a part. Later commands run in those that were created.
    pub(crate) fn check_namespaces(&self) -> Result<(), PullError> {
        if self.namespaces.0.get().is_some() {
            return Ok(());
        }
        let kinds = match self.try_namespaces(Kinds::All) {
            Ok(()) => {
                tracing::debug!("builds run in namespaces of all kinds");
                Kinds::All
            }
            Err(missing) => {
                let failed = |reason| PullError::NoNamespaces { reason, is_root: is_root() };
                self.try_namespaces(Kinds::MountAndPid).map_err(failed)?;
                tracing::warn!(reason = %missing, "builds run in mount and PID namespaces only");
                Kinds::MountAndPid
            }
        };
        // Another thread has found out the same.
        let _ = self.namespaces.0.set(kinds);
        Ok(())
    }

    /// Returns why they cannot be created.
    fn try_namespaces(&self, kinds: Kinds) -> Result<(), String> {
        let mut command = self.in_namespaces(kinds, true, Path::new("true"));
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(stderr.lines().last().unwrap_or("no reason given").trim().to_owned())
    }

    fn is_executable_somewhere(&self, tool: &Path) -> bool {
        let usable =
            |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
        if tool.components().count() > 1 {
            return usable(tool);
        }
        let extra = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        std::env::split_paths(&self.search_path).chain(extra).any(|dir| usable(&dir.join(tool)))
    }

    /// Returns a command that runs `program` as (apparent) root in its own namespaces, with the host's network.
    pub(crate) fn confined(&self, program: &Path) -> Command {
        self.in_namespaces(self.kinds(), false, program)
    }

    /// Returns the same for a program that needs no network.
    pub(crate) fn offline(&self, program: &Path) -> Command {
        self.in_namespaces(self.kinds(), true, program)
    }

    fn kinds(&self) -> Kinds {
        self.namespaces.0.get().copied().unwrap_or(Kinds::All)
    }

    fn in_namespaces(&self, kinds: Kinds, is_offline: bool, program: &Path) -> Command {
        let mut command = child::command(&self.setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.unshare);
        if !is_root() {
            command.args(["--user", "--map-root-user", "--map-auto"]);
        }
        command.args(["--mount", "--pid"]);
        if kinds == Kinds::All {
            command.args(["--ipc", "--uts", "--cgroup"]).args(is_offline.then_some("--net"));
        }
        // Only here: `unshare` needs a program with privileges of its own, newuidmap, to map subordinate ids.
        command
            .args(["--fork", "--kill-child", "--"])
            .arg(&self.setpriv)
            .args(["--no-new-privs", "--"])
            .arg(program);
        // An ordinary user's PATH often lacks the directories that dpkg requires.
        let mut path = self.search_path.clone();
        path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
        command.env("PATH", path);
        command.env("LC_ALL", "C.UTF-8").env_remove("APT_CONFIG").stdin(Stdio::null());
        command
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

enum Event {
    Line(String),
    End,
    Cancel,
}

/// Runs a [`Tools::confined`] command until it exits. `on_line` receives each line of standard error as it arrives and
/// returns how long the tool may then be silent.
///
/// The namespace's processes inherit `lease` as standard input: a lock on it is held until the last of them is gone,
/// even if this process is killed.
pub(crate) fn run(
    mut command: Command,
    tool: &'static str,
    lease: File,
    cancel: &CancelFlag,
    mut on_line: impl FnMut(&str) -> Duration,
) -> Result<(), PullError> {
    // Use a separate process group: an interrupt from the terminal is for this process, which decides how to handle it.
    command.stdin(lease).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| PullError::BuildFailed {
        tool,
        failure: ToolFailure::Run(error),
        stderr_tail: Vec::new(),
    })?;
    // The command holds another copy of the lease.
    drop(command);

    let (sender, events) = mpsc::channel();
    let on_cancel = sender.clone();
    let _subscription = cancel.subscribe(move || {
        let _ = on_cancel.send(Event::Cancel);
    });
    let stderr = child.stderr.take();
    thread::spawn(move || {
        if let Some(stderr) = stderr {
            read_lines(stderr, |line| sender.send(Event::Line(line)).is_ok());
        }
        let _ = sender.send(Event::End);
    });

    let mut tail = Tail::default();
    let mut patience = LONGEST_SILENCE;
    loop {
        let event = match events.recv_timeout(patience) {
            Ok(event) => event,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                end_namespace(&mut child, &events);
                let failure = ToolFailure::Silent { limit: patience };
                return Err(PullError::BuildFailed { tool, failure, stderr_tail: tail.lines });
            }
        };
        match event {
            Event::Line(line) => {
                tracing::debug!(tool, line);
                patience = on_line(&line);
                tail.push(line);
            }
            Event::End => break,
            Event::Cancel => {
                end_namespace(&mut child, &events);
                return Err(PullError::Cancelled);
            }
        }
    }
    let failure = match child.wait() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => ToolFailure::Ended(status),
        Err(error) => ToolFailure::Run(error),
    };
    Err(PullError::BuildFailed { tool, failure, stderr_tail: tail.lines })
}

/// Kills all processes that the command started and waits until they are gone.
fn end_namespace(unshare: &mut Child, events: &Receiver<Event>) {
    kill_namespace(unshare);
    let _ = unshare.wait();
    // If only `unshare` was killed, its processes exit a little later, and with them the last writers of the pipe
    // behind these events.
    while matches!(events.recv(), Ok(Event::Line(_) | Event::Cancel)) {}
}

/// Kills the namespace's first process and not `unshare`, which then returns only after the kernel has ended every
/// other process in it. Once `unshare` has been waited for, no process is left.
fn kill_namespace(unshare: &Child) {
    let pid = unshare.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let first = children.split_whitespace().next().and_then(|child| child.parse().ok());
    let target = first.or_else(|| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(target) = target {
        let _ = kill_process(target, Signal::KILL);
    }
}

/// Forwards lines of bounded length until end of file, an error, or until `pass_on` returns false. Longer lines are
/// split.
fn read_lines(source: impl Read, mut pass_on: impl FnMut(String) -> bool) {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    loop {
        line.clear();
        match source.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text: String = String::from_utf8_lossy(&line).trim_end().replace(|c: char| c.is_control(), " ");
        if !pass_on(text) {
            // Keep the tool from blocking on a full pipe.
            let _ = std::io::copy(&mut source, &mut std::io::sink());
            return;
        }
    }
}

#[derive(Default)]
struct Tail {
    lines: Vec<String>,
}

impl Tail {
    fn push(&mut self, line: String) {
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.remove(0);
        }
        self.lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn lines_are_bounded_and_clean() {
        let mut got = Vec::new();
        let long = "x".repeat(10_000);
        let input = format!("one\r\n\x1b[31mtwo\n{long}\nlast");
        read_lines(input.as_bytes(), |line| {
            got.push(line);
            true
        });
        assert_eq!(got[..2], ["one", " [31mtwo"]);
        assert!(got.iter().all(|line| line.len() <= LONGEST_LINE as usize));
        assert_eq!(got.last().map(String::as_str), Some("last"));
    }

    /// Tools whose `unshare` first runs `script`.
    fn with_unshare(dir: &Path, script: &str) -> Tools {
        let unshare = dir.join("unshare");
        std::fs::write(&unshare, format!("#!/bin/sh\n{script}\nexec /usr/bin/unshare \"$@\"\n")).unwrap();
        std::fs::set_permissions(&unshare, std::fs::Permissions::from_mode(0o755)).unwrap();
        Tools { unshare, ..Tools::default() }
    }

    #[test]
    fn a_kernel_without_some_namespaces_builds_with_those_for_mounts_and_processes() {
        let dir = tempfile::tempdir().unwrap();
        let names = |tools: &Tools| {
            let command = tools.offline(Path::new("true"));
            let has = |name: &&str| command.get_args().any(|arg| arg == *name);
            ["--mount", "--pid", "--ipc", "--uts", "--cgroup", "--net"].into_iter().filter(has).count()
        };
        let whole = with_unshare(dir.path(), "");
        whole.check_namespaces().unwrap();
        assert_eq!(names(&whole), 6);
        let lacks_ipc = r#"for arg; do [ "$arg" = --ipc ] && { echo no IPC >&2; exit 1; }; done"#;
        let lacking = with_unshare(dir.path(), lacks_ipc);
        lacking.check_namespaces().unwrap();
        assert_eq!(names(&lacking), 2);
        // The choice is kept: it is not tried again.
        std::fs::remove_file(&lacking.unshare).unwrap();
        lacking.check_namespaces().unwrap();
        let refused = with_unshare(dir.path(), "echo refused >&2; exit 1");
        let error = refused.check_namespaces().unwrap_err();
        assert!(matches!(&error, PullError::NoNamespaces { reason, .. } if reason == "refused"), "{error:?}");
    }

    #[test]
    fn the_tail_keeps_the_end() {
        let mut tail = Tail::default();
        (0..50).for_each(|n| tail.push(n.to_string()));
        tail.push("  ".to_owned());
        assert_eq!(tail.lines.len(), TAIL_LINES);
        assert_eq!(tail.lines.last().map(String::as_str), Some("49"));
    }
}
