//! The process side of a command: environment, process group, pipes, and how it is ended.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyro_wire::{Exec, Failure, FailureKind, Program};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::oom;
use super::settings::CommandSettings;
use crate::failure::{During, directory_failed, exemption_failed, refused, spawn_failed};
use crate::proc::Proc;

/// The environment of a login shell on a plain system, before `/etc/profile`.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("LOGNAME", "root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("SHELL", "/bin/sh"),
    ("TERM", "dumb"),
    ("USER", "root"),
];

/// The kernel starts PID 1 with 1,024 and 4,096, too little for builds and servers.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };

/// Exempts the agent from the OOM killer (a machine that kills its agent is lost, one that kills the greedy command is
/// not) and sets the limits that its commands inherit. Returns the file that holds the agent's OOM score.
pub(crate) fn prepare_agent(proc: &Proc) -> Result<File, Failure> {
    let oom_score_adj = oom::exempt_this_process(proc).during("exempting the agent from the OOM killer")?;
    setrlimit(Resource::Nofile, OPEN_FILES).during("raising the limit of open files")?;
    Ok(oom_score_adj)
}

/// A started command.
pub(super) struct CommandProcess {
    pub(super) shell: Shell,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl CommandProcess {
    pub(super) fn start(request: &Exec, settings: &CommandSettings) -> Result<Self, Failure> {
        let CommandSettings { workspace, shell, oom_score_adj } = settings;
        // A command may have removed it.
        if Path::new(&request.cwd) == workspace {
            fs::create_dir_all(workspace).during(format!("creating {}", workspace.display()))?;
        }
        let text = shell_text(request)?;
        let mut command = Command::new(shell);
        command
            .arg("-lc")
            .arg(text)
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(&request.env)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_in(&request.cwd, || match oom_score_adj {
            Some(score) => oom::without_exemption(score, || command.spawn().map_err(StartError::Spawn))
                .map_err(StartError::Exemption)?,
            None => command.spawn().map_err(StartError::Spawn),
        })
        .map_err(|error| error.into_failure(&request.cwd, shell))?;
        let step = "preparing the output pipes";
        let pipes = (child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = pipes else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe)).during(step);
        };
        Ok(Self {
            stdout: pipe::Receiver::from_owned_fd(stdout.into_owned_fd().during(step)?).during(step)?,
            stderr: pipe::Receiver::from_owned_fd(stderr.into_owned_fd().during(step)?).during(step)?,
            shell: Shell { group: child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)), child },
        })
    }
}

/// Returns the text for the guest's own shell. Other ways to run a command do not exist yet.
fn shell_text(request: &Exec) -> Result<&str, Failure> {
    match request {
        Exec {
            program: Program::Shell { text, shell: None },
            user: None,
            input: false,
            terminal: None,
            ..
        } => Ok(text),
        _ => Err(Failure {
            kind: FailureKind::Unsupported,
            ..refused(
                "starting the command",
                "this guest runs shell text as root, without input and terminal",
            )
        }),
    }
}

/// Why a command was not started.
enum StartError {
    Directory(io::Error),
    Exemption(io::Error),
    Spawn(io::Error),
}

impl StartError {
    fn into_failure(self, directory: &str, shell: &Path) -> Failure {
        match self {
            Self::Directory(error) => directory_failed(format!("entering {directory}"), error),
            Self::Exemption(error) => exemption_failed("giving up the exemption from the OOM killer", error),
            Self::Spawn(error) => spawn_failed(format!("starting {}", shell.display()), error),
        }
    }
}

/// Spawns a child in a directory.
///
/// The child inherits the directory. Setting it for the child alone would mean code between fork and exec, and
/// then the agent is forked with all its pages; without, the standard library uses `posix_spawn`.
fn spawn_in(directory: &str, spawn: impl FnOnce() -> Result<Child, StartError>) -> Result<Child, StartError> {
    /// The working directory is the whole process's.
    static WORKING_DIRECTORY: Mutex<()> = Mutex::new(());
    let _guard = WORKING_DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    std::env::set_current_dir(directory).map_err(StartError::Directory)?;
    let child = spawn();
    // A command could not unmount or remove the directory if the agent stayed in it.
    let _ = std::env::set_current_dir("/");
    child
}

/// The shell that leads the command's process group.
pub(super) struct Shell {
    child: Child,
    group: Option<Pid>,
}

impl Shell {
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends the whole group with SIGTERM and, after the grace, SIGKILL. Without a grace, with SIGKILL alone.
    pub(super) async fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if !grace.is_zero() {
            self.signal(Signal::TERM);
            let _ = tokio::time::timeout(grace, self.child.wait()).await;
        }
        // Also after the shell has gone: its children may have chosen to stay.
        self.signal(Signal::KILL);
        self.child.wait().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails only if the group is empty.
            let _ = kill_process_group(group, signal);
        }
    }
}
