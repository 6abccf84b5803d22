//! Shells that outlive their clients.

use serde_json::Value;

use crate::harness::{ENVIRONMENT, PYRO, Sandbox, Terminal, assert_put_back};

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
    let typed = |more: &[&str]| {
        shell(&[&["write", &*number], more, &["--idle-seconds", "1", "--wait-seconds", "60"]].concat())
    };
    let text = |output: &Value| output["text"].as_str().unwrap().to_owned();
    // Its state stays from one call to the next.
    typed(&["x=41; stty size", "--key", "Enter"]);
    let output = typed(&["echo $((x+1))", "--key", "Enter"]);
    assert!(text(&output).contains("\n42\n"), "{output}");
    assert_eq!((&output["reason"], &output["running"]), (&"idle".into(), &true.into()));

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
    let output = typed(&["more", "--key", "Enter"]);
    assert!(text(&output).contains("got:more"), "{output}");
    let output = typed(&["--key", "Ctrl-C"]);
    assert!(text(&output).contains("# "), "{output}");
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
