//! The control protocol with a VMM that is played by the test.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

const GREETING: &str = r#"{"QMP": {}}"#;
const DONE: &str = r#"{"return": {}}"#;
const RUNNING: &str = r#"{"return": {"status": "running", "running": true}}"#;

/// The VMM's end of the connection.
struct Vmm {
    commands: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Vmm {
    async fn say(&mut self, lines: &[&str]) {
        for line in lines {
            self.writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
    }

    /// Expects a command, answers with these lines, and returns the command's arguments.
    async fn answer(&mut self, command: &str, lines: &[&str]) -> Value {
        let line = self.commands.next_line().await.unwrap().expect("a command");
        let received: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(received["execute"], command);
        self.say(lines).await;
        received["arguments"].clone()
    }

    async fn greet(&mut self) {
        self.say(&[GREETING]).await;
        self.answer("qmp_capabilities", &[DONE]).await;
    }
}

fn connect_vmm() -> (Qmp, Pauses, Vmm, Console, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let console = Console::in_memory();
    let (qmp, pauses, serve) = connect(ours, console.clone());
    let (reader, writer) = theirs.into_split();
    let vmm = Vmm { commands: BufReader::new(reader).lines(), writer };
    (qmp, pauses, vmm, console, tokio::task::spawn_local(serve))
}

fn local(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn state_is_loaded_from_the_file() {
    local(async {
        let (qmp, _pauses, mut vmm, _console, _task) = connect_vmm();
        let vmm = async {
            vmm.greet().await;
            vmm.answer("migrate-set-capabilities", &[DONE]).await;
            // The order may come before or after the first look.
            vmm.answer("query-status", &[r#"{"return": {"status": "inmigrate", "running": false}}"#]).await;
            let arguments = vmm.answer("migrate-incoming", &[r#"{"event": "RESUME"}"#, DONE]).await;
            // A comma would start another option in the short form.
            assert_eq!(arguments["channels"][0]["addr"]["filename"], "/a,b/state");
            vmm
        };
        let load = async {
            qmp.prepare().await.unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            qmp.load(Path::new("/a,b/state")).await.unwrap();
        };
        tokio::join!(load, vmm);
    });
}

#[test]
fn saving_ends_when_the_migration_does_and_is_no_pause() {
    let status = |status: &str| format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#);
    for (last, saved) in [
        ("completed", Ok(())),
        ("failed", Err("the VMM could not save its state: failed")),
        ("cancelled", Err("the VMM could not save its state: cancelled")),
    ] {
        local(async {
            let (qmp, mut pauses, mut vmm, _console, _task) = connect_vmm();
            let vmm = async {
                vmm.greet().await;
                vmm.answer("migrate", &[&status("setup"), DONE, r#"{"event": "STOP"}"#, &status(last)]).await;
                let stopped = r#"{"return": {"status": "postmigrate", "running": false}}"#;
                vmm.answer("query-status", &[stopped]).await;
                vmm
            };
            let (done, mut vmm) = tokio::join!(qmp.save(Path::new("/state")), vmm);
            assert_eq!(done.map_err(|error| error.to_string()), saved.map_err(str::to_owned));
            // The task has taken note of the status by then.
            vmm.writer.shutdown().await.unwrap();
            tokio::select! {
                biased;
                cause = pauses.next() => panic!("{cause}"),
                () = tokio::time::sleep(PAUSE) => {}
            }
        });
    }
}

#[test]
fn a_pause_is_found_out_from_its_event_and_from_before_events() {
    let paused = r#"{"return": {"status": "internal-error", "running": false}}"#;
    let cause = "internal error: the accelerator cannot run the code of this guest";
    for is_early in [true, false] {
        local(async {
            let (qmp, mut pauses, mut vmm, _console, _task) = connect_vmm();
            // No one has a command for a machine that boots its kernel.
            drop(qmp);
            vmm.greet().await;
            if !is_early {
                vmm.answer("query-status", &[RUNNING, r#"{"event": "RTC_CHANGE"}"#, r#"{"event": "STOP"}"#])
                    .await;
            }
            vmm.answer("query-status", &[paused]).await;
            assert_eq!(pauses.next().await, cause);
        });
    }
}

#[test]
fn an_error_of_a_disk_is_on_the_console_once_and_is_the_reason_of_a_pause() {
    local(async {
        let (_qmp, mut pauses, mut vmm, console, _task) = connect_vmm();
        vmm.greet().await;
        let failed = r#"{"event": "BLOCK_IO_ERROR", "data": {"operation": "write", "action": "report"}}"#;
        vmm.answer("query-status", &[RUNNING, failed, failed, r#"{"event": "STOP"}"#]).await;
        vmm.answer("query-status", &[r#"{"return": {"status": "io-error", "running": false}}"#]).await;
        let error = "cannot write to its file on the host: input/output error";
        assert_eq!(pauses.next().await, format!("a disk has failed: {error}"));
        assert_eq!(console.tail(), [format!("[a disk has failed: {error}]")]);
    });
}

#[test]
fn failures_are_told_apart() {
    let load = |answer: String| {
        let mut failure = None;
        local(async {
            let (qmp, _pauses, mut vmm, _console, _task) = connect_vmm();
            let vmm = async {
                vmm.greet().await;
                vmm.answer("migrate-incoming", &[&answer]).await;
                vmm
            };
            let (loaded, _vmm) = tokio::join!(qmp.load(Path::new("/state")), vmm);
            failure = loaded.err();
        });
        failure.unwrap()
    };
    let refused = load(r#"{"error": {"class": "GenericError", "desc": "no such file"}}"#.to_owned());
    assert_eq!(refused.to_string(), "the VMM refused migrate-incoming: no such file");
    let malformed = load("{".to_owned());
    assert!(matches!(malformed, MachineError::Malformed(_)), "{malformed}");
    let too_long = load(format!("\"{}\"", "x".repeat(MAX_LINE_BYTES)));
    assert!(matches!(too_long, MachineError::Connection(_)), "{too_long}");
}

#[test]
fn a_connection_that_fails_is_the_answer_to_the_next_command() {
    local(async {
        let (qmp, _pauses, vmm, _console, _task) = connect_vmm();
        drop(vmm);
        let error = qmp.prepare().await.unwrap_err();
        assert!(matches!(error, MachineError::Closed), "{error}");

        let (qmp, _pauses, mut vmm, _console, _task) = connect_vmm();
        vmm.say(&["no greeting"]).await;
        let error = qmp.prepare().await.unwrap_err();
        assert!(matches!(error, MachineError::Malformed(_)), "{error}");
        let error = qmp.prepare().await.unwrap_err();
        assert!(matches!(error, MachineError::Closed), "{error}");
    });
}

#[test]
fn a_flood_of_events_is_read_slowly_and_costs_no_memory() {
    const LINES: usize = LINES_AT_ONCE * 20;
    local(async {
        let (_qmp, mut pauses, mut vmm, _console, _task) = connect_vmm();
        vmm.greet().await;
        vmm.answer("query-status", &[RUNNING]).await;
        let began = Instant::now();
        // The connection takes no more than its buffers hold while it pauses.
        let flood = r#"{"event": "STOP"}"#;
        let (_, mut writer) = (vmm.commands, vmm.writer);
        let wrote = async {
            for _ in 0..LINES {
                writer.write_all(format!("{flood}\n").as_bytes()).await.unwrap();
            }
            // To one of its questions.
            let paused = r#"{"return": {"status": "paused", "running": false}}"#;
            writer.write_all(format!("{paused}\n").as_bytes()).await.unwrap();
        };
        let ((), cause) = tokio::join!(wrote, pauses.next());
        assert_eq!(cause, "a command has paused it");
        assert!(began.elapsed() >= PAUSE * (LINES / LINES_AT_ONCE) as u32, "{:?}", began.elapsed());
    });
}
