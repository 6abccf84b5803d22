//! The processes of a command: how they are started, and how they are ended.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pyro_wire::{Exec, Failure, FailureKind, Program, Status};
use rustix::fs::{Mode, fchmod};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::accounts::User;
use super::cgroup::ControlGroup;
use super::child::Child;
use super::environment::{self, CaptureError, UnsentLine, Variables};
use super::oom;
use super::program::{Found, SCRIPT_FD};
use super::running::InputTarget;
use super::settings::Commands;
use super::spawn::{Launch, SpawnError, Spawned, Step, spawn};
use super::terminal::Terminal;
use crate::failure::{During, directory_failed, exemption_failed, failed};
use crate::proc::Proc;

/// The kernel starts PID 1 with 1,024 and 4,096, too little for builds and servers.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(1_048_576) };
/// No core files, unless a command asks for them.
const CORE_FILES: Rlimit = Rlimit { current: Some(0), maximum: None };

/// Descriptors of the shell whose environment is read: this program, and where it writes.
const AGENT_FD: i32 = 61;
const ENVIRONMENT_FD: i32 = 60;
/// Descriptors that a process gets have lower numbers than these, so that none is overwritten before it is copied.
const FIRST_SAFE_FD: i32 = 100;

/// Exempts the agent from the OOM killer (a machine that kills its agent is lost, one that kills the greedy command is
/// not) and sets the limits that its commands inherit. Returns the file that holds the agent's OOM score.
pub(crate) fn prepare_agent(proc: &Proc) -> Result<File, Failure> {
    let oom_score_adj = oom::exempt_this_process(proc).during("exempting the agent from the OOM killer")?;
    setrlimit(Resource::Nofile, OPEN_FILES).during("raising the limit of open files")?;
    setrlimit(Resource::Core, CORE_FILES).during("setting the limit of core files")?;
    Ok(oom_score_adj)
}

/// A started command.
pub(super) struct CommandProcess {
    /// The process that was started, which leads the others.
    pub(super) leader: Child,
    pub(super) processes: Arc<Processes>,
    pub(super) input: InputTarget,
    pub(super) output: Output,
    /// A line for people about the command's environment.
    pub(super) warning: UnsentLine,
}

/// Why a command was not started.
pub(super) enum NotStarted {
    Failed(Failure),
    Cancelled,
}

impl From<Failure> for NotStarted {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where the output of a command comes from.
pub(super) enum Output {
    Pipes { stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal(Arc<Terminal>),
}

impl CommandProcess {
    /// Starts a command, unless it is cancelled before its program is executed. A home directory replaces that of its user.
    pub(super) async fn start(
        request: &Exec,
        home: Option<&str>,
        commands: &Commands,
        cancelled: &CancellationToken,
    ) -> Result<Self, NotStarted> {
        let settings = &commands.settings;
        let mut user = match &request.user {
            None => User::root(&settings.etc),
            Some(user) => User::find(user, &settings.etc)?,
        };
        if let Some(home) = home {
            user.home = home.to_owned();
        }
        // A command may have removed it.
        let workspace = &settings.workspace;
        if Path::new(&request.cwd) == workspace {
            fs::create_dir_all(workspace).during(format!("creating {}", workspace.display()))?;
        }
        let (mut variables, warning) = match request.program {
            // It reads its profile itself.
            Program::LoginShell => {
                let mut variables = environment::plain(&user);
                variables.insert("SHELL".into(), user.login_shell().into());
                (variables, UnsentLine::default())
            }
            Program::Shell { .. } | Program::Argv(_) => {
                let capture = async |plain| capture(&user, &plain, commands, cancelled).await;
                let environment = commands.environments.of_user(&user, &settings.etc, cancelled, capture);
                let (variables, warning) = environment.await.ok_or(NotStarted::Cancelled)?;
                (Variables::clone(&variables), warning)
            }
        };
        if request.terminal.is_some() {
            environment::on_terminal(&mut variables);
        }
        variables.extend(request.env.iter().map(|(name, value)| (name.into(), value.into())));
        let path = variables.get(OsStr::new("PATH")).map(|path| path.as_os_str());
        let program = Found::new(&request.program, &user, settings, path)?;
        let step = "preparing the command";
        let variables = environment::to_strings(&variables).during(step)?;
        let directory = CString::new(&*request.cwd)
            .map_err(|error| directory_failed(format!("entering {:?}", request.cwd), error.into()))?;

        let stdio = Stdio::new(request, &user).during("preparing the standard input and output")?;
        let script = program.script.as_ref().map(|script| fcntl_dupfd_cloexec(script, FIRST_SAFE_FD));
        let script = script.transpose().during(step)?;
        let launch = Launch {
            candidates: program.candidates.clone(),
            arguments: program.arguments.clone(),
            variables,
            directory,
            standard: stdio.theirs.each_ref().map(AsFd::as_fd),
            extra: script.iter().map(|script| (script.as_fd(), SCRIPT_FD)).collect(),
            has_terminal: request.terminal.is_some(),
            credentials: user.credentials.clone(),
        };
        if cancelled.is_cancelled() {
            return Err(NotStarted::Cancelled);
        }
        let (leader, group) = start(&launch, commands).map_err(|error| match error {
            StartError::Exemption(error) => {
                exemption_failed("giving up the exemption from the OOM killer", error)
            }
            StartError::Spawn(error @ SpawnError { step: Step::Program, .. }) => program.not_executed(error),
            StartError::Spawn(SpawnError { step: Step::Directory, errno }) => {
                directory_failed(format!("entering {}", request.cwd), errno.into())
            }
            StartError::Spawn(SpawnError { step: Step::User, errno }) => {
                failed(format!("becoming the user {}", user.name), errno)
            }
            StartError::Spawn(SpawnError { step: Step::Fork, errno: errno @ Errno::AGAIN }) => {
                Failure { kind: FailureKind::TooManyProcesses, ..failed("starting a process", errno) }
            }
            StartError::Spawn(SpawnError { errno, .. }) => failed("starting a process", errno),
            StartError::Io(error) => failed("starting a process", error),
        })?;
        let Stdio { theirs: _, input, output } = stdio;
        let terminal = match &output {
            Output::Terminal(terminal) => Some(Arc::clone(terminal)),
            Output::Pipes { .. } => None,
        };
        let processes = Arc::new(Processes { leader: leader.pid(), group, terminal });
        Ok(Self { leader, processes, input, output, warning })
    }
}

/// The ends of a command's standard input and output.
struct Stdio {
    /// Standard input, output and error of the command.
    theirs: [OwnedFd; 3],
    input: InputTarget,
    output: Output,
}

impl Stdio {
    fn new(request: &Exec, user: &User) -> io::Result<Self> {
        if let Some(size) = request.terminal {
            let terminal = Arc::new(Terminal::open(size, user.uid())?);
            let theirs = || terminal.theirs().try_clone();
            return Ok(Self {
                theirs: [theirs()?, theirs()?, theirs()?],
                input: InputTarget::Terminal(Arc::clone(&terminal)),
                output: Output::Terminal(terminal),
            });
        }
        let (stdin, input) = if request.input {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            // Other users can open /dev/stdin, and the others below.
            fchmod(&read, Mode::from(0o644))?;
            (read, InputTarget::Pipe(pipe::Sender::from_owned_fd(write)?))
        } else {
            (File::open("/dev/null")?.into(), InputTarget::Closed)
        };
        let output = || {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            fchmod(&write, Mode::from(0o622))?;
            Ok::<_, io::Error>((pipe::Receiver::from_owned_fd(read)?, write))
        };
        let ((stdout, out), (stderr, err)) = (output()?, output()?);
        Ok(Self { theirs: [stdin, out, err], input, output: Output::Pipes { stdout, stderr } })
    }
}

/// Why a process was not started.
enum StartError {
    Exemption(io::Error),
    Spawn(SpawnError),
    Io(io::Error),
}

/// Starts a process in a control group of its own, or without one where that is impossible.
fn start(launch: &Launch<'_>, commands: &Commands) -> Result<(Child, Option<ControlGroup>), StartError> {
    let without_group = |error: &dyn std::fmt::Display| {
        eprintln!("pyro-guest: a command runs without a control group: {error}");
    };
    if let Some(group) = commands.groups().create().unwrap_or_else(|error| {
        without_group(&error);
        None
    }) {
        match spawn_unexempted(launch, Some(group.entrance()), commands) {
            Err(StartError::Spawn(SpawnError { step: Step::ControlGroup, errno })) => without_group(&errno),
            spawned => return Ok((Child::new(spawned?).map_err(StartError::Io)?, Some(group))),
        }
    }
    let spawned = spawn_unexempted(launch, None, commands)?;
    Ok((Child::new(spawned).map_err(StartError::Io)?, None))
}

fn spawn_unexempted(
    launch: &Launch<'_>,
    control_group: Option<BorrowedFd<'_>>,
    commands: &Commands,
) -> Result<Spawned, StartError> {
    let spawn = || spawn(launch, control_group);
    let spawned = match &commands.settings.oom_score_adj {
        Some(score) => oom::without_exemption(score, spawn).map_err(StartError::Exemption)?,
        None => spawn(),
    };
    spawned.map_err(StartError::Spawn)
}

/// Everything that a command has started.
pub(super) struct Processes {
    leader: Pid,
    group: Option<ControlGroup>,
    pub(super) terminal: Option<Arc<Terminal>>,
}

impl Processes {
    /// Sends a signal by its number: to the process group in the terminal's foreground, or to the leader's.
    pub(super) fn send(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(Errno::INVAL)?;
        let group = match &self.terminal {
            Some(terminal) => terminal.foreground()?,
            None => self.leader,
        };
        Ok(kill_process_group(group, signal)?)
    }

    /// Asks all of them to end.
    fn ask_to_end(&self) {
        self.signal_all(Signal::TERM);
        if self.terminal.is_some() {
            // Interactive shells ignore the other. A stopped job must go on to end.
            self.signal_all(Signal::HUP);
            self.signal_all(Signal::CONT);
        }
    }

    /// Tells all of them that their terminal is gone.
    fn hang_up(&self) {
        self.signal_all(Signal::HUP);
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        match self.group.as_ref().map(|group| group.signal(signal)) {
            Some(Ok(())) => {}
            Some(Err(_)) | None => {
                // Fails only if the process group is empty.
                let _ = kill_process_group(self.leader, signal);
            }
        }
    }

    /// Waits until all of them have ended. Without a control group, only the leader is known.
    async fn ended(&self, leader: &mut Child) {
        if let Some(group) = &self.group {
            // Fails if a command has hidden the hierarchy.
            let _ = group.emptied().await;
        }
        let _ = leader.wait().await;
    }

    /// Kills all of them.
    async fn kill(&self) {
        if let Some(group) = &self.group {
            match group.kill().await {
                Ok(()) => return,
                Err(error) => eprintln!("pyro-guest: killing a command: {error}"),
            }
        }
        let _ = kill_process_group(self.leader, Signal::KILL);
    }
}

/// Ends a command and everything that it started, with SIGTERM and, when all of it has ended or after the grace, SIGKILL.
/// Without a grace, with SIGKILL alone.
pub(super) async fn terminate(
    leader: &mut Child,
    processes: &Processes,
    grace: Duration,
) -> io::Result<Status> {
    if !grace.is_zero() {
        processes.ask_to_end();
        let _ = tokio::time::timeout(grace, processes.ended(leader)).await;
    }
    processes.kill().await;
    leader.wait().await
}

/// Ends a command whose host is gone: at once, or as if the terminal was closed.
pub(super) async fn abandon(leader: &mut Child, processes: &Processes, grace: Duration) {
    if processes.terminal.is_some() && !grace.is_zero() {
        processes.hang_up();
        let _ = tokio::time::timeout(grace, processes.ended(leader)).await;
    }
    let _ = terminate(leader, processes, Duration::ZERO).await;
}

/// Reads the environment of a user's login shell.
async fn capture(
    user: &User,
    plain: &Variables,
    commands: &Commands,
    cancelled: &CancellationToken,
) -> Result<Variables, CaptureError> {
    let settings = &commands.settings;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    fchmod(&write, Mode::from(0o622)).map_err(io::Error::from)?;
    let mut read = pipe::Receiver::from_owned_fd(read)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let extra = (|| {
        let agent = fcntl_dupfd_cloexec(&settings.agent, FIRST_SAFE_FD)?;
        Ok::<_, io::Error>((agent, fcntl_dupfd_cloexec(&write, FIRST_SAFE_FD)?))
    })()?;
    drop(write);
    let text = format!(
        "exec /proc/self/fd/{AGENT_FD} {} > /proc/self/fd/{ENVIRONMENT_FD}",
        environment::WRITE_ENVIRONMENT
    );
    let shell = settings.shell.display().to_string();
    let string = |text: &str| CString::new(text).map_err(io::Error::from);
    let home = if Path::new(&user.home).is_dir() { &*user.home } else { "/" };
    let mut launch = Launch {
        candidates: vec![string(&shell)?],
        arguments: [&*shell, "-l", "-c", &text].into_iter().map(string).collect::<Result<_, _>>()?,
        variables: environment::to_strings(plain)?,
        directory: string(home)?,
        standard: [null.as_fd(); 3],
        extra: vec![(extra.0.as_fd(), AGENT_FD), (extra.1.as_fd(), ENVIRONMENT_FD)],
        has_terminal: false,
        credentials: user.credentials.clone(),
    };
    let describe = |error| match error {
        StartError::Exemption(error) | StartError::Io(error) => CaptureError::Failed(error.to_string()),
        StartError::Spawn(SpawnError { errno, .. }) => CaptureError::Failed(errno.to_string()),
    };
    // A user may be unable to enter the home directory.
    let root = string("/")?;
    let started = match start(&launch, commands) {
        Err(StartError::Spawn(SpawnError { step: Step::Directory, .. })) => {
            launch.directory = root;
            start(&launch, commands)
        }
        started => started,
    };
    let (mut leader, group) = started.map_err(describe)?;
    drop(extra);
    let processes = Processes { leader: leader.pid(), group, terminal: None };
    let limit = settings.profile_limit;
    let outcome = tokio::select! {
        biased;
        read = read_environment(&mut read, &mut leader) => read,
        () = tokio::time::sleep(limit) => Err(CaptureError::TimedOut(limit)),
        () = cancelled.cancelled() => Err(CaptureError::Cancelled),
    };
    // After a success, it has written everything and ends by itself.
    if outcome.is_err() {
        processes.kill().await;
    }
    // The command does not wait for that.
    tokio::spawn(async move { leader.wait().await });
    outcome
}

/// Reads what the login shell's successor writes. Processes that the profile has started may keep the pipe open.
async fn read_environment(read: &mut pipe::Receiver, leader: &mut Child) -> Result<Variables, CaptureError> {
    let mut bytes = Vec::new();
    let mut ended = None;
    while !environment::is_complete(&bytes) {
        let count = match ended {
            None => tokio::select! {
                biased;
                count = read.read_buf(&mut bytes) => count?,
                status = leader.wait() => {
                    ended = Some(status?);
                    continue;
                }
            },
            // What it wrote last is in the pipe.
            Some(status) => match read.try_read_buf(&mut bytes) {
                Ok(count) if count > 0 => count,
                _ => return Err(CaptureError::Ended(status)),
            },
        };
        if bytes.len() > environment::MAX_BYTES {
            return Err(CaptureError::TooLarge);
        }
        if count == 0 {
            return Err(CaptureError::Ended(leader.wait().await?));
        }
    }
    Ok(environment::parse(&bytes))
}
