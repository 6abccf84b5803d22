//! Time limits: what they end, what is kept, and how it is reported.

use std::time::Duration;

use crate::harness::{Capture, Sandbox, exec_text, never, scaled};

/// Maximum duration of a run that must end before its command would; a busy machine boots slowly.
const SOON: Duration = Duration::from_secs(60);

/// Time limit, in seconds, of a command that writes before it waits: on a slow host the shell takes a while to begin.
const LIMIT: &str = "6";

#[test]
fn a_command_beyond_its_limit_gives_124_and_keeps_its_output() {
    let sandbox = Sandbox::new();
    let ended =
        sandbox.run(["--timeout-seconds", LIMIT], "echo before; echo aside >&2; sleep 600; echo after");
    assert_eq!(ended.code(), 124, "{ended:?}");
    assert_eq!(ended.text(), "before\n");
    assert!(ended.stderr.contains("\naside\ncommand timed out after 6s\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("exit_code=124 "), "{}", ended.stderr);
    assert!(ended.elapsed < scaled(SOON), "{:?}", ended.elapsed);
}

#[test]
fn the_json_document_of_a_timeout_is_complete() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--timeout-seconds", LIMIT, "--json"], "echo before; sleep 600");
    assert_eq!(ended.code(), 124, "{ended:?}");
    let result = ended.json();
    assert_eq!(result["exit_code"], 124);
    assert_eq!(result["timed_out"], true);
    assert_eq!(result["stdout"], "before\n");
    assert_eq!(result["stderr"], "command timed out after 6s\n");
    let duration_ms = result["duration_ms"].as_u64().unwrap();
    assert!((6000..60_000).contains(&duration_ms), "{duration_ms}");
}

#[test]
fn a_command_that_ignores_the_request_to_end_is_killed() {
    let sandbox = Sandbox::new();
    let line = "trap '' TERM; echo armed; while :; do sleep 600; done";
    let ended = sandbox.run(["--timeout-seconds", LIMIT], line);
    assert_eq!((ended.code(), ended.text()), (124, "armed\n"), "{ended:?}");
    assert!(ended.elapsed < scaled(SOON), "{:?}", ended.elapsed);
}

#[test]
fn a_command_may_use_the_request_to_end_for_its_last_words() {
    let sandbox = Sandbox::new();
    let line = "trap 'echo last words; exit 5' TERM; echo armed; while :; do sleep 0.1; done";
    let ended = sandbox.run(["--timeout-seconds", LIMIT], line);
    assert_eq!((ended.code(), ended.text()), (124, "armed\nlast words\n"), "{ended:?}");
}

#[tokio::test]
async fn the_children_of_a_command_end_with_it() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    // A child, a grandchild in the background, and one that ignores SIGTERM.
    let line = "sleep 4321 & sh -c 'sleep 4321 & sleep 4321' & (trap '' TERM; sleep 4321; sleep 4321) & \
                echo started; sleep 4321";
    let capture = Capture::of(&guest, line, 6000).await.unwrap();
    assert!(capture.outcome.timed_out, "{capture:?}");
    assert_eq!(capture.stdout, b"started\n");
    assert_eq!(exec_text(&guest, COUNT_SLEEPERS).await, "0\n");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_command_whose_caller_goes_away_ends() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    {
        let exec = pyro_supervisor::Exec::new(
            "echo started; sleep 4321 & sleep 4321",
            std::time::Duration::from_secs(600),
        );
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let run = pyro_supervisor::Run { exec, journal: false };
        let forever = never();
        let running = guest.run(run, &forever, async |_| sender.send(()).await.unwrap());
        tokio::select! {
            outcome = running => panic!("ended by itself: {outcome:?}"),
            _ = receiver.recv() => {}
        }
    }
    // The guest learns of it from a separate message, which may arrive after the next request.
    let line = format!(
        "for i in $(seq 600); do n=$({COUNT_SLEEPERS}); [ $n = 0 ] && break; sleep 0.1; done; echo $n"
    );
    assert_eq!(exec_text(&guest, &line).await, "0\n");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

/// Prints how many processes are called `sleep 4321`. The pattern does not match itself.
const COUNT_SLEEPERS: &str =
    r"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -o 'sleep [4]321' | wc -l";
