//! The processes of a command: how they are started, and how they are ended.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use super::settings::{CommandSettings, Commands};
use super::spawn::{Launch, SpawnError, Step, spawn};
use super::terminal::Terminal;
use crate::blocking::blocking;
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
/// not) and sets the limits that its commands inherit. Returns where a command gives that exemption up.
pub(crate) fn prepare_agent(proc: &Proc) -> Result<OwnedFd, Failure> {
    let step = "exempting the agent from the OOM killer";
    let proc = proc.to_fd().during(step)?;
    oom::exempt_this_process(&proc).during(step)?;
    setrlimit(Resource::Nofile, OPEN_FILES).during("raising the limit of open files")?;
    setrlimit(Resource::Core, CORE_FILES).during("setting the limit of core files")?;
    Ok(proc)
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
    /// It has waited for a file system until it timed out.
    TimedOut,
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
    /// Everything that uses the file system may wait for the host; if the caller does not, the program is not executed.
    pub(super) async fn start(
        request: &Arc<Exec>,
        home: Option<&str>,
        commands: &Arc<Commands>,
        cancelled: &CancellationToken,
    ) -> Result<Self, NotStarted> {
        let mut user = {
            let (request, commands) = (Arc::clone(request), Arc::clone(commands));
            blocking(move || prepare(&request, &commands.settings)).await?
        };
        if let Some(home) = home {
            user.home = home.to_owned();
        }
        let user = Arc::new(user);
        let environment = match request.program {
            // It reads its profile itself.
            Program::LoginShell => None,
            Program::Shell { .. } | Program::Argv(_) => {
                let capture = async |plain| capture(&user, plain, commands, cancelled).await;
                let environment =
                    commands.environments.of_user(&user, &commands.settings.etc, cancelled, capture);
                Some(environment.await.ok_or(NotStarted::Cancelled)?)
            }
        };
        let (request, commands, cancelled) = (Arc::clone(request), Arc::clone(commands), cancelled.clone());
        while_wanted(move |abandoned| {
            let (variables, warning) = environment.unwrap_or_else(|| {
                let mut variables = environment::plain(&user);
                variables.insert("SHELL".into(), user.login_shell().into());
                (Arc::new(variables), UnsentLine::default())
            });
            let started = Self::execute(&request, &user, &variables, &commands, (&cancelled, abandoned))?;
            Ok(Self { warning, ..started })
        })
        .await
    }

    /// Executes the program of a command. Blocks.
    fn execute(
        request: &Exec,
        user: &User,
        login: &Variables,
        commands: &Commands,
        (cancelled, abandoned): (&CancellationToken, &AtomicBool),
    ) -> Result<Self, NotStarted> {
        let settings = &commands.settings;
        let mut variables = login.clone();
        if request.terminal.is_some() {
            environment::on_terminal(&mut variables);
        }
        variables.extend(request.env.iter().map(|(name, value)| (name.into(), value.into())));
        let path = variables.get(OsStr::new("PATH")).map(|path| path.as_os_str());
        let program = Found::new(&request.program, &request.env, user, settings, path)?;
        let step = "preparing the command";
        let variables = environment::to_strings(&variables).during(step)?;
        let directory = CString::new(&*request.cwd)
            .map_err(|error| directory_failed(format!("entering {:?}", request.cwd), error.into()))?;

        let stdio = Stdio::new(request, user).during("preparing the standard input and output")?;
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
            proc: settings.proc.as_ref().map(AsFd::as_fd),
            abandoned,
        };
        if cancelled.is_cancelled() {
            return Err(NotStarted::Cancelled);
        }
        let (leader, group) = start(&launch, commands).map_err(|error| match error {
            StartError::Spawn(SpawnError { step: Step::Abandoned, .. }) => NotStarted::Cancelled,
            StartError::Spawn(SpawnError { step: Step::Exemption, errno }) => {
                exemption_failed("giving up the exemption from the OOM killer", errno.into()).into()
            }
            StartError::Spawn(error @ SpawnError { step: Step::Program, .. }) => {
                program.not_executed(error).into()
            }
            StartError::Spawn(SpawnError { step: Step::Directory, errno }) => {
                directory_failed(format!("entering {}", request.cwd), errno.into()).into()
            }
            StartError::Spawn(SpawnError { step: Step::User, errno }) => {
                failed(format!("becoming the user {}", user.name), errno).into()
            }
            StartError::Spawn(SpawnError { step: Step::Fork, errno: errno @ Errno::AGAIN }) => {
                Failure { kind: FailureKind::TooManyProcesses, ..failed("starting a process", errno) }.into()
            }
            StartError::Spawn(SpawnError { errno, .. }) => failed("starting a process", errno).into(),
            StartError::Io(error) => failed("starting a process", error).into(),
        })?;
        let Stdio { theirs: _, input, output } = stdio;
        let terminal = match &output {
            Output::Terminal(terminal) => Some(Arc::clone(terminal)),
            Output::Pipes { .. } => None,
        };
        let processes = Arc::new(Processes { leader: leader.pid(), group, terminal });
        Ok(Self { leader, processes, input, output, warning: UnsentLine::default() })
    }
}

/// Finds the user of a command, and makes the workspace if the command starts there: another command may have removed it. Blocks.
fn prepare(request: &Exec, settings: &CommandSettings) -> Result<User, NotStarted> {
    let user = match &request.user {
        None => User::root(&settings.etc),
        Some(user) => User::find(user, &settings.etc)?,
    };
    let workspace = &settings.workspace;
    if Path::new(&request.cwd) == workspace {
        fs::create_dir_all(workspace).during(format!("creating {}", workspace.display()))?;
    }
    Ok(user)
}

/// Runs `start` on a thread that may block. Once this is dropped, its argument is true; a process that was started all the same
/// is killed, see [`Child`].
async fn while_wanted<T, E>(start: impl FnOnce(&AtomicBool) -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Failure> + Send + 'static,
{
    struct Wanted(Arc<AtomicBool>);

    impl Drop for Wanted {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let wanted = Wanted(Arc::default());
    let abandoned = Arc::clone(&wanted.0);
    blocking(move || start(&abandoned)).await
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
    Spawn(SpawnError),
    Io(io::Error),
}

/// Starts a process in a control group of its own, or without one where that is impossible. Blocks.
fn start(launch: &Launch<'_>, commands: &Commands) -> Result<(Child, Option<ControlGroup>), StartError> {
    let groups = commands.groups();
    if let Some(group) = groups.create().unwrap_or_else(|error| {
        groups.report(&error);
        None
    }) {
        match spawn(launch, Some(group.entrance())) {
            Err(SpawnError { step: Step::ControlGroup, errno }) => groups.report(&errno),
            spawned => {
                let spawned = spawned.map_err(StartError::Spawn)?;
                return Ok((Child::new(spawned).map_err(StartError::Io)?, Some(group)));
            }
        }
    }
    let spawned = spawn(launch, None).map_err(StartError::Spawn)?;
    Ok((Child::new(spawned).map_err(StartError::Io)?, None))
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
    user: &Arc<User>,
    plain: Variables,
    commands: &Arc<Commands>,
    cancelled: &CancellationToken,
) -> Result<Variables, CaptureError> {
    let limit = commands.settings.profile_limit;
    let mut limited = pin!(tokio::time::sleep(limit));
    let (user, commands) = (Arc::clone(user), Arc::clone(commands));
    let (mut leader, group, mut read) = tokio::select! {
        biased;
        started = while_wanted(move |abandoned| start_capture(&user, &plain, &commands, abandoned)) => started?,
        () = &mut limited => return Err(CaptureError::TimedOut(limit)),
        () = cancelled.cancelled() => return Err(CaptureError::Cancelled),
    };
    let processes = Processes { leader: leader.pid(), group, terminal: None };
    let outcome = tokio::select! {
        biased;
        read = read_environment(&mut read, &mut leader) => read,
        () = &mut limited => Err(CaptureError::TimedOut(limit)),
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

/// Starts a user's login shell, which writes its environment to the returned pipe. Blocks.
fn start_capture(
    user: &User,
    plain: &Variables,
    commands: &Commands,
    abandoned: &AtomicBool,
) -> Result<(Child, Option<ControlGroup>, pipe::Receiver), CaptureError> {
    let settings = &commands.settings;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    fchmod(&write, Mode::from(0o622)).map_err(io::Error::from)?;
    let read = pipe::Receiver::from_owned_fd(read)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let agent = fcntl_dupfd_cloexec(&settings.agent, FIRST_SAFE_FD).map_err(io::Error::from)?;
    let environment = fcntl_dupfd_cloexec(&write, FIRST_SAFE_FD).map_err(io::Error::from)?;
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
        extra: vec![(agent.as_fd(), AGENT_FD), (environment.as_fd(), ENVIRONMENT_FD)],
        has_terminal: false,
        credentials: user.credentials.clone(),
        proc: settings.proc.as_ref().map(AsFd::as_fd),
        abandoned,
    };
    let describe = |error| match error {
        StartError::Io(error) => CaptureError::Failed(error.to_string()),
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
    let (leader, group) = started.map_err(describe)?;
    Ok((leader, group, read))
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn launch<'a>(command: &str, output: &'a File, abandoned: &'a AtomicBool) -> Launch<'a> {
        let arguments = ["sh", "-c", command];
        Launch {
            candidates: vec![c"/bin/sh".into()],
            arguments: arguments.into_iter().map(|argument| CString::new(argument).unwrap()).collect(),
            variables: Vec::new(),
            directory: c"/".into(),
            standard: [output.as_fd(); 3],
            extra: Vec::new(),
            has_terminal: false,
            credentials: None,
            proc: None,
            abandoned,
        }
    }

    fn commands() -> Commands {
        Commands::new(CommandSettings::new(File::open("/dev/null").unwrap()))
    }

    #[tokio::test]
    async fn a_program_that_nothing_waits_for_is_not_executed() {
        let (go, held_up) = std::sync::mpsc::channel();
        let (sender, outcome) = tokio::sync::oneshot::channel();
        let mut starts = Box::pin(while_wanted(move |abandoned| {
            held_up.recv().unwrap();
            let output = tempfile::tempfile().unwrap();
            let started = start(&launch("echo executed", &output, abandoned), &commands());
            let step = started.err().map(|error| match error {
                StartError::Spawn(error) => error.step,
                StartError::Io(error) => panic!("{error}"),
            });
            sender.send((step, output.metadata().unwrap().len())).unwrap();
            Ok::<_, Failure>(())
        }));
        assert!(futures::poll!(&mut starts).is_pending());
        drop(starts);
        go.send(()).unwrap();
        assert_eq!(outcome.await.unwrap(), (Some(Step::Abandoned), 0));
    }

    #[tokio::test]
    async fn a_process_that_is_dropped_is_killed() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let write = File::from(write);
        let (leader, _) = start(&launch("sleep 1000", &write, &AtomicBool::new(false)), &commands())
            .unwrap_or_else(|_| panic!("not started"));
        drop((leader, write));
        let closed = tokio::task::spawn_blocking(move || File::from(read).read(&mut [0]));
        assert_eq!(closed.await.unwrap().unwrap(), 0);
    }
}
