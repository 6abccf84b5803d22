//! VMs that outlive a call: every call in every state, with real machines.

use std::time::{Duration, Instant};

use pyro_engine::{CallContext, Engine, Error, ErrorKind, ExecutionMode, Vm, VmSpec, VmState};

use crate::harness::{ENVIRONMENT, LONG, Sandbox, chain, command, exec, never, quiet, scaled};

async fn created_vm(engine: &Engine) -> Vm {
    engine.create_vm(VmSpec::new(ENVIRONMENT), &quiet(), &never()).await.unwrap()
}

fn assert_refused<T>(result: Result<T, Error>, kind: ErrorKind, text: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.kind, kind, "{}", chain(&error));
    assert!(error.message.contains(text), "{error}");
}

#[tokio::test]
async fn a_created_vm_can_be_looked_at_started_stopped_and_deleted() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = created_vm(&engine).await;
    let id = vm.vm_id.as_str();
    assert_eq!((vm.state, vm.execution_mode), (VmState::Created, ExecutionMode::Pending));
    assert_eq!((vm.vcpu_count, vm.mem_mib, vm.ttl_seconds), (1, 1024, 600));
    assert_eq!(engine.status_vm(id).await.unwrap(), vm);
    let text = format!("vm {id} must be in 'started' state before execution");
    assert_refused(
        engine.exec_vm(exec(id, command("true")), &CallContext::new(quiet(), never())).await,
        ErrorKind::WrongState,
        &text,
    );
    let info = engine.network_info_vm(id).await.unwrap();
    assert_eq!((info.network_enabled, info.assignment), (false, None));
    assert_eq!(engine.stop_vm(id).await.unwrap().state, VmState::Stopped);
    assert!(engine.delete_vm(id).await.unwrap().deleted);

    let vm = created_vm(&engine).await;
    let deleted = engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    assert_eq!(serde_json::to_value(deleted).unwrap()["reason"], "explicit_delete");
}

#[tokio::test]
async fn a_started_vm_runs_one_command_and_is_gone() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = created_vm(&engine).await;
    let id = vm.vm_id.as_str();
    let started = engine.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    assert_eq!((started.state, started.execution_mode), (VmState::Started, ExecutionMode::GuestVsock));
    assert!(started.accelerator.is_some(), "{started:?}");
    assert_eq!((started.created_at, started.expires_at), (vm.created_at, vm.expires_at));
    assert_eq!(engine.status_vm(id).await.unwrap(), started);
    let text = format!("vm {id} cannot be started from state 'started'");
    assert_refused(engine.start_vm(id, &quiet(), &never()).await, ErrorKind::WrongState, &text);

    let mut bad = command("true");
    bad.timeout_seconds = Some(0);
    let text = "timeout_seconds must be positive";
    assert_refused(
        engine.exec_vm(exec(id, bad), &CallContext::new(quiet(), never())).await,
        ErrorKind::InvalidInput,
        text,
    );
    let result = engine
        .exec_vm(exec(id, command("echo done; exit 9")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!((result.exit_code, result.stdout.as_bytes()), (9, &b"done\n"[..]));
    assert_eq!(serde_json::to_value(result.cleanup).unwrap()["reason"], "post_exec_cleanup");
    let text = format!("vm '{id}' does not exist");
    assert_refused(engine.status_vm(id).await, ErrorKind::NotFound, &text);
}

#[tokio::test]
async fn a_stopped_vm_keeps_what_its_guest_wrote() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    crate::harness::exec_text(&sandbox.guest(&vm), "echo work > /workspace/file; rm /etc/debian_version")
        .await;
    assert_eq!(engine.stop_vm(id).await.unwrap().state, VmState::Stopped);
    assert_eq!(engine.stop_vm(id).await.unwrap().state, VmState::Stopped, "stopping again succeeds");
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    assert_eq!(engine.status_vm(id).await.unwrap().state, VmState::Stopped);
    let text = format!("vm {id} must be in 'started' state before execution");
    assert_refused(
        engine.exec_vm(exec(id, command("true")), &CallContext::new(quiet(), never())).await,
        ErrorKind::WrongState,
        &text,
    );
    assert_eq!(engine.start_vm(id, &quiet(), &never()).await.unwrap().state, VmState::Started);
    let line = "cat /workspace/file; ls /etc/debian_version 2>/dev/null || echo removed";
    let result = engine.exec_vm(exec(id, command(line)), &CallContext::new(quiet(), never())).await.unwrap();
    assert_eq!(result.stdout.to_text(), "work\nremoved\n");
}

#[tokio::test]
async fn a_started_vm_can_be_deleted() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    sandbox.wait_until_clean();
    assert_refused(engine.delete_vm(vm.vm_id.as_str()).await, ErrorKind::NotFound, "does not exist");
}

#[tokio::test]
async fn ids_that_name_no_vm_are_refused_whatever_they_look_like() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let victim = sandbox.state().join("victim");
    std::fs::create_dir_all(&victim).unwrap();
    for id in ["0123456789ab", "", "../victim", "..", "/", "0123456789AB", "0123456789ab/../x", "\u{1b}[2J\n"]
    {
        for result in [
            engine.start_vm(id, &quiet(), &never()).await.map(drop),
            engine.exec_vm(exec(id, command("true")), &CallContext::new(quiet(), never())).await.map(drop),
            engine.stop_vm(id).await.map(drop),
            engine.delete_vm(id).await.map(drop),
            engine.status_vm(id).await.map(drop),
            engine.network_info_vm(id).await.map(drop),
        ] {
            assert_refused(result, ErrorKind::NotFound, "does not exist");
        }
    }
    assert!(victim.exists());
    std::fs::remove_dir(victim).unwrap();
}

#[tokio::test]
async fn of_two_that_start_a_vm_one_does() {
    let sandbox = Sandbox::new();
    let (first, second) = (sandbox.engine(), sandbox.engine());
    let vm = created_vm(&first).await;
    let id = vm.vm_id.as_str();
    let (events, cancel) = (quiet(), never());
    let results = tokio::join!(first.start_vm(id, &events, &cancel), second.start_vm(id, &events, &cancel));
    let results = [results.0, results.1];
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = results.into_iter().find(Result::is_err).unwrap();
    assert_eq!(refused.unwrap_err().kind, ErrorKind::WrongState);
    let result = second
        .exec_vm(exec(id, command("echo one machine")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!(result.stdout.as_bytes(), b"one machine\n");
}

#[tokio::test]
async fn a_start_that_is_cancelled_leaves_the_vm_unchanged() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = created_vm(&engine).await;
    let id = vm.vm_id.as_str();
    let (events, cancel) = (quiet(), never());
    let boots = async {
        // A process that is not a child has no event for its start.
        let started = Instant::now();
        while !sandbox.processes().iter().any(crate::harness::is_vmm) {
            assert!(started.elapsed() < scaled(LONG), "timed out waiting for the VMM");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(engine.start_vm(id, &events, &cancel), boots);
    assert_refused(result, ErrorKind::Cancelled, "cancelled");
    crate::harness::wait_until(LONG, "end of the boot", || sandbox.processes().is_empty());
    assert_eq!(engine.status_vm(id).await.unwrap().state, VmState::Created);
    assert_eq!(engine.start_vm(id, &quiet(), &never()).await.unwrap().state, VmState::Started);
    engine.delete_vm(id).await.unwrap();
}
