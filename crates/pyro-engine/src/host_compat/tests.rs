#![expect(clippy::disallowed_methods, reason = "tests are configured by their environment")]
use std::env;
use std::ffi::OsString;
use std::fs;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{PidfdFlags, pidfd_open};
use tempfile::TempDir;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::exit_code::exit_code;
use crate::{Event, capture};

static NO_VARIABLES: BTreeMap<String, String> = BTreeMap::new();

struct Host {
    directory: TempDir,
    search_path: OsString,
}

impl Host {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), search_path: env::var_os("PATH").unwrap() }
    }

    fn command<'a>(&'a self, command: &'a str, seconds: u64) -> HostCommand<'a> {
        HostCommand {
            command,
            env: &NO_VARIABLES,
            timeout: Duration::from_secs(seconds),
            directory: self.directory.path(),
            search_path: &self.search_path,
            mem_mib: 1024,
            output: OutputMode::Capture,
        }
    }

    async fn run(&self, command: &str, seconds: u64) -> Captured {
        run(&self.command(command, seconds), &Events::none(), &CancellationToken::new()).await.unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Returns whether the process is running. A zombie that its new parent has not reaped does not count.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

/// Waits for the exit of a process that need not be a child.
async fn ends(pid: &str) {
    let number = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    // This fails if the process has already been reaped.
    let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { return };
    let ended = tokio::task::spawn_blocking(move || {
        let limit = Duration::from_secs(10).try_into().unwrap();
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap()
    });
    assert_eq!(ended.await.unwrap(), 1, "process {pid} lives on");
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let outcome = Host::new().run("echo out; echo err >&2; exit 3", 30).await;
    assert_eq!(
        (text(&outcome.stdout), text(&outcome.stderr), exit_code(&outcome.end)),
        ("out\n", "err\n", 3)
    );
    assert!(!outcome.end.timed_out);
}

#[tokio::test]
async fn an_empty_command_is_an_empty_script() {
    let outcome = Host::new().run("", 30).await;
    assert_eq!((text(&outcome.stdout), exit_code(&outcome.end)), ("", 0));
}

#[tokio::test]
async fn a_signal_is_a_negative_code() {
    assert_eq!(exit_code(&Host::new().run("kill -9 $$", 30).await.end), -9);
}

#[tokio::test]
async fn the_command_sees_its_directory_and_little_else() {
    let host = Host::new();
    let outcome =
        host.run("cat; pwd -P; echo \"$HOME\"; echo \"${CARGO_MANIFEST_DIR-unset}\"; ulimit -c", 30).await;
    let directory = host.directory.path().canonicalize().unwrap();
    let expected = format!("{}\n{}\nunset\n0\n", directory.display(), host.directory.path().display());
    assert_eq!(text(&outcome.stdout), expected);
}

#[tokio::test]
async fn the_command_inherits_no_open_file() {
    let host = Host::new();
    let secret = tempfile::NamedTempFile::new().unwrap();
    // Unlike an opened file, a copied descriptor is not closed by exec.
    let leaky = rustix::io::dup(secret.as_file()).unwrap();
    assert!(!rustix::io::fcntl_getfd(&leaky).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    let finished = host.run("ls -l /proc/$$/fd", 5).await;
    let found = text(&finished.stdout);
    assert!(found.contains("/dev/null"), "{found}");
    assert!(!found.contains(secret.path().to_str().unwrap()), "{found}");
}

#[tokio::test]
async fn limits_are_imposed() {
    let outcome = Host::new().run("ulimit -f; ulimit -d; ulimit -t", 9).await;
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(text(&outcome.stdout), format!("{}\n{}\n{}\n", 16 << 20, 4 << 20, 11 * cpus));
}

#[tokio::test]
async fn a_timeout_keeps_what_was_written_and_ends_the_children() {
    let outcome = Host::new().run("sleep 1000 & echo $!; printf oops >&2; sleep 1000", 2).await;
    assert!(outcome.end.timed_out);
    assert_eq!(exit_code(&outcome.end), 124);
    assert_eq!(text(&outcome.stderr), "oops\ncommand timed out after 2s\n");
    ends(text(&outcome.stdout)).await;
}

#[tokio::test]
async fn a_command_may_tidy_up_at_its_timeout() {
    let outcome = Host::new().run("trap 'echo bye; exit 7' TERM; sleep 1000 & wait", 2).await;
    assert_eq!((text(&outcome.stdout), exit_code(&outcome.end)), ("bye\n", 124));
}

#[tokio::test]
async fn a_command_that_ignores_the_request_to_end_is_killed() {
    let outcome = Host::new().run("trap '' TERM; echo $$; while :; do sleep 1000; done", 2).await;
    assert_eq!(exit_code(&outcome.end), 124);
    assert!(outcome.end.duration >= Duration::from_secs(3));
    ends(text(&outcome.stdout)).await;
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_call_open() {
    let outcome = Host::new().run("sleep 1000 & echo $!", 300).await;
    assert_eq!(exit_code(&outcome.end), 0);
    ends(text(&outcome.stdout)).await;
}

#[tokio::test]
async fn a_child_outside_the_group_does_not_hold_the_call_open_and_no_byte_is_lost() {
    let host = Host::new();
    for _ in 0..10 {
        // The child reports its number first: until then, it may not have left the group.
        let command = "mkfifo -m 600 told; setsid sh -c 'echo $$ > told; exec sleep 1000' & \
            cat told > pid; rm told; head -c 60000 /dev/zero";
        let outcome = host.run(command, 300).await;
        let pid = fs::read_to_string(host.directory.path().join("pid")).unwrap();
        assert!(runs(&pid));
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        assert_eq!((outcome.stdout.len(), exit_code(&outcome.end)), (60000, 0), "{}", text(&outcome.stderr));
    }
}

#[tokio::test]
async fn output_that_waits_for_a_slow_reader_when_the_shell_ends_is_not_lost() {
    let host = Host::new();
    let file = |name: &str| host.directory.path().join(name);
    // The shell writes to a named pipe to report that it has reached this point.
    mkfifoat(CWD, file("written"), Mode::RWXU).unwrap();
    let written = pipe::OpenOptions::new().read_write(true).open_receiver(file("written")).unwrap();
    let (sender, mut receiver) = mpsc::channel(1);
    let command = "echo $$; until [ -e full ]; do :; done; echo; echo > written; \
        until [ -e go ]; do :; done; head -c 60000 /dev/zero";
    let command = HostCommand { output: OutputMode::Stream, ..host.command(command, 60) };
    let (events, cancel) = (Events::to(sender.clone()), CancellationToken::new());
    let reader = async {
        let Some(Event::Output { bytes: pid, .. }) = receiver.recv().await else { panic!("no output") };
        sender.send(Event::Warning("in the way".to_owned())).await.unwrap();
        drop(sender);
        fs::write(file("full"), "").unwrap();
        timeout(Duration::from_secs(30), written.readable()).await.unwrap().unwrap();
        // The pump now takes the empty line and waits for capacity, so it cannot take what follows.
        tokio::time::sleep(Duration::from_millis(10)).await;
        fs::write(file("go"), "").unwrap();
        ends(text(&pid)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut count = 0;
        while let Some(event) = receiver.recv().await {
            if let Event::Output { bytes, .. } = event {
                count += bytes.len();
            }
        }
        count
    };
    let call = async {
        let outcome = run(&command, &events, &cancel).await;
        drop(events);
        outcome
    };
    let (outcome, count) = tokio::join!(call, reader);
    assert_eq!((exit_code(&outcome.unwrap().end), count), (0, 60001));
}

#[tokio::test]
async fn kept_output_is_bounded_and_the_rest_is_counted() {
    let outcome = Host::new().run("head -c 17825792 /dev/zero; echo end >&2", 120).await;
    assert_eq!((outcome.stdout.len(), outcome.end.stdout_dropped), (capture::CAPTURE_LIMIT, 1 << 20));
    assert_eq!((text(&outcome.stderr), outcome.end.stderr_dropped), ("end\n", 0));
}

#[tokio::test]
async fn streamed_output_arrives_while_the_command_runs() {
    let host = Host::new();
    let (sender, mut receiver) = mpsc::channel(1);
    let command = HostCommand {
        output: OutputMode::Stream,
        ..host.command("echo one; until [ -e go ]; do :; done; echo two >&2", 60)
    };
    let (events, cancel) = (Events::to(sender), CancellationToken::new());
    let reader = async {
        let first = receiver.recv().await;
        fs::write(host.directory.path().join("go"), "").unwrap();
        (first, receiver.recv().await)
    };
    let (outcome, (first, second)) = tokio::join!(run(&command, &events, &cancel), reader);
    let output = |stream, bytes: &'static str| Some(Event::Output { stream, bytes: bytes.into() });
    assert_eq!(first, output(OutputStream::Stdout, "one\n"));
    assert_eq!(second, output(OutputStream::Stderr, "two\n"));
    assert_eq!(outcome.unwrap().stdout, b"");
}

#[tokio::test]
async fn cancelling_kills_the_group_even_if_nobody_reads() {
    let host = Host::new();
    let (sender, mut receiver) = mpsc::channel(1);
    let command = HostCommand { output: OutputMode::Stream, ..host.command("echo $$; yes", 300) };
    let (events, cancel) = (Events::to(sender), CancellationToken::new());
    let canceller = async {
        let Some(Event::Output { bytes, .. }) = receiver.recv().await else { panic!("no output") };
        cancel.cancel();
        bytes
    };
    let (outcome, bytes) = tokio::join!(run(&command, &events, &cancel), canceller);
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Cancelled);
    ends(text(&bytes).lines().next().unwrap()).await;
}

#[tokio::test]
async fn dropping_the_call_kills_the_group() {
    let host = Host::new();
    let (sender, mut receiver) = mpsc::channel(1);
    let command =
        HostCommand { output: OutputMode::Stream, ..host.command("sleep 1000 & echo $!; wait", 300) };
    let (events, cancel) = (Events::to(sender), CancellationToken::new());
    let event = tokio::select! {
        _ = run(&command, &events, &cancel) => panic!("the command ended"),
        event = receiver.recv() => event,
    };
    let Some(Event::Output { bytes, .. }) = event else { panic!("no output") };
    ends(text(&bytes)).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_not_delivered() {
    let host = Host::new();
    let nowhere = HostCommand { search_path: OsStr::new("/nonexistent"), ..host.command("true", 1) };
    let error = run(&nowhere, &Events::none(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.to_string()),
        (ErrorKind::NotDelivered, "bash was not found on this host".to_owned())
    );

    let gone = HostCommand { directory: Path::new("/nonexistent"), ..host.command("true", 1) };
    let error = run(&gone, &Events::none(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotDelivered);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_bytes_and_any_code_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200_000), code: u8) {
        let host = Host::new();
        fs::write(host.directory.path().join("file"), &bytes)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(host.run(&format!("cat file; cat file >&2; exit {code}"), 60));
        prop_assert_eq!(exit_code(&outcome.end), i64::from(code));
        prop_assert!(outcome.stdout == bytes && outcome.stderr == bytes);
    }
}
