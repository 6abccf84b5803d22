//! Spares: the next start gets one, only one start gets it, and they are removed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyro_engine::{Engine, HostCa, Vm, VmSpec};
use rustix::process::Signal;

use crate::harness::{
    ENVIRONMENT, GONE_WITHIN, LONG, Sandbox, exec_text, kill, never, quiet, scaled, wait_until,
};

fn warm_engine(sandbox: &Sandbox) -> Engine {
    sandbox.engine_with(|config| config.warm_spares = 1)
}

async fn start(engine: &Engine, mem_mib: i64) -> Vm {
    let spec = VmSpec { mem_mib, ..VmSpec::new(ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.unwrap()
}

/// Sockets of the spares that can be claimed.
fn waiting(sandbox: &Sandbox) -> Vec<PathBuf> {
    let subdirectories =
        |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let spares = subdirectories(sandbox.state().join("spares")).flat_map(subdirectories);
    spares.map(|spare| spare.join("control.sock")).filter(|socket| socket.exists()).collect()
}

fn wait_for_spare(sandbox: &Sandbox) -> PathBuf {
    wait_until(LONG, "spare", || waiting(sandbox).len() == 1);
    waiting(sandbox).remove(0)
}

/// Ends the spares, which would wait longer than any test.
fn end_spares(sandbox: &Sandbox) {
    wait_until(LONG, "end of the spares", || {
        let state = sandbox.state();
        for process in sandbox.processes() {
            if process.is_supervisor_of(&state) {
                kill(process.pid, Signal::TERM);
            }
        }
        sandbox.processes().is_empty()
    });
}

#[tokio::test]
async fn the_next_start_of_the_kind_gets_the_spare() {
    let sandbox = Sandbox::new();
    let engine = warm_engine(&sandbox);
    let first = start(&engine, 1024).await;
    assert_eq!(first.metadata["start_mode"], "template");
    let spare = wait_for_spare(&sandbox);

    // A VM of another kind cannot use it.
    let other = start(&sandbox.engine(), 512).await;
    assert_eq!(other.metadata["start_mode"], "template");
    assert_eq!(waiting(&sandbox), std::slice::from_ref(&spare));

    let second = start(&engine, 1024).await;
    assert_eq!(second.metadata["start_mode"], "spare");
    assert!(!spare.exists());
    let successor = wait_for_spare(&sandbox);
    assert_ne!(successor, spare);
    // A spare does not count as a user's VM.
    for vm in [first, other, second] {
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
    assert_eq!(waiting(&sandbox), [successor]);
    end_spares(&sandbox);
}

#[tokio::test]
async fn a_claimed_spare_has_the_hosts_settings_that_were_asked_for() {
    let sandbox = Sandbox::new();
    let bundle = sandbox.path("home").join("bundle.pem");
    fs::write(&bundle, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
    let engine = warm_engine(&sandbox);
    let first = start(&engine, 1024).await;
    let certificates = "grep -c BEGIN $SSL_CERT_FILE; stat -c '%a %n' $SSL_CERT_FILE";
    assert_eq!(
        exec_text(&sandbox.guest(&first), "echo $SSL_CERT_FILE; ls /run/pyro 2>&1 | wc -l").await,
        "\n1\n"
    );
    wait_for_spare(&sandbox);
    let host_ca = Some(HostCa::Bundle(bundle.to_str().unwrap().to_owned()));
    let spec = VmSpec { host_ca, ..VmSpec::new(ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    let second = engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.unwrap();
    assert_eq!(second.metadata["start_mode"], "spare");
    assert_eq!(second.metadata["host_ca"], bundle.to_str().unwrap());
    assert_eq!(exec_text(&sandbox.guest(&second), certificates).await, "1\n644 /run/pyro/host-ca.pem\n");
    // What one VM got is not left to the next.
    wait_for_spare(&sandbox);
    let third = start(&engine, 1024).await;
    assert_eq!(third.metadata["start_mode"], "spare");
    assert_eq!(
        exec_text(&sandbox.guest(&third), "echo $SSL_CERT_FILE; ls /run/pyro 2>&1 | wc -l").await,
        "\n1\n"
    );
    for vm in [first, second, third] {
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
    end_spares(&sandbox);
}

#[tokio::test]
async fn a_claimed_spare_is_the_machine_that_was_asked_for() {
    let sandbox = Sandbox::new();
    let engine = warm_engine(&sandbox);
    let line = "uname -n; cat /etc/hostname /etc/machine-id; cat /proc/sys/kernel/random/uuid; \
                head -c 16 /dev/urandom | od -An -tx1; mktemp -u XXXXXXXXXXXXXXXX; ls -A /workspace | wc -l";
    let mut seen = Vec::new();
    let mut vms = vec![start(&engine, 1024).await];
    for _ in 0..2 {
        wait_for_spare(&sandbox);
        let vm = start(&engine, 1024).await;
        assert_eq!(vm.metadata["start_mode"], "spare");
        let guest = sandbox.guest(&vm);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let before = now();
        let time: f64 = exec_text(&guest, "date +%s.%N").await.trim().parse().unwrap();
        assert!(before - 0.05 < time && time < now() + 0.05, "{before} {time}");
        let lines: Vec<String> = exec_text(&guest, line).await.lines().map(str::to_owned).collect();
        let name = format!("pyro-{}", vm.vm_id);
        assert_eq!([&lines[0], &lines[1], &lines[6]], [&name, &name, "0"]);
        seen.push(lines);
        vms.push(vm);
    }
    for property in 2..6 {
        assert_ne!(seen[0][property], seen[1][property], "{seen:?}");
    }
    // It stops and starts again like any other.
    let id = vms[1].vm_id.as_str();
    exec_text(&sandbox.guest(&vms[1]), "echo kept > file").await;
    engine.stop_vm(id).await.unwrap();
    engine.start_vm(id, &quiet(), &never()).await.unwrap();
    assert_eq!(exec_text(&sandbox.guest(&vms[1]), "cat file").await, "kept\n");
    for vm in vms {
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
    end_spares(&sandbox);
}

#[tokio::test]
async fn one_spare_goes_to_one_start() {
    let sandbox = Sandbox::new();
    let first = start(&warm_engine(&sandbox), 1024).await;
    wait_for_spare(&sandbox);
    let engine = sandbox.engine();
    let (a, b, c) = tokio::join!(start(&engine, 1024), start(&engine, 1024), start(&engine, 1024));
    let vms = [first, a, b, c];
    let spares = vms.iter().filter(|vm| vm.metadata["start_mode"] == "spare").count();
    assert_eq!(spares, 1);
    for vm in &vms {
        assert_eq!(exec_text(&sandbox.guest(vm), "uname -n").await, format!("pyro-{}\n", vm.vm_id));
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
}

#[test]
fn a_run_with_warm_leaves_a_spare_for_the_next() {
    let sandbox = Sandbox::new();
    sandbox.run(["--warm"], "true").success();
    let spare = wait_for_spare(&sandbox);
    let ended = sandbox.run(["--timings", "--json"], "uname -n");
    let document = ended.json();
    let phases: Vec<&str> =
        document["timings"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(phases, ["environment", "registry", "supervisor", "identity", "command", "end"]);
    assert_eq!(document["stdout"], format!("pyro-{}\n", document["vm_id"].as_str().unwrap()));
    assert!(!spare.exists());
    // No call asked for another one.
    sandbox.wait_until_clean();
}

/// A template has none, and neither has a spare: they come with the start.
#[test]
fn live_directories_come_to_guests_from_templates_and_spares() {
    let sandbox = Sandbox::new();
    let (read, written) = (sandbox.path("read"), sandbox.path("written"));
    fs::create_dir_all(&read).unwrap();
    fs::create_dir_all(&written).unwrap();
    fs::write(read.join("file"), "content\n").unwrap();
    let first = format!("{}:/mnt/read", read.display());
    let second = format!("{}:/mnt/written:rw", written.display());
    let flags = ["--warm", "--timings", "--json", "--mount", &*first, "--mount", &*second];
    let line = "cat /mnt/read/file; echo from $(uname -n) > /mnt/written/file";
    for start in ["restore", "identity"] {
        let document = sandbox.run(flags, line).json();
        assert_eq!(document["stdout"], "content\n", "{document}");
        let phases = document["timings"].as_array().unwrap();
        let starts: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
        // A spare is restored before it is claimed.
        assert_eq!(starts.contains(&"restore"), start == "restore", "{starts:?}");
        assert!(starts.contains(&start), "{starts:?}");
        let text = fs::read_to_string(written.join("file")).unwrap();
        assert_eq!(text, format!("from pyro-{}\n", document["vm_id"].as_str().unwrap()));
        wait_for_spare(&sandbox);
    }
    let nowhere = format!("{}:/etc/hostname/below", read.display());
    let refused = sandbox.run(["--mount", &*nowhere], "echo never");
    assert!(refused.error().contains("/etc/hostname/below"), "{refused:?}");
    end_spares(&sandbox);
    sandbox.wait_until_clean();
}

#[tokio::test]
async fn a_spare_gives_way_to_vms() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine_with(|config| (config.warm_spares, config.max_active_vms) = (1, 2));
    let first = start(&engine, 1024).await;
    wait_for_spare(&sandbox);
    // With this one the capacity is reached, and the spare is of another kind.
    let second = start(&engine, 512).await;
    assert_eq!(waiting(&sandbox).len(), 0);
    let third = engine.create_vm(VmSpec::new(ENVIRONMENT), &quiet(), &never()).await;
    assert_eq!(third.unwrap_err().kind, pyro_engine::ErrorKind::AtCapacity);
    for vm in [first, second] {
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
    end_spares(&sandbox);
}

#[tokio::test]
async fn a_spare_that_nobody_wants_goes() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine_with(|config| (config.warm_spares, config.spare_idle_seconds) = (1, 3));
    let vm = start(&engine, 1024).await;
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    wait_until(LONG, "spare's end", || sandbox.processes().is_empty());
}

#[tokio::test]
async fn a_spare_that_dies_is_no_obstacle() {
    let sandbox = Sandbox::new();
    let engine = warm_engine(&sandbox);
    let vm = start(&engine, 1024).await;
    let id = vm.vm_id.as_str();
    let spare = wait_for_spare(&sandbox);
    // Its supervisor is killed silently, and its directory stays.
    let lock = spare.with_file_name("owner.lock");
    let owner = sandbox.wait_for_process("spare's supervisor", |process| process.holds(&lock));
    kill(owner.pid, Signal::KILL);
    wait_until(GONE_WITHIN, "end of the spare", || !sandbox.processes().iter().any(|left| left.holds(&lock)));

    let next = start(&sandbox.engine(), 1024).await;
    assert_eq!(next.metadata["start_mode"], "template");
    assert!(!spare.parent().unwrap().exists(), "cleared away");
    for id in [id, next.vm_id.as_str()] {
        engine.delete_vm(id).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_is_killed_while_a_spare_is_claimed_nothing_is_left() {
    let sandbox = Sandbox::new();
    sandbox.run(["--warm"], "true").success();
    for round in 0..8_u64 {
        wait_for_spare(&sandbox);
        let running = sandbox.start_run(["--warm"], "echo never; sleep 100");
        // Later in each round, across the claim.
        std::thread::sleep(Duration::from_millis(round * 8));
        running.signal(Signal::KILL);
        drop(running);
        // The spare may still be there, or may have ended with its claimer.
        assert_eq!(sandbox.run(["--warm"], "echo fine").success(), "fine\n");
        // Nothing is left of the run once another process has checked.
        let begin = Instant::now();
        let of_vms = |left: &String| left.starts_with("file vms/") || left.starts_with("record");
        loop {
            sandbox.engine().reap_expired().await.unwrap();
            let left: Vec<String> = sandbox.leftovers().into_iter().filter(of_vms).collect();
            if left.is_empty() {
                break;
            }
            assert!(begin.elapsed() < scaled(GONE_WITHIN), "round {round}: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    end_spares(&sandbox);
}
