#![expect(clippy::disallowed_methods, reason = "tests are configured by their environment")]
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, thread};

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::ExecutionMode;
use crate::host_settings::{CaSource, HostChoice};
use crate::limits::Sizing;

const CHILD_DIRECTORY: &str = "PYRO_TEST_REGISTRY_DIRECTORY";

fn new_vm(vm_id: &VmId, created_at: f64) -> NewVm {
    NewVm {
        vm_id: vm_id.clone(),
        environment: "debian:12".to_owned(),
        environment_version: Some("1.0.0".to_owned()),
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at,
        kind: Kind::Vm,
        ephemeral: false,
        disk_mib: None,
        network: None,
        mounts: Vec::new(),
        ports: Vec::new(),
        host_choice: HostChoice::default(),
        host_access: crate::HostAccess::Denied,
        metadata: BTreeMap::from([("allow_host_compat".to_owned(), "false".to_owned())]),
        naming: Default::default(),
        ttl_from: Default::default(),
        owner: None,
    }
}

fn id(number: u32) -> VmId {
    VmId::parse(&format!("{number:012x}")).unwrap()
}

/// Creates a registry with VMs 1 to `count`; each one's number is also its creation time in seconds.
fn with_vms(count: u32) -> (TempDir, Registry) {
    let directory = TempDir::new().unwrap();
    let registry = Registry::new(directory.path());
    for number in 1..=count {
        registry.insert(&new_vm(&id(number), number.into()), 100).unwrap();
    }
    (directory, registry)
}

/// A task that was created and is not started.
pub(super) fn with_task() -> (TempDir, Registry, VmId) {
    let directory = TempDir::new().unwrap();
    let registry = Registry::new(directory.path());
    let task = NewVm { kind: Kind::Task, ..new_vm(&id(1), 1.0) };
    registry.insert(&task, 100).unwrap();
    (directory, registry, id(1))
}

/// Opens the file as another program would.
pub(super) fn raw(directory: &Path) -> Connection {
    Connection::open(directory.join("state.sqlite3")).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind
}

#[test]
fn a_vm_lives_through_its_states() {
    let (_directory, registry) = with_vms(1);
    let vm = registry.get(Kind::Vm, &id(1)).unwrap();
    assert_eq!(
        (vm.state, vm.execution_mode, vm.expires_at),
        (VmState::Created, ExecutionMode::Pending, 601.0)
    );

    assert_eq!(
        kind(registry.transition(Kind::Vm, &id(1), VmEvent::Exec, &VmPatch::default())),
        ErrorKind::WrongState
    );
    let patch = VmPatch {
        execution_mode: Some(ExecutionMode::GuestVsock),
        accelerator: Some("tcg".to_owned()),
        guest_ip: Some("10.0.2.15".to_owned()),
        ports: None,
        metadata: BTreeMap::from([("boot_mode".to_owned(), "native".to_owned())]),
    };
    registry.set_started(&id(1), &patch).unwrap();
    let error = registry.set_started(&id(1), &VmPatch::default()).unwrap_err();
    assert_eq!(error.to_string(), "vm 000000000001 cannot be started from state 'started'");
    let (transition, _) = registry.transition(Kind::Vm, &id(1), VmEvent::Exec, &VmPatch::default()).unwrap();
    assert_eq!(transition, Transition::Keep);

    registry.mark_stopped(&id(1), StopReason::GuestEnded, Some("the VMM ended")).unwrap();
    let vm = registry.get(Kind::Vm, &id(1)).unwrap();
    assert_eq!((vm.state, vm.last_error.as_deref()), (VmState::Stopped, Some("the VMM ended")));
    assert_eq!((vm.accelerator.as_deref(), vm.guest_ip.as_deref()), (Some("tcg"), Some("10.0.2.15")));
    assert_eq!(vm.metadata.len(), 2);

    let vm = registry.set_started(&id(1), &VmPatch::default()).unwrap();
    assert_eq!(vm.last_error, None);
    let (transition, _) =
        registry.transition(Kind::Vm, &id(1), VmEvent::Delete, &VmPatch::default()).unwrap();
    assert_eq!(transition, Transition::Remove);
    registry.delete(&id(1)).unwrap();
    assert_eq!(registry.delete(&id(1)).unwrap_err().to_string(), "vm '000000000001' does not exist");
}

#[test]
fn a_vm_that_did_not_run_is_not_marked_stopped() {
    let (_directory, registry) = with_vms(1);
    let vm = registry.mark_stopped(&id(1), StopReason::GuestEnded, Some("late news")).unwrap();
    assert_eq!((vm.state, vm.last_error), (VmState::Created, None));
}

#[test]
fn the_ceiling_counts_vms_but_not_tombstones() {
    let (_directory, registry) = with_vms(4);
    let error = registry.insert(&new_vm(&id(5), 5.0), 4).unwrap_err();
    assert_eq!(error.kind, ErrorKind::AtCapacity);
    assert_eq!(error.to_string(), "max active VMs reached (4); delete old VMs first");
    assert!(registry.mark_expired(&id(1), 700.0).unwrap());
    registry.insert(&new_vm(&id(5), 5.0), 4).unwrap();
}

#[test]
fn an_expired_vm_is_answered_for_until_it_is_reaped_or_an_hour_passes() {
    let (_directory, registry) = with_vms(3);
    assert_eq!(registry.expired_candidates(602.0).unwrap(), [id(1), id(2)]);
    assert!(registry.mark_expired(&id(1), 700.0).unwrap());
    assert!(!registry.mark_expired(&id(1), 701.0).unwrap());
    assert!(registry.mark_expired(&id(2), 4000.0).unwrap());
    assert_eq!(registry.expired_candidates(602.0).unwrap(), []);
    assert_eq!(registry.ids().unwrap(), [id(3)]);
    assert_eq!(registry.list().unwrap().len(), 1);

    let text = "vm '000000000001' expired and was automatically deleted";
    assert_eq!(registry.get(Kind::Vm, &id(1)).unwrap_err().to_string(), text);
    assert_eq!(registry.delete(&id(1)).unwrap_err().to_string(), text);
    assert_eq!(kind(registry.set_started(&id(1), &VmPatch::default())), ErrorKind::Expired);

    registry.purge_tombstones(4300.0).unwrap();
    assert_eq!(kind(registry.get(Kind::Vm, &id(1))), ErrorKind::NotFound);
    assert_eq!(kind(registry.get(Kind::Vm, &id(2))), ErrorKind::Expired);
    assert_eq!(registry.take_tombstones(&Caller::Operator).unwrap(), [id(2)]);
    assert_eq!(kind(registry.get(Kind::Vm, &id(2))), ErrorKind::NotFound);
}

#[test]
fn a_damaged_row_does_not_break_the_others() {
    let (directory, registry) = with_vms(4);
    let other = raw(directory.path());
    other.execute("UPDATE vms SET metadata = '{\"half' WHERE vm_id = ?1", [id(1).as_str()]).unwrap();
    other.execute("UPDATE vms SET state = 'flying' WHERE vm_id = ?1", [id(2).as_str()]).unwrap();
    other.execute("UPDATE vms SET vm_id = '../victim' WHERE vm_id = ?1", [id(3).as_str()]).unwrap();
    other.execute("ALTER TABLE vms ADD COLUMN colour TEXT", []).unwrap();

    let listed: Vec<VmId> = registry.list().unwrap().into_iter().map(|vm| vm.vm_id).collect();
    assert_eq!(listed, [id(1), id(4)]);
    assert_eq!(registry.ids().unwrap(), [id(1), id(2), id(4)]);
    assert_eq!(registry.expired_candidates(9000.0).unwrap(), [id(1), id(2), id(4)]);
    assert!(registry.get(Kind::Vm, &id(1)).unwrap().metadata.contains_key("metadata_error"));
    assert_eq!(kind(registry.get(Kind::Vm, &id(2))), ErrorKind::StateUnusable);
    registry.delete(&id(2)).unwrap();
    registry.insert(&new_vm(&id(5), 5.0), 100).unwrap();
}

/// Any other policy might open more.
#[test]
fn a_vm_with_a_damaged_policy_is_not_read() {
    let directory = TempDir::new().unwrap();
    let registry = Registry::new(directory.path());
    let policy = crate::NetworkPolicy { egress: crate::Egress::Allowlist, ..Default::default() };
    let vm = NewVm { network: Some(policy.clone()), ..new_vm(&id(1), 1.0) };
    registry.insert(&vm, 100).unwrap();
    assert_eq!(registry.get(Kind::Vm, &id(1)).unwrap().network, Some(policy));
    let other = raw(directory.path());
    let store = |text: Option<&str>| {
        other.execute("UPDATE vms SET network_policy = ?1", [text]).unwrap();
        registry.get(Kind::Vm, &id(1))
    };
    for damaged in [
        "{}",
        "{\"egress\":\"allow",
        r#"{"allow_cidrs":[],"allow_hosts":[],"allow_domains":[]}"#,
        r#"{"egress":"public","allow_cidrs":[],"allow_hosts":[]}"#,
        r#"{"egress":"public","allow_cidrs":[],"allow_hosts":[],"allow_domains":["a.test"]}"#,
        r#"{"egress":"public","allow_cidrs":[],"allow_hosts":[],"allow_domains":[],"deny":[]}"#,
    ] {
        assert_eq!(kind(store(Some(damaged))), ErrorKind::StateUnusable, "{damaged}");
    }
    // It was recorded before there were policies.
    assert_eq!(store(None).unwrap().network, Some(crate::NetworkPolicy::default()));
}

#[test]
fn the_choice_of_the_hosts_settings_is_kept() {
    let (_directory, registry) = with_vms(1);
    assert_eq!(registry.get(Kind::Vm, &id(1)).unwrap().host_choice, HostChoice::default());
    for (number, ca) in [(2, CaSource::Host), (3, CaSource::Bundle("/etc/ours.pem".into()))] {
        let host_choice = HostChoice { ca: Some(ca), proxy: true };
        registry.insert(&NewVm { host_choice: host_choice.clone(), ..new_vm(&id(number), 0.0) }, 8).unwrap();
        assert_eq!(registry.get(Kind::Vm, &id(number)).unwrap().host_choice, host_choice);
    }
}

#[test]
fn a_newer_file_is_refused_and_left_alone() {
    let (directory, registry) = with_vms(1);
    drop(registry);
    raw(directory.path()).execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let file = directory.path().join("state.sqlite3");
    let before = fs::read(&file).unwrap();

    let error = Registry::new(directory.path()).list().unwrap_err();
    assert_eq!(error.kind, ErrorKind::StateUnusable);
    assert_eq!(
        error.to_string(),
        "the state directory was written by a newer pyro (format 99; this one knows up to 8)"
    );
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_damaged_file_is_named_together_with_the_remedy() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("state.sqlite3");
    fs::write(&file, vec![b'x'; 8192]).unwrap();
    let registry = Registry::new(directory.path());
    let error = registry.list().unwrap_err();
    assert_eq!(error.kind, ErrorKind::StateUnusable);
    assert_eq!(error.to_string(), format!("the state file {} is damaged", file.display()));
    assert!(matches!(error.hints[0], crate::Hint::MoveStateFile { .. }), "{:?}", error.hints);

    // The remedy works without restarting the process.
    fs::rename(&file, directory.path().join("state.sqlite3.damaged")).unwrap();
    registry.insert(&new_vm(&id(1), 1.0), 4).unwrap();
}

#[test]
fn a_file_damaged_after_its_header_is_noticed() {
    let (directory, registry) = with_vms(1);
    drop(registry);
    let file = directory.path().join("state.sqlite3");
    raw(directory.path()).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[100..].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let error = Registry::new(directory.path()).list().unwrap_err();
    assert!(error.to_string().ends_with("is damaged"), "{error}");
}

#[test]
fn a_file_moved_away_under_a_running_process_is_replaced() {
    let (directory, registry) = with_vms(1);
    for name in ["state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm"] {
        fs::rename(directory.path().join(name), directory.path().join(format!("{name}.old"))).unwrap();
    }
    assert_eq!(registry.ids().unwrap(), []);
    registry.insert(&new_vm(&id(2), 1.0), 4).unwrap();
    assert_eq!(Registry::new(directory.path()).ids().unwrap(), [id(2)]);
}

#[test]
fn a_full_disk_is_told_and_recovered_from() {
    let (_directory, registry) = with_vms(1);
    let limit = |pages: u32| {
        let opened = registry.opened.lock().unwrap();
        let connection = &opened.as_ref().unwrap().connection;
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(1);
    let mut big = new_vm(&id(2), 1.0);
    big.metadata.insert("log".to_owned(), "x".repeat(100_000));
    let error = registry.insert(&big, 4).unwrap_err();
    assert!(error.to_string().starts_with("no space left for the state file "), "{error}");
    // The connection with the small limit is gone.
    registry.insert(&big, 4).unwrap();
}

#[test]
fn the_state_directory_is_private() {
    let directory = TempDir::new().unwrap();
    let base_dir = directory.path().join("new/pyro");
    Registry::new(&base_dir).insert(&new_vm(&id(1), 1.0), 4).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&base_dir), 0o700);
    assert_eq!(mode(&base_dir.join("state.sqlite3")), 0o600);

    fs::set_permissions(&base_dir, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Registry::new(&base_dir).list().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the state directory {} may be written by other users", base_dir.display())
    );
}

#[test]
fn a_state_directory_that_cannot_be_is_a_clear_error() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(
        Registry::new(&file).list().unwrap_err().to_string(),
        format!("the state directory {} is not a directory", file.display())
    );
    let below = file.join("below");
    assert_eq!(
        Registry::new(&below).list().unwrap_err().to_string(),
        format!("the state directory {} cannot be used", below.display())
    );
    let nowhere = directory.path().join("nowhere");
    symlink(directory.path().join("missing"), &nowhere).unwrap();
    assert_eq!(kind(Registry::new(&nowhere).list()), ErrorKind::StateUnusable);
}

#[test]
fn a_registry_that_is_not_used_makes_no_file() {
    let directory = TempDir::new().unwrap();
    let base_dir = directory.path().join("state");
    drop(Registry::new(&base_dir));
    assert!(!base_dir.exists());
}

/// Body of the processes that the next test starts; does nothing in an ordinary run.
#[test]
fn child_of_the_parallel_test() {
    let Some(directory) = env::var_os(CHILD_DIRECTORY) else { return };
    let registry = Registry::new(Path::new(&directory));
    for _ in 0..3 {
        match registry.insert(&new_vm(&VmId::random().unwrap(), 1.0), 12) {
            Err(error) if error.kind != ErrorKind::AtCapacity => panic!("{error}: {:?}", error.source),
            _ => {}
        }
    }
}

#[test]
fn ten_processes_may_open_a_new_registry_at_once() {
    let directory = TempDir::new().unwrap();
    let base_dir = directory.path().join("state");
    let children: Vec<_> = (0..10)
        .map(|_| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "registry::tests::child_of_the_parallel_test", "--nocapture"])
                .env(CHILD_DIRECTORY, &base_dir)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "{text}");
    }
    assert_eq!(Registry::new(&base_dir).ids().unwrap().len(), 12);
}

#[test]
fn threads_with_connections_of_their_own_may_open_it_at_once() {
    // Run many rounds, because the race windows are short.
    for _ in 0..40 {
        let directory = TempDir::new().unwrap();
        thread::scope(|scope| {
            for number in 0..10 {
                let path = directory.path();
                scope.spawn(move || Registry::new(path).insert(&new_vm(&id(number), 1.0), 100).unwrap());
            }
        });
        assert_eq!(Registry::new(directory.path()).ids().unwrap().len(), 10);
    }
}

#[test]
fn space_is_promised_to_one_of_two_that_ask_at_once() {
    const FREE: u64 = 2048;
    for _ in 0..20 {
        let (directory, _registry) = with_vms(10);
        let promised = thread::scope(|scope| {
            let ask = |number| {
                let path = directory.path();
                scope.spawn(move || {
                    Registry::new(path).promise_disk(&id(number), |others| {
                        assert_eq!(others.len(), 9);
                        let taken: u64 = others.iter().filter_map(|(_, size)| *size).sum();
                        match taken + 1536 <= FREE {
                            true => Ok(1536),
                            false => Err(Error::new(ErrorKind::StateUnusable, "full")),
                        }
                    })
                })
            };
            let asked: Vec<_> = (1..=10).map(ask).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(promised, 1);
    }
}

#[test]
fn a_promise_ends_with_its_vm_and_is_not_made_to_one_without_a_record() {
    let (_directory, registry) = with_vms(2);
    registry.promise_disk(&id(1), |_| Ok(512)).unwrap();
    let others = |asks| {
        let mut seen = Vec::new();
        registry
            .promise_disk(&id(asks), |others| {
                seen = others.to_vec();
                Ok(1024)
            })
            .unwrap();
        seen
    };
    assert_eq!(others(99), [(id(1), Some(512)), (id(2), None)]);
    assert_eq!(others(2), [(id(1), Some(512))]);
    registry.delete(&id(1)).unwrap();
    assert_eq!(others(99), [(id(2), Some(1024))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn text_comes_back_as_it_went_in(
        environment in "\\PC{0,20}",
        last_error in proptest::option::of("\\PC{0,20}"),
        metadata in proptest::collection::btree_map("\\PC{0,8}", ".{0,16}", 0..4),
    ) {
        let (_directory, registry) = with_vms(0);
        registry.insert(&NewVm { environment: environment.clone(), metadata: metadata.clone(), ..new_vm(&id(1), 0.5) }, 4)?;
        registry.set_started(&id(1), &VmPatch::default())?;
        registry.mark_stopped(&id(1), StopReason::GuestEnded, last_error.as_deref())?;
        let vm = registry.get(Kind::Vm, &id(1))?;
        prop_assert_eq!(vm.created_at, 0.5);
        prop_assert_eq!(&vm.environment, &environment);
        prop_assert_eq!(&vm.last_error, &last_error);
        prop_assert_eq!(&vm.metadata, &metadata);
        prop_assert_eq!(vm.payload().metadata, metadata);
    }
}

#[test]
fn the_versions_of_environments_in_use_are_those_of_all_records() {
    let (directory, registry) = with_vms(2);
    let old =
        NewVm { environment_version: Some("0.9.0".to_owned()), kind: Kind::Task, ..new_vm(&id(3), 3.0) };
    registry.insert(&old, 100).unwrap();
    registry.insert(&NewVm { environment_version: None, ..new_vm(&id(4), 4.0) }, 100).unwrap();
    let versions = || {
        let mut versions = registry.environment_versions().unwrap();
        versions.sort_by(|a, b| a.version.cmp(&b.version));
        versions.into_iter().map(|which| format!("{} {}", which.name, which.version)).collect::<Vec<_>>()
    };
    assert_eq!(versions(), ["debian:12 0.9.0", "debian:12 1.0.0"]);
    // A damaged record hides only itself.
    let damage = "UPDATE vms SET environment = CAST(x'ff' AS TEXT) WHERE environment_version = '0.9.0'";
    raw(directory.path()).execute(damage, []).unwrap();
    assert_eq!(versions(), ["debian:12 1.0.0"]);
}

#[test]
fn a_lost_directory_is_on_record_until_the_next_start() {
    let (_directory, registry, id) = with_task();
    registry.set_started(&id, &VmPatch::default()).unwrap();
    let mounts: Vec<DirectoryMount> = ["/a:/a", "/b:/b:rw"].map(|mount| mount.parse().unwrap()).into();
    registry.set_mounts(&id, &mounts, vec!["/b".to_owned()]).unwrap();
    let record = registry.get(Kind::Task, &id).unwrap();
    assert_eq!((record.mounts, record.lost_mounts), (mounts.clone(), vec!["/b".to_owned()]));
    registry.mark_stopped(&id, StopReason::ExplicitStop, None).unwrap();
    registry.set_started(&id, &VmPatch::default()).unwrap();
    let record = registry.get(Kind::Task, &id).unwrap();
    assert_eq!((record.mounts, record.lost_mounts), (mounts, Vec::new()));
}
