//! Lifetimes. The minimum is 60 seconds, so these tests are slow, but they mostly wait.

use std::time::{SystemTime, UNIX_EPOCH};

use pyro_engine::{CallContext, Command, ErrorKind, VmSpec};

use crate::harness::{ENVIRONMENT, LONG, Sandbox, chain, command, exec, never, quiet, wait_until};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The time limit of a single run raises the lifetime of its VM; that of a command for an existing VM does not.
#[tokio::test]
async fn a_command_that_outlives_its_vm_fails_with_the_reason() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let spec = VmSpec { ttl_seconds: 60, ..VmSpec::new(ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    let long = Command { timeout_seconds: Some(900), ..Command::new("sleep 900") };
    let error =
        engine.exec_vm(exec(vm.vm_id.as_str(), long), &CallContext::new(quiet(), never())).await.unwrap_err();
    assert!(chain(&error).contains("expired and was automatically deleted"), "{}", chain(&error));
    let late = now() - vm.expires_at;
    assert!((-0.01..15.0).contains(&late), "{late} s after its time");
    engine.reap_expired().await.unwrap();
    sandbox.wait_until_clean();
}

/// One VM in each state: they are removed at their end or by the next call, and every later use reports why.
#[tokio::test]
async fn vms_are_gone_at_the_end_of_their_lifetime() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let spec = || VmSpec { ttl_seconds: 60, ..VmSpec::new(ENVIRONMENT) };
    let started = engine.create_vm(spec(), &quiet(), &never()).await.unwrap();
    let created = engine.create_vm(spec(), &quiet(), &never()).await.unwrap();
    let stopped = engine.create_vm(spec(), &quiet(), &never()).await.unwrap();
    assert!((started.expires_at - started.created_at - 60.0).abs() < 0.001);
    engine.start_vm(stopped.vm_id.as_str(), &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    engine.stop_vm(stopped.vm_id.as_str()).await.unwrap();
    engine.start_vm(started.vm_id.as_str(), &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();

    // No call is needed: its own supervisor ends the running one, to the second.
    let dir = sandbox.vm_dir(started.vm_id.as_str());
    assert!(dir.exists());
    wait_until(LONG, "end of the running VM", || !dir.exists());
    let late = now() - started.expires_at;
    println!("gone {late:.3} s after its time");
    assert!((-0.01..2.0).contains(&late), "{late} s after its time");

    wait_until(LONG, "end of the other lifetimes", || now() > stopped.expires_at);
    for vm in [&started, &created] {
        let id = vm.vm_id.as_str();
        for _ in 0..2 {
            let error = engine.status_vm(id).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Expired);
            assert_eq!(error.message, format!("vm '{id}' expired and was automatically deleted"));
        }
        let error = engine.start_vm(id, &quiet(), &never()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expired);
        let error =
            engine.exec_vm(exec(id, command("true")), &CallContext::new(quiet(), never())).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expired);
    }

    // Another process removes them, and reports each once.
    let reaped = sandbox.engine().reap_expired().await.unwrap();
    let mut expected = vec![started.vm_id, created.vm_id, stopped.vm_id];
    expected.sort();
    assert_eq!((reaped.deleted_vm_ids, reaped.count), (expected, 3));
    assert_eq!(engine.reap_expired().await.unwrap().count, 0);
}
