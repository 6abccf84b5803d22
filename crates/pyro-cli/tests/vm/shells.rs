//! Shells that outlive their clients.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, PYRO, Sandbox, Terminal, Tmux, assert_put_back};

#[test]
fn a_shell_outlives_its_clients_which_type_read_and_attach() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let shell = |words: &[&str]| {
        let all = [&["task", "shell", words[0], &*task.id], &words[1..], &["--json"]].concat();
        let ended = sandbox.pyro(all);
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended.json()
    };
    let opened = shell(&["open"]);
    let number = opened["shell_id"].to_string();
    assert_eq!((&opened["command"], &opened["running"]), (&"login shell".into(), &true.into()));
    let typed = |more: &[&str]| shell(&[&["write", &*number], more].concat());
    let text = |output: &Value| output["text"].as_str().unwrap().to_owned();
    // Waits for output, from where an earlier read ended.
    let cursor = Cell::new(0);
    let until = |expected: &str| {
        let mut shown = String::new();
        while !shown.contains(expected) {
            let from = cursor.get().to_string();
            let output = shell(&["read", &number, "--cursor", &from, "--wait-seconds", "60"]);
            assert_eq!(output["reason"], "output", "{expected:?} was not shown: {shown:?}");
            shown.push_str(&text(&output));
            cursor.set(output["cursor"].as_u64().unwrap());
        }
    };
    // Its state stays from one call to the next.
    until("# ");
    typed(&["x=41; stty size", "--key", "Enter"]);
    until("\n30 120\n");
    typed(&["echo $((x+1))", "--key", "Enter"]);
    until("\n42\n");

    // A person sees the screen so far, types, and goes.
    let line = format!("{PYRO} task shell attach {} {number}", task.id);
    let mut terminal = Terminal::run(&sandbox, &line);
    terminal.until("42");
    terminal.press("stty size; echo be''gun; sed -u s/^/got:/\r");
    terminal.until("33 101");
    terminal.until("begun");
    terminal.press("word\r");
    terminal.until("got:word");
    terminal.press("\x10\x11");
    let shown = terminal.finish();
    assert!(shown.contains("detached; shell 1 keeps running") && shown.contains("status=0"), "{shown}");
    assert_put_back(&sandbox);

    // What runs in the foreground has gone on, and is interrupted by a key.
    typed(&["more", "--key", "Enter"]);
    until("got:more\n");
    typed(&["--key", "Ctrl-C"]);
    until("# ");
    let screen = shell(&["read", &number, "--format", "screen"]);
    assert!(text(&screen).contains("got:word") && text(&screen).contains("42"), "{screen}");

    assert_eq!(shell(&["close", &number])["outcome"], "killed");
    let ended = shell(&["read", &number]);
    assert!(text(&ended).contains("got:word") && ended["running"] == false, "{ended}");
    assert_eq!(shell(&["list"])["count"], 1);
    let entry = &task.logs()[0];
    assert_eq!((&entry["command"], &entry["stdout"]), (&"login shell".into(), &"".into()));
    assert!(entry["stdout_truncated"].as_u64().unwrap() > 100, "{entry}");
    task.delete();
}

/// Programs that use the whole terminal, and what happens to it.
#[test]
fn a_terminal_follows_its_window_and_is_put_back_when_the_machine_ends() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let mut terminal = Terminal::run(&sandbox, &format!("{PYRO} task shell {}", task.id));
    terminal.until("# ");
    // A line that sed has answered shows that it runs in the foreground. Ctrl-C before that can reach the shell alone, which
    // then starts the program.
    terminal.press("stty size; echo be''gun; sed -u s/^/got:/\r");
    terminal.until("33 101");
    terminal.until("begun");
    terminal.press("word\r");
    terminal.until("got:word");
    terminal.press("\x03");
    terminal.until("# ");
    terminal.press("sh -c 'trap \"stty size; exit\" WINCH; echo re\"\"ady; while :; do sleep 0.1; done'\r");
    terminal.until("ready");
    terminal.resize(40, 90);
    terminal.until("40 90");
    terminal.until("# ");
    terminal.press("seq 1000 | less\r");
    terminal.until("39\r\n");
    terminal.press("G");
    terminal.until("1000");
    terminal.press("q");
    terminal.until("# ");
    terminal.press("echo o > /proc/sysrq-trigger\r");
    let shown = terminal.finish();
    assert!(!shown.contains("status=0"), "{shown}");
    assert_put_back(&sandbox);
    task.delete();
}

#[test]
fn a_run_is_a_login_shell_on_a_terminal() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::run(&sandbox, &format!("{PYRO} run -it {ENVIRONMENT}"));
    terminal.until("# ");
    terminal.press("echo $0 $- $TERM; stty size; exit 6\r");
    terminal.until("-bash ");
    terminal.until("xterm-256color");
    terminal.until("33 101");
    let shown = terminal.finish();
    assert!(shown.contains("status=6"), "{shown}");
    assert_put_back(&sandbox);
}

/// Where people run pyro. The screen is the one that tmux has in mind.
#[test]
fn a_run_on_a_terminal_works_within_tmux() {
    let sandbox = Sandbox::new();
    let tmux = Tmux::new(&sandbox);
    let run = format!("{PYRO} run -it {ENVIRONMENT}");
    let inner = format!("stty -a > inner-before; {run}; echo $? > status; stty -a > inner-after");
    let mut terminal = tmux.run(&inner);
    terminal.until("# ");
    terminal.press("stty size; echo $TERM; printf '\\303\\244|%s\\n' '\u{2192}x'\r");
    terminal.until("32 101");
    terminal.until(tmux.call(&["show", "-gv", "default-terminal"]).trim());
    terminal.until("\u{e4}|\u{2192}x");

    terminal.press("seq 1000 | less +G\r");
    terminal.until("(END)");
    let screen = tmux.screen();
    assert!(screen.starts_with("970\n971\n") && screen.trim_end().ends_with("\n1000\n(END)"), "{screen}");
    terminal.press("q");
    terminal.until("# ");
    let screen = tmux.screen();
    assert!(screen.contains("\u{e4}|\u{2192}x\n") && !screen.contains("999"), "as before less: {screen}");

    // The size comes in two steps, first the rows.
    terminal.resize(40, 90);
    terminal.press("until stty size | grep '39 90'; do :; done; echo be''gun; sed -u s/^/got:/\r");
    terminal.until("39 90\r");
    terminal.until("begun");
    terminal.press("word\r");
    terminal.until("got:word");
    terminal.press("\x03");
    terminal.until("# ");
    terminal.press("exit 6\r");
    let shown = terminal.finish();
    assert!(shown.contains("[exited]"), "{shown}");
    let file = |name: &str| std::fs::read_to_string(sandbox.path(name)).unwrap();
    assert_eq!(file("status"), "6\n");
    let modes = |name: &str| file(name).split_once("line =").unwrap().1.to_owned();
    assert_eq!(modes("inner-before"), modes("inner-after"));
    assert_put_back(&sandbox);
}

/// A model makes one call for each step, and reads text without escape sequences.
#[test]
fn a_model_drives_a_program_that_asks() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let opened = client.call("task_shell_open", json!({ "task_id": id }));
    assert!(opened["text"].as_str().unwrap().ends_with("# "), "{opened}");
    let shell = opened["shell_id"].clone();
    let with = |more: Value| {
        let mut all = json!({ "task_id": id, "shell_id": shell });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let line = "read -p 'Name? ' name; echo \"[$name]\"; sleep 500\n";
    let asked =
        client.call("task_shell_write", with(json!({ "text": line, "wait_seconds": 60, "idle_seconds": 3 })));
    assert!(asked["text"].as_str().unwrap().ends_with("\nName? "), "{asked}");
    let answer = json!({ "text": "model", "keys": ["Enter"], "wait_seconds": 60, "idle_seconds": 3 });
    let answered = client.call("task_shell_write", with(answer));
    assert_eq!(answered["text"], "model\n[model]\n", "{answered}");
    // The sleep may not have begun, as `a_terminal_follows_its_window_and_is_put_back_when_the_machine_ends` explains, so it
    // ends with the shell.
    let screen = client.call("task_shell_read", with(json!({ "screen": true, "wait_seconds": 0 })));
    assert!(screen["text"].as_str().unwrap().ends_with("Name? model\n[model]"), "{screen}");
    assert_eq!(client.call("task_shell_signal", with(json!({ "signal": "WINCH" })))["running"], true);
    assert_eq!(client.call("task_shell_close", with(json!({})))["outcome"], "killed");
    let rest = client.call("task_shell_read", with(json!({ "cursor": answered["cursor"] })));
    assert_eq!((&rest["running"], &rest["reason"]), (&false.into(), &"ended".into()));
    client.call("task_delete", json!({ "task_id": id }));
    client.end();
}
