//! Starts child processes, which inherit their standard streams, the descriptors they are given, and no others.
#![expect(unsafe_code, reason = "code between fork and exec")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use tokio::process::Child;

/// First descriptor after the standard streams.
const FIRST_DESCRIPTOR: RawFd = 3;

/// A child process that is about to be started. Its standard input is empty and its output is discarded unless something
/// else is asked for.
#[derive(Debug)]
pub struct Spawn {
    command: Command,
    descriptors: Vec<FdMapping>,
    kill_on_drop: bool,
}

impl Spawn {
    /// Starts `program`, which is looked up in the search path of this process if it is a bare name.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let descriptors_closed = || {
            close_fds::set_fds_cloexec(FIRST_DESCRIPTOR, &[]);
            Ok(())
        };
        // SAFETY: the closure marks descriptors close-on-exec by system calls alone, which close_fds documents as
        // async-signal-safe on Linux; it neither allocates nor takes locks. First of all hooks, so that what later ones
        // open for the child stays open.
        unsafe { command.pre_exec(descriptors_closed) };
        Self { command, descriptors: Vec::new(), kill_on_drop: true }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Starts it with no environment variables but those that [`Spawn::env`] adds from now on.
    #[must_use]
    pub fn clear_env(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(mut self, variables: &[(impl AsRef<OsStr>, impl AsRef<OsStr>)]) -> Self {
        self.command.envs(variables.iter().map(|(name, value)| (name, value)));
        self
    }

    /// Sets the standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Sets the standard output.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Sets the standard error.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// Gives the child `descriptor` under `number`, which must be unique. This process's copy is closed once the child has
    /// started or failed to start.
    #[must_use]
    pub fn inherit(mut self, descriptor: impl Into<OwnedFd>, number: RawFd) -> Self {
        self.descriptors.push(FdMapping { parent_fd: descriptor.into(), child_fd: number });
        self
    }

    /// Has the kernel kill the child when the *thread* that starts it ends. Call [`Spawn::start`] on a thread that
    /// lives as long as the process.
    #[must_use]
    pub fn bind_to_parent(mut self) -> Self {
        let parent = rustix::process::getpid();
        let before_exec = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls through rustix; it neither allocates nor takes locks.
        unsafe { self.command.pre_exec(before_exec) };
        self
    }

    /// Blocks the signals that end a whole session or service: the parent ends the child in an orderly way. For programs
    /// that do not change their signal mask.
    #[must_use]
    pub fn shield_from_group_signals(mut self) -> Self {
        let before_exec = || {
            // SAFETY: the set is initialised by sigemptyset before anything reads it.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                    libc::sigaddset(&raw mut set, signal);
                }
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            }
            Ok(())
        };
        // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
        unsafe { self.command.pre_exec(before_exec) };
        self
    }

    /// Limits how much of a resource each process of the child may use. A lower limit that is in force already stays.
    #[must_use]
    pub fn limit(mut self, resource: Resource, most: u64) -> Self {
        let before_exec = move || {
            // Raising a maximum is not permitted, and lowering the current limit needs no privilege.
            let Rlimit { current, maximum } = getrlimit(resource);
            let maximum = maximum.map_or(most, |maximum| maximum.min(most));
            let current = current.map_or(maximum, |current| current.min(maximum));
            setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })?;
            Ok(())
        };
        // SAFETY: the closure makes system calls on values that it owns; it neither allocates nor takes locks.
        unsafe { self.command.pre_exec(before_exec) };
        self
    }

    /// Puts the child into a process group of its own, whose leader it is.
    #[must_use]
    pub fn own_process_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Keeps the child's memory in small pages. A kernel without that option starts it anyway.
    #[must_use]
    pub fn forgo_huge_pages(mut self) -> Self {
        let before_exec = || {
            // SAFETY: prctl with these arguments reads and writes no memory of ours.
            unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
            Ok(())
        };
        // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
        unsafe { self.command.pre_exec(before_exec) };
        self
    }

    /// Lets the child live on when its [`Child`] is dropped, which otherwise kills it.
    #[must_use]
    pub fn outlive_handle(mut self) -> Self {
        self.kill_on_drop = false;
        self
    }

    /// Starts the child.
    ///
    /// # Errors
    /// The program cannot be executed, or two descriptors were given the same number.
    pub fn start(self) -> io::Result<Child> {
        let kill_on_drop = self.kill_on_drop;
        let mut command = tokio::process::Command::from(self.into_command()?);
        command.kill_on_drop(kill_on_drop).spawn()
    }

    /// Starts the child, waits for its end and collects its output. Blocks.
    ///
    /// # Errors
    /// As [`Spawn::start`], or its output cannot be read.
    pub fn output_blocking(self) -> io::Result<Output> {
        self.into_command()?.stdout(Stdio::piped()).stderr(Stdio::piped()).output()
    }

    fn into_command(self) -> io::Result<Command> {
        let Self { mut command, descriptors, .. } = self;
        command
            .fd_mappings(descriptors)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    /// The descriptors of a child, each as `number -> what it refers to`.
    async fn descriptors(spawn: impl FnOnce(Spawn) -> Spawn) -> Vec<String> {
        let list = spawn(Spawn::new("/bin/ls").args(["-l", "/proc/self/fd"]).stdout(Stdio::piped()));
        let output = list.start().unwrap().wait_with_output().await.unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let links = text.lines().filter_map(|line| line.split_once(" -> "));
        links.map(|(file, target)| format!("{} -> {target}", file.rsplit(' ').next().unwrap())).collect()
    }

    /// A descriptor that exec does not close.
    fn leaky(file: &File) -> OwnedFd {
        let copy = rustix::io::dup(file).unwrap();
        assert!(!rustix::io::fcntl_getfd(&copy).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        copy
    }

    #[tokio::test]
    async fn a_child_inherits_nothing_but_what_it_is_given() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        let _open = leaky(secret.as_file());
        let given = tempfile::NamedTempFile::new().unwrap();
        let name = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();

        let found = descriptors(|spawn| spawn).await;
        assert!(!found.iter().any(|line| line.ends_with(&name(&secret))), "{found:?}");
        let found = descriptors(|spawn| spawn.inherit(leaky(given.as_file()), 7)).await;
        assert!(found.contains(&format!("7 -> {}", name(&given))), "{found:?}");
        // The program has opened the directory that it lists.
        let more = found.iter().filter(|line| !line.contains("-> /proc/") && !line.starts_with("7 "));
        let numbers: Vec<_> = more.map(|line| &line[..2]).collect();
        assert_eq!(numbers, ["0 ", "1 ", "2 "], "{found:?}");
    }

    #[tokio::test]
    async fn descriptors_may_change_places() {
        let files: Vec<_> = ["one", "two"]
            .map(|text| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(text.as_bytes()).unwrap();
                file.rewind().unwrap();
                rustix::io::fcntl_dupfd_cloexec(&file, 5).unwrap()
            })
            .into();
        let [one, two] = <[OwnedFd; 2]>::try_from(files).unwrap();
        let (first, second) = (one.as_raw_fd(), two.as_raw_fd());
        let shell = Spawn::new("/bin/sh")
            .args(["-c", &format!("cat /dev/fd/{first} /dev/fd/{second}")])
            .stdout(Stdio::piped())
            .inherit(one, second)
            .inherit(two, first);
        let output = shell.start().unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"twoone");
    }

    #[tokio::test]
    async fn two_descriptors_with_one_number_are_refused() {
        let spawn =
            Spawn::new("/bin/true").inherit(io::pipe().unwrap().0, 5).inherit(io::pipe().unwrap().0, 5);
        assert_eq!(spawn.start().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn a_missing_program_is_told_apart() {
        let error = Spawn::new("/nonexistent").bind_to_parent().start().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_environment_is_cleared_where_asked() {
        let env = |spawn: Spawn| spawn.stdout(Stdio::piped()).start().unwrap().wait_with_output();
        let cleared = env(Spawn::new("/usr/bin/env").clear_env().env("KEY", "value")).await.unwrap();
        assert_eq!(cleared.stdout, b"KEY=value\n");
        let inherited = env(Spawn::new("/usr/bin/env")).await.unwrap();
        assert!(inherited.stdout.starts_with(b"") && inherited.stdout.windows(5).any(|w| w == b"PATH="));
    }

    #[tokio::test]
    async fn a_limit_holds_for_the_child_alone() {
        let limits = |spawn: Spawn| {
            let child = spawn.args(["-c", "ulimit -c; ulimit -t"]).stdout(Stdio::piped()).start().unwrap();
            async { String::from_utf8(child.wait_with_output().await.unwrap().stdout).unwrap() }
        };
        let shell = || Spawn::new("/bin/sh");
        let before = limits(shell()).await;
        assert_eq!(limits(shell().limit(Resource::Core, 0).limit(Resource::Cpu, 77)).await, "0\n77\n");
        assert_eq!(limits(shell()).await, before);
        // No limit can be raised.
        let lowered = shell().limit(Resource::Cpu, 77).limit(Resource::Cpu, 99);
        assert!(limits(lowered).await.ends_with("\n77\n"));
        // Nor is the current limit raised to the maximum.
        let soft = |spawn: Spawn| {
            let script = "ulimit -S -t; ulimit -H -t";
            let child = spawn.args(["-c", script]).stdout(Stdio::piped()).start().unwrap();
            async { String::from_utf8(child.wait_with_output().await.unwrap().stdout).unwrap() }
        };
        let mut soft_below_hard = shell();
        let before_exec = || Ok(setrlimit(Resource::Cpu, Rlimit { current: Some(55), maximum: Some(99) })?);
        // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
        unsafe { soft_below_hard.command.pre_exec(before_exec) };
        assert_eq!(soft(soft_below_hard.limit(Resource::Cpu, 77)).await, "55\n77\n");
    }

    #[tokio::test]
    async fn a_group_of_its_own_is_led_by_the_child() {
        let script = "read -r _ _ _ _ group _ < /proc/$$/stat; echo $$ $group";
        let spawn = |spawn: Spawn| {
            let child = spawn.args(["-c", script]).stdout(Stdio::piped()).start().unwrap();
            async {
                let output = child.wait_with_output().await.unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let (pid, group) = text.trim().split_once(' ').unwrap();
                pid == group
            }
        };
        assert!(spawn(Spawn::new("/bin/sh").own_process_group()).await);
        assert!(!spawn(Spawn::new("/bin/sh")).await);
    }

    #[tokio::test]
    async fn dropping_the_handle_kills_unless_it_may_outlive_it() {
        for outlives in [false, true] {
            let (mut ours, theirs) = io::pipe().unwrap();
            let (theirs_in, mut ours_in) = io::pipe().unwrap();
            let spawn = Spawn::new("/bin/sh")
                .args(["-c", "read -r line; echo alive"])
                .stdout(theirs)
                .stdin(theirs_in);
            let spawn = if outlives { spawn.outlive_handle() } else { spawn };
            drop(spawn.start().unwrap());
            // A dead child reads nothing.
            let _ = ours_in.write_all(b"go\n");
            drop(ours_in);
            let text =
                tokio::task::spawn_blocking(move || io::read_to_string(&mut ours)).await.unwrap().unwrap();
            assert_eq!(text, if outlives { "alive\n" } else { "" });
        }
    }
}
