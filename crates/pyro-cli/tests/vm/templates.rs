//! Starting from a template: VMs do so, clones have identities of their own, and a bad template is not used.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::harness::{Sandbox, exec_text, kill, never, quiet};
use pyro_engine::{Engine, VmSpec};

/// Starts a VM and returns how: `template` or `cold`.
async fn start_mode(engine: &Engine, change: impl FnOnce(&mut VmSpec)) -> (String, Option<String>) {
    let mut spec = VmSpec::new(crate::harness::ENVIRONMENT);
    change(&mut spec);
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    let vm = engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.unwrap();
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    (vm.metadata["start_mode"].clone(), vm.metadata.get("template_warning").cloned())
}

/// Directories of complete templates.
fn templates(sandbox: &Sandbox) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(sandbox.state().join("templates")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.join("template.json").exists()).collect()
}

/// The real VMM under another version.
fn vmm_of_version(sandbox: &Sandbox, version: &str) -> PathBuf {
    let script = sandbox.path("vmm");
    let path = std::env::var("PATH").unwrap();
    let text = format!(
        "#!/bin/sh\nPATH={path}\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version {version}'; exit; fi\n\
         exec qemu-system-x86_64 \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[tokio::test]
async fn each_kind_of_machine_gets_one_template() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    for _ in 0..2 {
        assert_eq!(start_mode(&engine, |_| {}).await, ("template".to_owned(), None));
        assert_eq!(templates(&sandbox).len(), 1);
    }
    assert_eq!(start_mode(&engine, |spec| spec.mem_mib = 512).await.0, "template");
    assert_eq!(start_mode(&engine, |spec| spec.vcpu_count = 2).await.0, "template");
    assert_eq!(templates(&sandbox).len(), 3);
}

#[test]
fn clones_of_one_template_are_different_machines() {
    let sandbox = Sandbox::new();
    // The first makes the template, the others start from it.
    let line = "cat /etc/machine-id; uname -n; cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id; \
                head -c 16 /dev/urandom | od -An -tx1; mktemp -u XXXXXXXXXXXXXXXX";
    let seen: Vec<Vec<String>> = (0..3)
        .map(|_| sandbox.run([], line).success().lines().map(|line| line.trim().to_owned()).collect())
        .collect();
    assert_eq!(templates(&sandbox).len(), 1);
    for property in 0..6 {
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            assert_ne!(seen[one][property], seen[other][property], "{seen:?}");
        }
    }
}

#[tokio::test]
async fn the_clock_of_a_clone_is_the_hosts() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    start_mode(&engine, |_| {}).await;
    let vm = sandbox.started_vm(&engine).await;
    assert_eq!(vm.metadata["start_mode"], "template");
    let guest = sandbox.guest(&vm);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    // The exchange itself takes time, so the guest's clock must lie between two readings of the host's.
    let before = now();
    let guest_time: f64 = exec_text(&guest, "date +%s.%N").await.trim().parse().unwrap();
    let after = now();
    assert!(before - 0.05 < guest_time && guest_time < after + 0.05, "{before} {guest_time} {after}");
    // The kernel has no doubts about its clocks.
    let doubts =
        exec_text(&guest, "dmesg | grep -iE 'unstable|clocksource: .*(skew|watchdog)|lockup|stall' || true");
    assert_eq!(doubts.await, "");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[tokio::test]
async fn the_processors_of_a_clone_agree_on_the_time() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let spec = VmSpec { vcpu_count: 2, ..VmSpec::new(crate::harness::ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    let vm = engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.unwrap();
    assert_eq!(vm.metadata["start_mode"], "template");
    let times = "for n in 1 2 3 4 5 6 7 8 9; do for cpu in 0 1; do taskset -c $cpu date +%s%N; done; done";
    let times = exec_text(&sandbox.guest(&vm), times).await;
    let times: Vec<u64> = times.lines().map(|time| time.parse().unwrap()).collect();
    assert_eq!(times.len(), 18);
    assert!(times.is_sorted(), "{times:?}");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[test]
fn a_template_holds_no_identity() {
    let sandbox = Sandbox::new();
    sandbox.run([], "true").success();
    let layer = templates(&sandbox)[0].join("layer.img");
    // The files that the template's guest has written. None may be a key, a seed or an id.
    let debugfs = |request: &str| {
        let output = std::process::Command::new("/sbin/debugfs").args(["-R", request]).arg(&layer).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let listing = debugfs("ls -p /upper/etc");
    let names =
        listing.lines().filter_map(|line| line.split('/').nth(5)).filter(|name| !name.starts_with('.'));
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    assert_eq!(names, ["hostname", "hosts", "machine-id", "resolv.conf"], "{listing}");
    for name in names {
        let content = debugfs(&format!("cat /upper/etc/{name}"));
        assert_eq!(content.trim(), "", "{name} has something to say");
    }
}

#[tokio::test]
async fn clones_have_networks_of_their_own() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let mut vms = Vec::new();
    for _ in 0..2 {
        let spec = VmSpec { network: true, ..VmSpec::new(crate::harness::ENVIRONMENT) };
        let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
        vms.push(engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.unwrap());
    }
    for vm in vms {
        assert_eq!(vm.metadata["start_mode"], "template");
        let routes = exec_text(&sandbox.guest(&vm), "cat /proc/net/route /etc/resolv.conf").await;
        // The default route's gateway, as the kernel prints it, and the resolver.
        assert!(
            routes.contains("eth0\t00000000\t0202000A") && routes.contains("nameserver 10.0.2.3"),
            "{routes}"
        );
        engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    }
}

#[test]
fn pulling_an_environment_makes_the_template_of_its_runs() {
    let sandbox = Sandbox::new();
    sandbox.pyro(["env", "pull", crate::harness::ENVIRONMENT]).success();
    let made = templates(&sandbox);
    assert_eq!(made.len(), 1);
    sandbox.run([], "true").success();
    assert_eq!(templates(&sandbox), made);
}

#[test]
fn pruning_removes_templates_of_no_use_and_no_others() {
    let sandbox = Sandbox::new();
    sandbox.pyro(["env", "pull", crate::harness::ENVIRONMENT]).success();
    // Versions that an earlier build has left in the cache of the tests.
    sandbox.pyro(["env", "prune"]).success();
    let dir = sandbox.state().join("templates");
    fs::create_dir(dir.join(".partial-dead")).unwrap();
    let pruned = sandbox.pyro(["env", "prune", "--json"]).json();
    assert_eq!((&pruned["deleted_templates"], &pruned["count"]), (&1.into(), &0.into()));
    assert_eq!(templates(&sandbox).len(), 1);
    fs::write(templates(&sandbox)[0].join("template.json"), "{}").unwrap();
    assert_eq!(sandbox.pyro(["env", "prune", "--json"]).json()["deleted_templates"], 1);
    assert_eq!(templates(&sandbox).len(), 0);
}

#[test]
fn a_maker_that_is_killed_leaves_nothing_that_is_used() {
    let sandbox = Sandbox::new();
    for _ in 0..3 {
        let running = sandbox.start_run([], "echo never");
        sandbox.vmm();
        kill(sandbox.supervisor().pid, rustix::process::Signal::KILL);
        running.finish().error();
        assert_eq!(templates(&sandbox).len(), 0);
    }
    assert_eq!(sandbox.run([], "echo fine").success(), "fine\n");
    let names = fs::read_dir(sandbox.state().join("templates")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with(".partial")), "{names:?}");
}

#[tokio::test]
async fn a_damaged_template_is_replaced() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    start_mode(&engine, |_| {}).await;
    for file in ["memory", "state", "layer.img", "template.json"] {
        let path = templates(&sandbox)[0].join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(start_mode(&engine, |_| {}).await, ("template".to_owned(), None), "{file}");
        assert_eq!(templates(&sandbox).len(), 1);
    }
}

#[tokio::test]
async fn state_that_the_vmm_refuses_costs_one_cold_boot() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    start_mode(&engine, |_| {}).await;
    // As its record says, but the wrong content: only the VMM can tell.
    let path = templates(&sandbox)[0].join("state");
    let before = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 512], 0).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    record_change(&templates(&sandbox)[0].join("template.json"), &path);

    let (mode, warning) = start_mode(&engine, |_| {}).await;
    assert_eq!(mode, "cold");
    assert!(warning.is_some());
    assert_eq!(start_mode(&engine, |_| {}).await, ("template".to_owned(), None));
}

#[tokio::test]
async fn a_template_that_was_changed_in_place_is_not_used() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    start_mode(&engine, |_| {}).await;
    let path = templates(&sandbox)[0].join("memory");
    let before = fs::metadata(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 512], 1 << 20).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    // Another one is made.
    assert_eq!(start_mode(&engine, |_| {}).await, ("template".to_owned(), None));
    assert_ne!(fs::metadata(&path).unwrap().ino(), before.ino());
}

/// Makes a record say of a file that it was last changed when it was.
fn record_change(record: &Path, file: &Path) {
    let found = fs::metadata(file).unwrap();
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let entry = &mut text["files"][file.file_name().unwrap().to_str().unwrap()];
    entry["changed_seconds"] = found.ctime().into();
    entry["changed_nanos"] = found.ctime_nsec().into();
    fs::write(record, text.to_string()).unwrap();
}

#[tokio::test]
async fn another_vmm_version_has_another_template() {
    let sandbox = Sandbox::new();
    start_mode(&sandbox.engine(), |_| {}).await;
    let script = vmm_of_version(&sandbox, "99.0");
    let engine = sandbox.engine_with(|config| config.vmm_program = Some(script));
    assert_eq!(start_mode(&engine, |_| {}).await.0, "template");
    assert_eq!(templates(&sandbox).len(), 2);
}

#[tokio::test]
async fn a_vmm_that_is_too_old_boots_its_kernel() {
    let sandbox = Sandbox::new();
    let script = vmm_of_version(&sandbox, "7.2.0");
    let engine = sandbox.engine_with(|config| config.vmm_program = Some(script));
    let (mode, warning) = start_mode(&engine, |_| {}).await;
    assert_eq!((mode.as_str(), warning.unwrap().contains("too old")), ("cold", true));
    assert_eq!(templates(&sandbox).len(), 0);
}

#[tokio::test]
async fn a_stopped_vm_starts_again_with_what_it_wrote() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let id = vm.vm_id.as_str();
    exec_text(&sandbox.guest(&vm), "echo kept > /workspace/file").await;
    engine.stop_vm(id).await.unwrap();
    // The guest has halted in an orderly way, or its supervisor would log a warning.
    let log = fs::read_to_string(sandbox.vm_dir(id).join("supervisor.log")).unwrap();
    assert_eq!(log, "");
    let again = engine.start_vm(id, &quiet(), &never()).await.unwrap();
    // Its layer is no longer the template's.
    assert_eq!(again.metadata["start_mode"], "cold");
    assert_eq!(exec_text(&sandbox.guest(&vm), "cat /workspace/file").await, "kept\n");
    engine.delete_vm(id).await.unwrap();
}
