use std::collections::BTreeMap;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::StopReason;
use crate::limits::Sizing;
use crate::registry::NewVm;

fn task(number: u32) -> VmId {
    VmId::parse(&format!("{number:012x}")).unwrap()
}

fn with_tasks(count: u32) -> (TempDir, Registry) {
    let directory = TempDir::new().unwrap();
    let registry = Registry::new(directory.path());
    for number in 1..=count {
        let vm = NewVm {
            vm_id: task(number),
            environment: "debian:12".to_owned(),
            environment_version: None,
            sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
            created_at: number.into(),
            kind: Kind::Task,
            ephemeral: false,
            disk_mib: Some(8192),
            network: None,
            mounts: Vec::new(),
            ports: Vec::new(),
            host_choice: Default::default(),
            host_access: crate::HostAccess::Denied,
            metadata: BTreeMap::new(),
            naming: Default::default(),
            ttl_from: Default::default(),
            owner: None,
        };
        registry.insert(&vm, 100).unwrap();
    }
    (directory, registry)
}

fn new(command: &str) -> NewCommand {
    NewCommand {
        command: command.to_owned(),
        cwd: "/workspace".to_owned(),
        execution_mode: ExecutionMode::GuestVsock,
        accepted_at: 1.0,
    }
}

fn exited(exit_code: i64) -> CommandOutcome {
    CommandOutcome::Ended(CommandEnd {
        status: exit_code::status(exit_code),
        timed_out: false,
        killed: false,
        duration: Duration::from_secs(1),
        stdout_dropped: 1,
        stderr_dropped: 2,
    })
}

fn not_run(cause: &str) -> CommandOutcome {
    CommandOutcome::NotRun { cause: cause.to_owned(), kind: None }
}

/// Simulates the loss of the task's VM.
fn lose(registry: &Registry) {
    registry.mark_stopped(&task(1), StopReason::OwnerVanished, None).unwrap();
}

#[test]
fn an_entry_says_what_became_of_its_command() {
    let (_directory, registry) = with_tasks(2);
    for (sequence, command) in [(1, "first"), (2, "second"), (3, "third"), (4, "fourth")] {
        assert_eq!(registry.accept_command(&task(1), &new(command)).unwrap(), sequence);
    }
    assert_eq!(registry.accept_command(&task(2), &new("other")).unwrap(), 1, "each task counts for itself");
    registry.end_command(&task(1), 2, 2.0, &exited(7)).unwrap();
    registry.end_command(&task(1), 3, 2.0, &not_run("no such directory")).unwrap();
    let outcomes = |registry: &Registry| {
        let entries = registry.commands(&task(1)).unwrap();
        entries.iter().map(|entry| (entry.sequence, entry.word())).collect::<Vec<_>>()
    };
    assert_eq!(
        outcomes(&registry),
        [(1, Outcome::Running), (2, Outcome::Exited), (3, Outcome::NotRun), (4, Outcome::Running)]
    );
    lose(&registry);
    assert_eq!(
        outcomes(&registry),
        [(1, Outcome::Unknown), (2, Outcome::Exited), (3, Outcome::NotRun), (4, Outcome::Unknown)]
    );
    let second = registry.command(&task(1), 2).unwrap();
    assert_eq!((second.command.as_str(), second.outcome), ("second", Some(exited(7))));
    assert_eq!(registry.command(&task(1), 3).unwrap().outcome, Some(not_run("no such directory")));
    let (count, last) = registry.command_summary(&task(1)).unwrap();
    assert_eq!((count, last.unwrap().sequence), (4, 2));
    assert_eq!(registry.commands(&task(2)).unwrap()[0].outcome, None);
}

#[test]
fn what_is_not_there_is_not_found() {
    let (_directory, registry) = with_tasks(1);
    let kind = |result: Result<(), Error>| result.unwrap_err().kind;
    assert_eq!(kind(registry.accept_command(&task(9), &new("true")).map(drop)), ErrorKind::NotFound);
    let error = registry.command(&task(1), 1).unwrap_err();
    assert_eq!(error.to_string(), "task '000000000001' has no command 1");
}

#[test]
fn the_journal_goes_with_its_task() {
    let (directory, registry) = with_tasks(2);
    for number in [1, 2] {
        registry.accept_command(&task(number), &new("true")).unwrap();
    }
    registry.delete(&task(1)).unwrap();
    let connection = rusqlite::Connection::open(directory.path().join("state.sqlite3")).unwrap();
    let left: u32 = connection.query_row("SELECT count(*) FROM commands", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
}

#[test]
fn a_damaged_entry_does_not_hide_the_others() {
    let (directory, registry) = with_tasks(1);
    for command in ["one", "two", "three"] {
        registry.accept_command(&task(1), &new(command)).unwrap();
    }
    let connection = rusqlite::Connection::open(directory.path().join("state.sqlite3")).unwrap();
    connection.execute("UPDATE commands SET outcome = 'odd' WHERE sequence = 2", []).unwrap();
    let sequences: Vec<u64> =
        registry.commands(&task(1)).unwrap().iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, [1, 3]);
    assert_eq!(registry.accept_command(&task(1), &new("four")).unwrap(), 4);
    registry.end_command(&task(1), 1, 2.0, &exited(0)).unwrap();
    connection.execute("UPDATE commands SET exit_code = 1 WHERE sequence = 2", []).unwrap();
    let (count, last) = registry.command_summary(&task(1)).unwrap();
    assert_eq!((count, last), (4, None), "the latest is damaged, which is not a failure");
}

#[test]
fn numbers_have_no_gaps_whoever_writes() {
    let (directory, _) = with_tasks(1);
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            // Use a separate connection, as another process would.
            let registry = Registry::new(directory.path());
            thread::spawn(move || {
                (0..25)
                    .map(|round| {
                        let name = format!("{writer} {round}");
                        let sequence = registry.accept_command(&task(1), &new(&name)).unwrap();
                        registry.end_command(&task(1), sequence, 2.0, &exited(0)).unwrap();
                        (sequence, name)
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut given: Vec<(u64, String)> =
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    given.sort();
    let recorded: Vec<(u64, String)> = Registry::new(directory.path())
        .commands(&task(1))
        .unwrap()
        .into_iter()
        .map(|entry| (entry.sequence, entry.command))
        .collect();
    assert_eq!(given, recorded);
    assert!(recorded.iter().map(|(sequence, _)| *sequence).eq(1..=200));
}

#[derive(Debug, Clone)]
enum Step {
    Accept,
    End(u64, i64),
    NotRun(u64),
    Conclude,
}

fn step() -> impl Strategy<Value = Step> {
    let sequence = 1..12_u64;
    prop_oneof![
        3 => Just(Step::Accept),
        3 => (sequence.clone(), -9..256_i64).prop_map(|(sequence, code)| Step::End(sequence, code)),
        1 => sequence.prop_map(Step::NotRun),
        1 => Just(Step::Conclude),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn agrees_with_the_model(steps in proptest::collection::vec(step(), 0..40)) {
        let (_directory, registry) = with_tasks(1);
        let mut model: Vec<(Outcome, Option<i64>)> = Vec::new();
        for step in steps {
            let count = model.len() as u64;
            let mut settle = |sequence: u64, settled| {
                if let Some(entry) = model.get_mut(sequence as usize - 1)
                    && entry.0 == Outcome::Running
                {
                    *entry = settled;
                }
            };
            match step {
                Step::Accept => {
                    model.push((Outcome::Running, None));
                    prop_assert_eq!(registry.accept_command(&task(1), &new("x")).unwrap(), model.len() as u64);
                }
                Step::End(sequence, code) => {
                    let ended = registry.end_command(&task(1), sequence, 2.0, &exited(code));
                    prop_assert_eq!(ended.is_ok(), sequence <= count);
                    settle(sequence, (Outcome::Exited, Some(code)));
                }
                Step::NotRun(sequence) => {
                    let ended =
                        registry.end_command(&task(1), sequence, 2.0, &not_run(""));
                    prop_assert_eq!(ended.is_ok(), sequence <= count);
                    settle(sequence, (Outcome::NotRun, None));
                }
                Step::Conclude => {
                    lose(&registry);
                    for sequence in 1..=model.len() as u64 {
                        let entry = &mut model[sequence as usize - 1];
                        if entry.0 == Outcome::Running {
                            *entry = (Outcome::Unknown, None);
                        }
                    }
                }
            }
        }
        let entries = registry.commands(&task(1)).unwrap();
        prop_assert!(entries.iter().map(|entry| entry.sequence).eq(1..=model.len() as u64));
        let found: Vec<_> = entries.iter().map(|entry| (entry.word(), entry.end().map(exit_code))).collect();
        prop_assert_eq!(found, model);
    }
}

/// A task with this many commands that have ended.
fn with_ended(count: u64) -> (TempDir, Registry) {
    let (directory, registry) = with_tasks(1);
    for sequence in 1..=count {
        assert_eq!(registry.accept_command(&task(1), &new("true")).unwrap(), sequence);
        registry.end_command(&task(1), sequence, 2.0, &exited(0)).unwrap();
    }
    (directory, registry)
}

#[test]
fn the_journal_keeps_the_latest_commands_and_counts_all() {
    let (directory, registry) = with_tasks(1);
    let commands = crate::state_dir::vm(directory.path(), &task(1)).join(files::COMMANDS);
    fs::create_dir_all(&commands).unwrap();
    let total = KEPT_ENTRIES + 20;
    // Most of them without waiting for the disk each time. The third one runs on.
    let mut other = rusqlite::Connection::open(directory.path().join("state.sqlite3")).unwrap();
    let many = other.transaction().unwrap();
    for sequence in 1..=KEPT_ENTRIES {
        let outcome = if sequence == 3 { "running" } else { "not_run" };
        many.execute(
            "INSERT INTO commands (task_id, sequence, command, cwd, execution_mode, accepted_at, outcome) \
             VALUES (?1, ?2, 'true', '/', 'guest_vsock', 1.0, ?3)",
            rusqlite::params![task(1).as_str(), sequence, outcome],
        )
        .unwrap();
    }
    many.commit().unwrap();
    for sequence in 1..=total {
        if sequence > KEPT_ENTRIES {
            assert_eq!(registry.accept_command(&task(1), &new("true")).unwrap(), sequence);
            registry.end_command(&task(1), sequence, 2.0, &exited(0)).unwrap();
        }
        for stream in STREAMS {
            fs::write(commands.join(file_name(sequence, stream)), "output").unwrap();
        }
    }
    // The output of dropped commands is gone.
    for sequence in 1..=20 {
        let left = STREAMS.map(|stream| commands.join(file_name(sequence, stream)).exists());
        assert_eq!(left, [sequence == 3; 2], "{sequence}");
    }
    let kept = registry.sequences(&task(1)).unwrap();
    assert_eq!((kept[0], kept[1], kept.last()), (3, 21, Some(&total)));
    assert_eq!(kept.len() as u64, KEPT_ENTRIES + 1);
    let (count, last) = registry.command_summary(&task(1)).unwrap();
    assert_eq!((count, last.unwrap().sequence), (total, total));
    let error = registry.command(&task(1), 20).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.to_string().contains("no longer has command 20"), "{error}");
    let error = registry.command(&task(1), total + 1).unwrap_err();
    assert!(error.to_string().contains("has no command 1021"), "{error}");
    assert_eq!(registry.accept_command(&task(1), &new("next")).unwrap(), total + 1);
}

#[test]
fn the_texts_of_commands_have_a_total_size() {
    let (_directory, registry) = with_tasks(2);
    let long = "x".repeat(crate::limits::MAX_COMMAND_BYTES);
    registry.accept_command(&task(2), &new(&long)).unwrap();
    registry.end_command(&task(2), 1, 2.0, &exited(0)).unwrap();
    for sequence in 1..=20 {
        registry.accept_command(&task(1), &new(&long)).unwrap();
        registry.end_command(&task(1), sequence, 2.0, &exited(0)).unwrap();
    }
    let kept = registry.commands(&task(1)).unwrap();
    let bytes: usize = kept.iter().map(|record| record.command.len() + record.cwd.len()).sum();
    assert!(bytes as u64 <= KEPT_BYTES && bytes as u64 > KEPT_BYTES - long.len() as u64 - 1000, "{bytes}");
    assert_eq!(kept.last().unwrap().sequence, 20);
    assert_eq!(registry.sequences(&task(2)).unwrap(), [1], "another task's entries stay");
}

#[test]
fn the_file_gives_back_the_space_of_a_deleted_task() {
    let (directory, registry) = with_tasks(2);
    let long = "x".repeat(crate::limits::MAX_COMMAND_BYTES);
    for _ in 0..40 {
        registry.accept_command(&task(1), &new(&long)).unwrap();
    }
    let size = || {
        let other = rusqlite::Connection::open(directory.path().join("state.sqlite3")).unwrap();
        other.pragma_query_value(None, "page_count", |row| row.get::<_, u64>(0)).unwrap() * 4096
    };
    assert!(size() > 5 << 20, "{}", size());
    registry.delete(&task(1)).unwrap();
    assert!(size() < 1 << 20, "{}", size());
}

#[test]
fn a_file_of_an_earlier_version_gives_back_space_too() {
    let (directory, registry) = with_ended(1);
    drop(registry);
    let file = directory.path().join("state.sqlite3");
    let other = rusqlite::Connection::open(&file).unwrap();
    other
        .execute_batch(
            "DROP TABLE services; DROP INDEX vms_names; ALTER TABLE vms DROP COLUMN owner; ALTER TABLE vms DROP COLUMN layer_mib;
             ALTER TABLE vms DROP COLUMN network_policy; ALTER TABLE vms DROP COLUMN published_ports;
             ALTER TABLE vms DROP COLUMN host_ca; ALTER TABLE vms DROP COLUMN host_proxy;
             ALTER TABLE vms DROP COLUMN name; ALTER TABLE vms DROP COLUMN labels;
             ALTER TABLE vms DROP COLUMN ttl_from; ALTER TABLE vms DROP COLUMN mounts; PRAGMA user_version = 2;
             PRAGMA auto_vacuum = NONE; VACUUM",
        )
        .unwrap();
    let mode = |connection: &rusqlite::Connection| -> u64 {
        connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).unwrap()
    };
    assert_eq!(mode(&other), 0);
    drop(other);
    assert_eq!(Registry::new(directory.path()).sequences(&task(1)).unwrap(), [1]);
    assert_eq!(mode(&rusqlite::Connection::open(&file).unwrap()), 2);
}
