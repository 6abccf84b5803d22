//! Ends of VMs whose processes do not behave, without a machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use pyro_supervisor::{GENERATION, Owner, OwnerLock, Phase, files};
use tempfile::TempDir;

use super::*;
use crate::limits::Sizing;
use crate::registry::{NewVm, VmPatch};
use crate::{CallContext, ExecutionMode, HostAccess, Kind, StopReason, VmState};

mod owners;

pub(super) fn engine(root: &Path) -> Engine {
    Engine::new(Config::new(root.join("state"), root.join("cache"), root.join("pyro")))
}

/// Records a VM that was never started.
pub(super) fn created(engine: &Engine, number: u32, kind: Kind) -> VmId {
    insert(engine, NewVm { kind, ..new_vm(number) })
}

/// Records a VM that runs in this way, with its directory.
pub(super) fn started(engine: &Engine, number: u32, mode: ExecutionMode, created_at: f64) -> VmId {
    let ephemeral = mode == ExecutionMode::HostCompat;
    let id = insert(engine, NewVm { ephemeral, created_at, ..new_vm(number) });
    start(engine, &id, mode);
    id
}

fn new_vm(number: u32) -> NewVm {
    NewVm {
        vm_id: VmId::parse(&format!("{number:012x}")).unwrap(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at: now(),
        kind: Kind::Vm,
        ephemeral: false,
        disk_mib: None,
        network: None,
        mounts: Vec::new(),
        ports: Vec::new(),
        host_choice: Default::default(),
        host_access: HostAccess::Allowed,
        metadata: BTreeMap::new(),
        naming: Default::default(),
        ttl_from: Default::default(),
        owner: None,
    }
}

fn insert(engine: &Engine, vm: NewVm) -> VmId {
    engine.shared.registry.insert(&vm, 16).unwrap();
    fs::create_dir_all(engine.vm_dir(&vm.vm_id)).unwrap();
    vm.vm_id
}

fn start(engine: &Engine, id: &VmId, mode: ExecutionMode) {
    let patch = VmPatch { execution_mode: Some(mode), ..VmPatch::default() };
    engine.shared.registry.set_started(id, &patch).unwrap();
}

/// Starts a process that holds the lock of the VM in `dir`, presents itself as its supervisor, and dies of a signal
/// without having recorded anything.
fn fragile_supervisor(dir: &Path) -> Child {
    let lock = File::create(dir.join(files::OWNER_LOCK)).unwrap();
    lock.lock().unwrap();
    // A supervisor is recognised by its first argument.
    fs::write(dir.join("supervise"), "read line").unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg("supervise").current_dir(dir).stdin(Stdio::piped()).stdout(lock);
    let child = command.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let started = fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let owner =
        Owner { pid, started, version: "1".to_owned(), generation: GENERATION, phase: Phase::Running };
    fs::write(dir.join(files::OWNER), serde_json::to_vec(&owner).unwrap()).unwrap();
    child
}

#[tokio::test]
async fn a_supervisor_that_dies_while_it_stops_a_vm_is_not_an_orderly_stop() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    let id = started(&engine, 1, ExecutionMode::GuestVsock, now());
    let mut supervisor = fragile_supervisor(&engine.vm_dir(&id));
    engine.stop_vm(id.as_str()).await.unwrap();
    assert!(!supervisor.wait().unwrap().success());
    let record = engine.get(Kind::Vm, &id).await.unwrap();
    assert_eq!((record.state, record.stop_reason), (VmState::Stopped, Some(StopReason::OwnerVanished)));
    let error = record.last_error.unwrap();
    assert!(error.contains("its supervisor was lost while it was stopping the VM"), "{error}");
}

#[tokio::test]
async fn a_stop_keeps_why_a_vm_had_ended_before() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    let vanished = started(&engine, 1, ExecutionMode::GuestVsock, now());
    for _ in 0..2 {
        engine.stop_vm(vanished.as_str()).await.unwrap();
        let record = engine.get(Kind::Vm, &vanished).await.unwrap();
        assert_eq!(
            (record.state, record.stop_reason, record.last_error.as_deref()),
            (
                VmState::Stopped,
                Some(StopReason::OwnerVanished),
                Some("backing guest process is no longer running")
            )
        );
    }
    // A VM on the host has no supervisor that could be lost.
    let on_host = started(&engine, 2, ExecutionMode::HostCompat, now());
    engine.stop_vm(on_host.as_str()).await.unwrap();
    let record = engine.get(Kind::Vm, &on_host).await.unwrap();
    assert_eq!((record.stop_reason, record.last_error), (Some(StopReason::ExplicitStop), None));
}

/// Its command may take longer than its lifetime, and its process is asked by no one.
#[tokio::test]
async fn an_expired_run_on_the_host_that_goes_on_delays_and_fails_no_other_call() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    let running = started(&engine, 1, ExecutionMode::HostCompat, 1.0);
    let lock = OwnerLock::try_acquire(&engine.vm_dir(&running)).unwrap().unwrap();
    let over = started(&engine, 2, ExecutionMode::GuestVsock, 1.0);
    let began = Instant::now();
    engine.reconcile().await.unwrap();
    assert_eq!(*engine.reap_expired().await.unwrap().deleted_vm_ids, [over]);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    drop(lock);
    engine.reap_expired().await.unwrap();
    assert!(engine.get(Kind::Vm, &running).await.is_err());
}

#[tokio::test]
async fn a_vm_that_cannot_be_removed_does_not_keep_others() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    // Its directory is a file, which is not removed as a directory.
    let stuck = started(&engine, 1, ExecutionMode::GuestVsock, 1.0);
    fs::remove_dir(engine.vm_dir(&stuck)).unwrap();
    fs::write(engine.vm_dir(&stuck), "").unwrap();
    let over = started(&engine, 2, ExecutionMode::GuestVsock, 1.0);
    assert_eq!(*engine.reap_expired().await.unwrap().deleted_vm_ids, [over]);
    assert!(engine.get(Kind::Vm, &stuck).await.is_ok());
}

/// Guests' text is made safe below this crate, and that of the contract above it, by the same rule.
#[test]
fn both_rules_for_text_are_the_same() {
    for character in '\0'..=char::MAX {
        assert_eq!(pyro_wire::steers(character), pyro_api::text::steers(character), "{character:?}");
    }
}

/// An engine on a host on which no VM can run, and a command that makes the registry unusable, as a full disk does.
fn engine_and_saboteur(root: &Path) -> (Engine, crate::Command) {
    let config = Config::new(root.join("state"), root.join("cache"), root.join("pyro"));
    let engine = Engine::new(Config {
        search_path: "/usr/bin:/bin".into(),
        vmm_program: Some(root.join("none")),
        ..config
    });
    let state = root.join("state/state.sqlite3");
    let text = format!("echo done; mv {0} {0}.away; mkdir {0}", state.display());
    (engine, crate::Command::new(text))
}

/// Undoes what that command did.
fn repair(root: &Path) {
    let state = root.join("state/state.sqlite3");
    fs::remove_dir(&state).unwrap();
    fs::rename(root.join("state/state.sqlite3.away"), state).unwrap();
}

fn capture() -> crate::CommandOutput {
    crate::CommandOutput { output: crate::OutputMode::Capture }
}

fn assert_warned(events: &mut tokio::sync::mpsc::Receiver<crate::Event>, start: &str) {
    let mut texts = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let crate::Event::Warning(text) = event {
            texts.push(text);
        }
    }
    assert!(texts.len() == 1 && texts[0].starts_with(start), "{texts:?}");
}

/// A caller that gets an error runs the command again.
#[tokio::test]
async fn the_result_of_a_command_is_not_lost_when_its_vm_cannot_be_removed() {
    let root = TempDir::new().unwrap();
    let (engine, command) = engine_and_saboteur(root.path());
    let (events, mut seen) = tokio::sync::mpsc::channel(64);
    let (events, never) = (crate::Events::to(events), CancellationToken::new());

    let spec = crate::VmSpec { allow_host_compat: true, ..crate::VmSpec::new("debian:12") };
    let request = crate::operations::RunInVm { spec, command: command.clone(), output: capture() };
    let ran = engine.run(request, &CallContext::new(events.clone(), never.clone())).await.unwrap();
    assert_eq!((ran.stdout.as_bytes(), ran.exit_code, ran.cleanup.deleted), (&b"done\n"[..], 0, false));
    assert_warned(&mut seen, &format!("the command has run, but vm {} cannot be removed now: ", ran.vm_id));
    let one_shot = ran.vm_id;

    repair(root.path());
    let id = created(&engine, 1, Kind::Vm);
    start(&engine, &id, ExecutionMode::HostCompat);
    let request = crate::operations::ExecVm { vm: id.as_str().into(), command, output: capture() };
    let ran = engine.exec_vm(request, &CallContext::new(events.clone(), never.clone())).await.unwrap();
    assert_eq!((ran.stdout.as_bytes(), ran.exit_code, ran.cleanup.deleted), (&b"done\n"[..], 0, false));
    assert_warned(&mut seen, "the command has run, but vm 000000000001 cannot be removed now: ");
    repair(root.path());
    engine.reconcile().await.unwrap();
    assert_eq!(engine.get(Kind::Vm, &one_shot).await.unwrap_err().kind, ErrorKind::NotFound);
}

/// Otherwise, the VM would end before its command's time limit.
#[tokio::test]
async fn a_run_lasts_as_long_as_its_command_may() {
    let root = TempDir::new().unwrap();
    let (engine, _) = engine_and_saboteur(root.path());
    for (ttl_seconds, limit, lifetime) in [(60, 900, 960), (60, 20, 80), (600, 20, 600)] {
        let (events, mut seen) = tokio::sync::mpsc::channel(64);
        let mut spec = crate::VmSpec { allow_host_compat: true, ..crate::VmSpec::new("debian:12") };
        spec.ttl_seconds = ttl_seconds;
        let mut command = crate::Command::new("echo begun; until [ -e go ]; do sleep 0.05; done");
        command.timeout_seconds = Some(limit);
        let output = crate::CommandOutput { output: crate::OutputMode::Stream };
        let request = crate::operations::RunInVm { spec, command, output };
        let context = CallContext::new(crate::Events::to(events), CancellationToken::new());
        let look = async {
            while let Some(event) = seen.recv().await {
                if let crate::Event::Output { .. } = event {
                    break;
                }
            }
            let [record] = &engine.shared.registry.list().unwrap()[..] else { panic!() };
            fs::write(engine.vm_dir(&record.vm_id).join("workspace/go"), "").unwrap();
            record.sizing.ttl_seconds
        };
        let (ran, recorded) = tokio::join!(engine.run(request, &context), look);
        assert_eq!((ran.unwrap().exit_code, recorded), (0, lifetime), "{limit}");
    }
}

#[tokio::test]
async fn the_result_of_a_task_s_command_is_not_lost_when_its_end_cannot_be_recorded() {
    let root = TempDir::new().unwrap();
    let (engine, command) = engine_and_saboteur(root.path());
    let (events, mut seen) = tokio::sync::mpsc::channel(64);
    let (events, never) = (crate::Events::to(events), CancellationToken::new());
    let id = created(&engine, 1, Kind::Task);
    start(&engine, &id, ExecutionMode::HostCompat);
    let request = crate::operations::ExecTask {
        task: id.as_str().into(),
        command,
        lasting: Default::default(),
        output: capture(),
    };
    let ran = engine.exec_task(request, &CallContext::new(events.clone(), never.clone())).await.unwrap();
    assert_eq!((ran.stdout.as_bytes(), ran.exit_code, ran.sequence), (&b"done\n"[..], 0, 1));
    assert_warned(&mut seen, "the end of command 1 of task 000000000001 is not recorded: ");
    repair(root.path());
    // The record does not claim more than is known.
    let entry = engine.wait_task(id.as_str(), 1, &never).await.unwrap();
    assert_eq!((entry.outcome, entry.exit_code), (crate::Outcome::Unknown, None));
}

/// A stopped task could not be started again without it.
#[tokio::test]
async fn an_environment_that_tasks_were_made_from_is_not_removed() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let of_version =
        |number| NewVm { kind: Kind::Task, environment_version: Some("0.9.0".to_owned()), ..new_vm(number) };
    let task = insert(&engine, of_version(1));
    let error = engine.remove_environment("debian:12").await.unwrap_err();
    assert_eq!(
        (error.kind, error.to_string()),
        (ErrorKind::WrongState, format!("environment 'debian:12' is in use by {task}"))
    );
    (2..=10).for_each(|number| drop(insert(&engine, of_version(number))));
    let error = engine.remove_environment("debian:12").await.unwrap_err();
    assert!(error.to_string().ends_with("and 2 more"), "{error}");

    // That of another name, or of a task on the host, does not matter.
    created(&engine, 11, Kind::Task);
    let error = engine.remove_environment("debian:12-base").await.unwrap_err();
    assert_eq!(error.to_string(), "environment 'debian:12-base' is not installed");
    assert_eq!(engine.remove_environment("typo").await.unwrap_err().kind, ErrorKind::InvalidInput);
}
