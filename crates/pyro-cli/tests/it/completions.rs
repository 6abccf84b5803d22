//! What shells complete.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use pyro_testkit::{LONG, wait_until};
use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Ended, Home};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// What a shell shows for the last of these words: values and what they are about.
fn candidates(home: &Home, shell: &str, words: &[&str]) -> Ended {
    let index = words.len() - 1;
    let mut command = home.command(["--"]);
    command.args(words).env("_PYRO_COMPLETE", shell);
    command.env("_CLAP_COMPLETE_INDEX", index.to_string()).env("_CLAP_IFS", "\n");
    home.ended(command.output().unwrap())
}

/// The values alone, as Bash gets them.
fn values(home: &Home, words: &[&str]) -> Vec<String> {
    let ended = candidates(home, "bash", words);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    ended.stdout.lines().map(str::to_owned).collect()
}

/// A home with a task on this host that has a name and a service.
fn with_task() -> (Home, String) {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let words = ["task", "create", "debian:12", "--allow-host-compat", "--name", "site", "--json"];
    let created: Value = serde_json::from_slice(&home.pyro(words).raw_stdout).unwrap();
    let id = created["task_id"].as_str().unwrap().to_owned();
    let sql = "INSERT INTO services (task_id, name, position, definition, state, since, restarts)
               VALUES (?1, 'web', 1, '{}', 'stopped', 0, 0)";
    registry(&home).execute(sql, [&id]).unwrap();
    (home, id)
}

fn registry(home: &Home) -> Connection {
    Connection::open(home.path(".local/state/pyro-mcp/state.sqlite3")).unwrap()
}

#[test]
fn commands_and_flags_are_completed_but_no_helper_processes() {
    let home = Home::new();
    let commands = values(&home, &["pyro", ""]);
    for word in ["run", "task", "env", "doctor"] {
        assert!(commands.iter().any(|command| command == word), "{word}: {commands:?}");
    }
    for word in ["supervise", "probe-kvm", "network", "mount-server"] {
        assert!(!commands.iter().any(|command| command == word), "{word}: {commands:?}");
    }
    assert_eq!(values(&home, &["pyro", "run", "--vcpu"]), ["--vcpu-count"]);
    assert_eq!(values(&home, &["pyro", "task", "sh"]), ["shell"]);
    assert_eq!(values(&home, &["pyro", "completions", "zs"]), ["zsh"]);
}

#[test]
fn names_are_completed_where_they_are_taken() {
    let (home, id) = with_task();
    for words in [&["exec"][..], &["status"], &["stop"], &["rm"], &["shell", "list"], &["service", "list"]] {
        let words = [&["pyro", "task"], words, &[""]].concat();
        let found = values(&home, &words);
        assert!(found.contains(&"site".to_owned()) && found.contains(&id), "{words:?}: {found:?}");
    }
    assert_eq!(values(&home, &["pyro", "task", "exec", "si"]), ["site"]);
    assert_eq!(values(&home, &["pyro", "task", "stop", "other", &id[..4]]), [id.as_str()]);
    assert_eq!(values(&home, &["pyro", "task", "cp", "si"]), ["site:"]);
    assert_eq!(values(&home, &["pyro", "task", "service", "logs", "site", "w"]), ["web"]);
    assert_eq!(
        values(&home, &["pyro", "run", "debian"]),
        ["debian:12", "debian:12-agent", "debian:12-base", "debian:12-build"]
    );
    assert_eq!(values(&home, &["pyro", "env", "rm", "debian:12-b"]), ["debian:12-base", "debian:12-build"]);
    // What an id is the id of.
    let shown = candidates(&home, "fish", &["pyro", "task", "exec", &id]);
    assert_eq!(shown.stdout, format!("{id}\tdebian:12 started\n"));
}

#[test]
fn completing_creates_and_reports_nothing() {
    let home = Home::new();
    for words in [["pyro", "task", "exec", ""], ["pyro", "env", "rm", ""], ["pyro", "task", "cp", ""]] {
        for shell in SHELLS {
            let ended = candidates(&home, shell, &words);
            assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{shell} {words:?}");
        }
    }
    assert_eq!(home.entries(), Vec::<std::path::PathBuf>::new());
    assert_eq!(candidates(&home, "tcsh", &["pyro", ""]).all(), "exit: 1\n--- stdout\n--- stderr\n");

    // A file that no other process uses, and one that another process does.
    let (home, _) = with_task();
    let files = || {
        let all = fs::read_dir(home.path(".local/state/pyro-mcp")).unwrap();
        let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("sqlite3")).collect::<Vec<_>>()
    };
    let task = ["pyro", "task", "exec", ""];
    assert_eq!(files().len(), 1, "{:?}", files());
    assert!(values(&home, &task).contains(&"site".to_owned()));
    assert_eq!(files().len(), 1, "{:?}", files());
    let user = registry(&home);
    user.execute("UPDATE vms SET name = 'place'", []).unwrap();
    assert!(values(&home, &task).contains(&"place".to_owned()));
    user.execute("UPDATE vms SET name = 'site'", []).unwrap();
    drop(user);
    assert_eq!(files().len(), 1, "{:?}", files());

    // One that is in use by a process that was stopped, newer, or damaged.
    let nothing = values(&Home::new(), &task);
    let locker = registry(&home);
    locker.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    assert_eq!(values(&home, &task), nothing);
    drop(locker);
    assert!(values(&home, &task).contains(&"site".to_owned()));
    registry(&home).pragma_update(None, "user_version", 10_000).unwrap();
    assert_eq!(values(&home, &task), nothing);
    let file = home.path(".local/state/pyro-mcp/state.sqlite3");
    fs::write(&file, "damaged").unwrap();
    assert_eq!(values(&home, &task), nothing);
    assert_eq!(fs::read(&file).unwrap(), b"damaged");
    let home = home.set("PYRO_MAX_ACTIVE_VMS", "many");
    assert_eq!(values(&home, &task), nothing);
}

/// Directories can have any name.
#[test]
fn names_are_found_below_any_directory() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let home = home.set_path("PYRO_BASE_DIR", "is it 100%41?#\u{e4}");
    home.pyro(["task", "create", "debian:12", "--allow-host-compat", "--name", "site"]);
    assert_eq!(values(&home, &["pyro", "task", "exec", "si"]), ["site"]);
}

#[test]
fn services_are_those_of_the_task() {
    let (home, id) = with_task();
    home.pyro(["task", "create", "debian:12", "--allow-host-compat", "--name", "other"]);
    let sql = "INSERT INTO services (task_id, name, position, definition, state, since, restarts)
               SELECT vm_id, new.name, 2, '{}', 'stopped', 0, 0
               FROM vms JOIN (SELECT 'web' AS name UNION SELECT 'worker') AS new WHERE vms.name = 'other'";
    registry(&home).execute(sql, []).unwrap();
    for task in ["site", &id, &id[..6]] {
        assert_eq!(values(&home, &["pyro", "task", "service", "logs", task, "w"]), ["web"], "{task}");
    }
    assert_eq!(values(&home, &["pyro", "task", "service", "logs", "other", "w"]), ["web", "worker"]);
    let found = values(&home, &["pyro", "task", "service", "logs", "--tail", "5", "other", "w"]);
    assert_eq!(found, ["web", "worker"]);
    assert_eq!(values(&home, &["pyro", "task", "service", "stop", "third", "w"]), Vec::<String>::new());
    // As shells ask that pass only the words up to this one.
    let mut command = home.command(["--", "pyro", "task", "service", "stop", "site", "w"]);
    let shown = home.ended(command.env("_PYRO_COMPLETE", "fish").output().unwrap());
    assert_eq!(shown.stdout, format!("web\tservice of task {id}\n"));
}

#[test]
fn scripts_ask_pyro() {
    for shell in SHELLS {
        let script = Home::new().pyro(["completions", shell]);
        assert_eq!((script.code(), script.stderr.as_str()), (0, ""));
        assert!(script.stdout.contains("_PYRO_COMPLETE"), "{shell}: {}", script.stdout);
    }
}

/// As Bash does it after Tab.
#[test]
fn bash_completes_a_name() {
    let (home, _) = with_task();
    fs::write(home.path("pyro.bash"), home.pyro(["completions", "bash"]).stdout).unwrap();
    let directory = std::path::Path::new(crate::harness::PYRO).parent().unwrap();
    let home = home.set("PATH", &format!("{}:/usr/bin:/bin", directory.display()));
    let text = ". ./pyro.bash; COMP_WORDS=(pyro task exec si); COMP_CWORD=3; COMP_TYPE=9; \
                _clap_complete_pyro pyro si exec; echo \"${COMPREPLY[*]}\"";
    let output = home.program("/bin/bash").args(["-c", text]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "site\n", "{output:?}");
}

/// As a person does it, with Tab, in a zsh that finds the script by itself: at once, and again.
#[test]
fn zsh_completes_a_name() {
    let (home, _) = with_task();
    fs::create_dir(home.path("functions")).unwrap();
    fs::write(home.path("functions/_pyro"), home.pyro(["completions", "zsh"]).stdout).unwrap();
    let directory = std::path::Path::new(crate::harness::PYRO).parent().unwrap();
    let home = home.set("PATH", &format!("{}:/usr/bin:/bin", directory.display()));
    let mut zsh = home
        .program("script")
        .args(["-qec", "zsh -f -i", "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut output) = (zsh.stdin.take().unwrap(), zsh.stdout.take().unwrap());
    let (sender, screen) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = output.read(&mut buffer)
            && sender.send(buffer[..count].to_vec()).is_ok()
        {}
    });
    let (mut shown, mut seen) = (String::new(), 0);
    let mut until = |text: &str| {
        while !shown[seen..].contains(text) {
            match screen.recv_timeout(LONG) {
                Ok(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} was not shown: {error}: {shown:?}"),
            }
        }
        seen += shown[seen..].find(text).unwrap() + text.len();
    };
    keys.write_all(
        b"fpath=($PWD/functions $fpath); autoload -Uz compinit; compinit -u -D; PS1='rea''dy> '\r",
    )
    .unwrap();
    until("ready> ");
    for typed in ["pyro task exec s", "pyro task status si"] {
        // The line becomes the words of another command.
        keys.write_all(format!("{typed}\t\x01echo got:\x05.\r").as_bytes()).unwrap();
        let (command, _) = typed.rsplit_once(' ').unwrap();
        until(&format!("got:{command} site.\r\n"));
        until("ready> ");
    }
    keys.write_all(b"exit\r").unwrap();
    wait_until(LONG, "the end of zsh", || zsh.try_wait().unwrap().is_some());
    assert!(zsh.wait().unwrap().success());
}
