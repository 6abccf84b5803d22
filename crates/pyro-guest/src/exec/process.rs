//! The process side of a command: environment, process group, pipes, and how it is ended.

use std::fs;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pyro_wire::Exec;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::fault::{During, Fault};

/// What a login shell on a plain system would be given; `/etc/profile` refines it.
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

/// Protects the agent from the OOM killer (a machine that kills its agent is lost, one that kills the greedy
/// command is not) and sets the limits its commands inherit.
pub(crate) fn prepare_agent() -> Result<(), Fault> {
    fs::write("/proc/self/oom_score_adj", "-1000").during("exempting the agent from the OOM killer")?;
    setrlimit(Resource::Nofile, OPEN_FILES).during("raising the limit of open files")
}

/// A started command.
pub(super) struct CommandProcess {
    pub(super) shell: Shell,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl CommandProcess {
    pub(super) fn start(request: &Exec) -> Result<Self, Fault> {
        fs::create_dir_all(&request.cwd).during(format!("making {}", request.cwd))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-lc", &request.command])
            .current_dir(&request.cwd)
            .env_clear()
            .envs(ENVIRONMENT)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        before_exec::end_oom_exemption(&mut command);
        let mut child = command.spawn().during("starting /bin/sh")?;
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

/// The shell that leads the command's process group.
pub(super) struct Shell {
    child: Child,
    group: Option<Pid>,
}

impl Shell {
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends the whole group: politely, and after the grace by force.
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
            // The only failure is that nobody is left in the group.
            let _ = kill_process_group(group, signal);
        }
    }
}

mod before_exec {
    #![expect(unsafe_code, reason = "code between fork and exec")]

    use rustix::fs::{CWD, Mode, OFlags, openat};
    use tokio::process::Command;

    /// Makes the command an ordinary candidate of the OOM killer again. It has to happen in the child before
    /// it can fork, or its children would inherit the agent's exemption.
    pub(super) fn end_oom_exemption(command: &mut Command) {
        let reset = || {
            let file =
                openat(CWD, c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(file, b"0")?;
            Ok(())
        };
        // SAFETY: the closure makes three system calls through rustix, which allocates nothing and takes no
        // lock for them, so it is safe between fork and exec.
        unsafe { command.pre_exec(reset) };
    }
}
