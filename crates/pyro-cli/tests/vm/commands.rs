//! What commands do to the machine that they run in.

use futures::future::join_all;
use pyro_engine::{CallContext, ErrorKind, VmState};
use pyro_supervisor::ExitStatus;

use crate::harness::{Capture, LONG, Sandbox, chain, command, exec, exec_text, never, quiet, scaled};

#[test]
fn a_command_that_a_signal_ends_is_reported_so() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run([], "echo before; kill -9 $$");
    assert_eq!((ended.code(), ended.text()), (247, "before\n"), "{ended:?}");
    let ended = sandbox.run(["--json"], "kill -TERM $$");
    assert_eq!(ended.code(), 256 - 15, "{ended:?}");
    assert_eq!(ended.json()["exit_code"], -15);
}

#[test]
fn standard_input_is_at_its_end() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run([], "cat; read -r line || echo end").success(), "end\n");
}

#[test]
fn a_background_child_does_not_hold_the_call_open() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--timeout-seconds", "300"], "sleep 10000 & echo bg");
    assert_eq!(ended.success(), "bg\n");
    assert!(ended.elapsed < scaled(LONG), "{:?}", ended.elapsed);
}

#[test]
fn not_even_one_that_writes_for_ever() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--timeout-seconds", "300", "--json"], "yes & yes >&2 & echo started");
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < scaled(LONG), "{:?}", ended.elapsed);
    assert!(ended.json()["stdout"].as_str().unwrap().contains("started\n"));
}

#[tokio::test]
async fn a_background_child_lives_on_beside_later_commands() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    // It keeps writing to a stream that is no longer read, and must not die of that.
    let line = "(while :; do echo chatter; echo x >> /tmp/beats; sleep 0.01; done) & echo $! > /tmp/pid";
    exec_text(&guest, line).await;
    let line = "n=$(wc -l < /tmp/beats); while [ $(wc -l < /tmp/beats) -lt $((n + 20)) ]; do sleep 0.05; done; \
                kill $(cat /tmp/pid) && echo alive";
    assert_eq!(exec_text(&guest, line).await, "alive\n");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn many_commands_run_at_once_in_one_vm() {
    const COUNT: usize = 20;
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    // Each waits for all the others, so they end only if all of them run at the same time.
    let lines: Vec<String> = (0..COUNT)
        .map(|n| {
            format!(
                "mkdir -p /tmp/met; touch /tmp/met/{n}; \
                 while [ $(ls /tmp/met | wc -l) -lt {COUNT} ]; do sleep 0.2; done; \
                 yes {n} | head -n 5000; echo {n} >&2; exit {n}"
            )
        })
        .collect();
    let captures = join_all(lines.iter().map(|line| Capture::of(&guest, line, 120_000))).await;
    for (n, capture) in captures.into_iter().enumerate() {
        let capture = capture.unwrap();
        assert_eq!(capture.outcome.status, Some(ExitStatus::Code(n as i32)), "{:?}", capture.outcome);
        assert!(capture.stdout == format!("{n}\n").repeat(5000).as_bytes(), "output of {n}");
        assert_eq!(capture.stderr, format!("{n}\n").as_bytes());
    }
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn the_first_command_to_end_takes_the_vm_and_the_others_are_told() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let (id, call) = (vm.vm_id.as_str(), CallContext::new(quiet(), never()));
    let long = engine.exec_vm(exec(id, command("touch /tmp/here; sleep 50")), &call);
    let line = "while ! [ -e /tmp/here ]; do sleep 0.1; done; echo first";
    let short = engine.exec_vm(exec(id, command(line)), &call);
    let (long, short) = tokio::join!(long, short);
    assert_eq!(short.map_err(|error| chain(&error)).unwrap().stdout.as_bytes(), b"first\n");
    let error = long.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{}", chain(&error));
    assert_eq!(engine.status_vm(id).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_cancelled_command_leaves_its_vm_running() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let cancel = never();
    let call = CallContext::new(quiet(), cancel.clone());
    let cancelled = engine.exec_vm(exec(vm.vm_id.as_str(), command("touch /tmp/here; sleep 600")), &call);
    let guest = sandbox.guest(&vm);
    let stop_it = async {
        exec_text(&guest, "while ! [ -e /tmp/here ]; do sleep 0.1; done").await;
        cancel.cancel();
    };
    let (cancelled, ()) = tokio::join!(cancelled, stop_it);
    assert_eq!(cancelled.unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(engine.status_vm(vm.vm_id.as_str()).await.unwrap().state, VmState::Started);
    let result = engine
        .exec_vm(exec(vm.vm_id.as_str(), command("echo again")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!(result.stdout.as_bytes(), b"again\n");
}
