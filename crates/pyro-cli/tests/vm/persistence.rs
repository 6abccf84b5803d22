//! VMs and the processes that use them: which VMs each sees, and which outlive it.

use std::process::{Command, Stdio};
use std::time::Duration;

use pyro_engine::{CallContext, ErrorKind, VmSpec, VmState};

use crate::harness::{ENVIRONMENT, Sandbox, chain, command, exec, exec_text, never, quiet};

#[tokio::test]
async fn a_vm_is_visible_to_every_engine_of_the_user() {
    let sandbox = Sandbox::new();
    let (first, second) = (sandbox.engine(), sandbox.engine());
    let vm = first.create_vm(VmSpec::new(ENVIRONMENT), &quiet(), &never()).await.unwrap();
    let id = vm.vm_id.as_str();
    assert_eq!(second.status_vm(id).await.unwrap(), vm);
    let started = second.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    assert_eq!(first.status_vm(id).await.unwrap(), started);
    drop(second);
    let result =
        first.exec_vm(exec(id, command("echo seen")), &CallContext::new(quiet(), never())).await.unwrap();
    assert_eq!(result.stdout.as_bytes(), b"seen\n");
}

/// Names the state directory in which this test binary, started again, starts a VM.
const START_IN: &str = "PYRO_VM_TEST_START_IN";

/// The test starts itself once more as the process that starts the VM and ends.
#[tokio::test]
async fn a_started_vm_survives_the_process_that_started_it() {
    if let Some(state) = std::env::var_os(START_IN) {
        let sandbox = Sandbox::new();
        let engine = sandbox.engine_with(|config| config.base_dir = state.into());
        sandbox.started_vm(&engine).await;
        return;
    }
    let sandbox = Sandbox::new();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "persistence::a_started_vm_survives_the_process_that_started_it"])
        .env(START_IN, sandbox.state())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let vms: Vec<_> = std::fs::read_dir(sandbox.state().join("vms")).unwrap().collect();
    assert_eq!(vms.len(), 1);
    let id = vms.into_iter().next().unwrap().unwrap().file_name().into_string().unwrap();
    let engine = sandbox.engine();
    assert_eq!(engine.status_vm(&id).await.unwrap().state, VmState::Started);
    let result = engine
        .exec_vm(exec(&id, command("echo still here")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!(result.stdout.as_bytes(), b"still here\n");
}

#[tokio::test]
async fn the_command_line_counts_vms_of_other_processes() {
    let sandbox = Sandbox::new().set("PYRO_MAX_ACTIVE_VMS", "1");
    let engine = sandbox.engine();
    let vm = engine.create_vm(VmSpec::new(ENVIRONMENT), &quiet(), &never()).await.unwrap();
    let refused = sandbox.run([], "echo never");
    assert!(refused.error().contains("max active VMs reached (1)"), "{refused:?}");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_vm_whose_vmm_is_killed_is_stopped_and_can_start_again() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    exec_text(&sandbox.guest(&vm), "echo work > /workspace/file; sync").await;
    crate::harness::kill(sandbox.vmm().pid, rustix::process::Signal::KILL);
    crate::harness::wait_until(crate::harness::LONG, "end of the supervisor", || {
        sandbox.processes().is_empty()
    });
    assert_eq!(engine.status_vm(id).await.unwrap().state, VmState::Stopped);
    engine.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    let result = engine
        .exec_vm(exec(id, command("cat /workspace/file")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!(result.stdout.as_bytes(), b"work\n");
}

#[tokio::test]
async fn a_start_waits_for_a_supervisor_that_has_not_exited_yet() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    engine.stop_vm(id).await.unwrap();
    // As a supervisor does that has recorded the end and is about to exit.
    let lock = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(sandbox.state().join("vms").join(id).join("owner.lock"))
        .unwrap();
    lock.lock().unwrap();
    let (events, cancel) = (quiet(), never());
    let mut start = Box::pin(engine.start_vm(id, &events, &cancel));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut start).await;
    assert!(early.is_err(), "{early:?}");
    drop(lock);
    assert_eq!(start.await.unwrap().state, VmState::Started);
    engine.delete_vm(id).await.unwrap();
}

#[tokio::test]
async fn a_vm_whose_supervisor_is_killed_is_stopped_and_can_start_again() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    exec_text(&sandbox.guest(&vm), "echo work > /workspace/file; sync").await;
    crate::harness::kill(sandbox.supervisor().pid, rustix::process::Signal::KILL);
    let state = sandbox.state();
    crate::harness::wait_until(crate::harness::LONG, "end of the supervisor", || {
        !sandbox.processes().iter().any(|process| process.is_supervisor_of(&state))
    });
    // Its VMM may still have the disk open.
    assert_eq!(engine.status_vm(id).await.unwrap().state, VmState::Stopped);
    let error =
        engine.exec_vm(exec(id, command("true")), &CallContext::new(quiet(), never())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WrongState);
    engine.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    let result = engine
        .exec_vm(exec(id, command("cat /workspace/file")), &CallContext::new(quiet(), never()))
        .await
        .unwrap();
    assert_eq!(result.stdout.as_bytes(), b"work\n");
}

#[tokio::test]
async fn a_command_in_a_vm_that_breaks_down_is_lost_and_the_reason_is_told() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    let line = "echo c > /proc/sysrq-trigger; sleep 50";
    let error =
        engine.exec_vm(exec(id, command(line)), &CallContext::new(quiet(), never())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{}", chain(&error));
    assert!(chain(&error).contains("Kernel panic"), "{}", chain(&error));
    assert_eq!(engine.status_vm(id).await.unwrap().state, VmState::Stopped);
    engine.delete_vm(id).await.unwrap();
}
