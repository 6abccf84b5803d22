//! `kill -9` of any process of a task's command, at random moments: the journal stays whole.

use std::time::Duration;

use pyro_testkit::Seed;
use rustix::process::Signal;

use crate::harness::{Process, Sandbox, is_vmm, kill};

const ROUNDS: u64 = 50;

#[test]
fn the_journal_survives_the_death_of_anyone_at_any_moment() {
    let mut seed = Seed::of_test();
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--ttl-seconds", "3600"]);
    // The journal must keep every end that a caller has received.
    let mut told = Vec::new();
    let mut deaths = [0; 3];
    for round in 0..ROUNDS {
        if task.status()["state"] != "started" {
            let started = task.call("start", []);
            assert_eq!(started.code(), 0, "{started:?}");
        }
        let line = format!("echo {round}; sleep 0.05; echo {round} >> done");
        let running = task.start_exec(["--json"], &line);
        // Not a wait for an event: the test varies the moment.
        std::thread::sleep(Duration::from_millis(seed.below(600)));
        // The end of a process that the previous round killed may not be recorded yet.
        let state = sandbox.state();
        let find = |wanted: &dyn Fn(&Process) -> bool| {
            sandbox.processes().into_iter().find(|process| wanted(process)).map(|process| process.pid)
        };
        let (which, victim) = match seed.below(4) {
            0 => (1, find(&|process| process.is_supervisor_of(&state))),
            1 => (2, find(&is_vmm)),
            _ => (0, None),
        };
        let (which, victim) = victim.map_or((0, running.pid()), |victim| (which, victim));
        deaths[which] += 1;
        kill(victim, Signal::KILL);
        let ended = running.finish();
        if ended.status.code() == Some(0) {
            told.push((ended.json()["sequence"].as_u64().unwrap(), format!("{round}\n")));
        }

        let check: String = {
            let file = sandbox.state().join("state.sqlite3");
            let connection = rusqlite::Connection::open(file).unwrap();
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(check, "ok");
        let entries = task.logs();
        for (index, entry) in entries.iter().enumerate() {
            assert_eq!(entry["sequence"], index + 1, "no gap: {entries:?}");
            let outcome = entry["outcome"].as_str().unwrap();
            assert!(["running", "exited", "killed", "not_run", "unknown"].contains(&outcome), "{entry}");
            assert_eq!(entry["exit_code"].is_null(), !["exited", "killed"].contains(&outcome), "{entry}");
        }
        for (sequence, output) in &told {
            let entry = &entries[*sequence as usize - 1];
            assert_eq!((&entry["outcome"], &entry["stdout"]), (&"exited".into(), &output.as_str().into()));
        }
    }
    println!(
        "killed: client {}, supervisor {}, VMM {}; told {}",
        deaths[0],
        deaths[1],
        deaths[2],
        told.len()
    );
    assert!(deaths.iter().all(|count| *count > 0), "everybody had a turn: {deaths:?}");
    // No command runs forever, and every started one has an outcome.
    let count = task.logs().len();
    for sequence in 1..=count {
        task.call("wait", ["--sequence", &sequence.to_string()]);
    }
    assert!(task.logs().iter().all(|entry| entry["outcome"] != "running"));
    // By now its state is known.
    if task.status()["state"] != "started" {
        task.call("start", []).success();
    }
    assert_eq!(task.exec(["--json"], "echo on").json()["sequence"], count + 1);
    task.delete();
}
