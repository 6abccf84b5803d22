//! Terminals that close, and what is left of them otherwise.

use std::fs;

use rustix::process::Signal;

use crate::harness::{
    ENVIRONMENT, LONG, PYRO, Process, Sandbox, Terminal, Tmux, assert_put_back, kill, wait_until,
};

/// What a program that uses the whole terminal begins with, as text for `printf`.
const WHOLE_SCREEN: &str = r"\033[?1049h\033[?25l\033[?2004h";
/// What puts that back.
const PUT_BACK: &str = "\x1b[?1049l\x1b[?25h\x1b[?2004l";

/// The `pyro` that runs in a terminal with this word among its arguments.
fn client(sandbox: &Sandbox, word: &str) -> Process {
    sandbox.wait_for_process("client", |process| process.is_program("pyro") && process.has_argument(word))
}

/// Waits until no `pyro` with this word among its arguments is left.
fn wait_until_gone(sandbox: &Sandbox, word: &str) {
    let is_client = |process: &Process| process.is_program("pyro") && process.has_argument(word);
    wait_until(LONG, "end of the client", || !sandbox.processes().iter().any(is_client));
}

/// A client learns of it by SIGHUP, by reading, or by writing.
#[test]
fn a_closed_terminal_leaves_a_command_running() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let ways = [("", ""), ("", "-it"), ("trap '' HUP;", ""), ("trap '' HUP;", "-i"), ("trap '' HUP;", "-it")];
    for (number, (before, flags)) in ways.into_iter().enumerate() {
        // The one that writes nothing has to learn of it by reading.
        let step = if flags == "-i" { "sleep 0.1" } else { "sleep 0.1; echo more" };
        let line = format!("echo begun; until [ -e go{number} ]; do {step}; done; echo end");
        let line = format!("{before} {PYRO} task exec {flags} --timeout-seconds 500 {} -- '{line}'", task.id);
        let mut terminal = Terminal::run(&sandbox, &line);
        terminal.until("begun");
        terminal.close();
        wait_until_gone(&sandbox, "exec");
        task.exec([], &format!("touch go{number}")).success();
        let sequence = (2 * number + 1).to_string();
        let ended = task.call("wait", ["--sequence", &sequence, "--json"]).json();
        assert_eq!(
            (&ended["exit_code"], &ended["outcome"]),
            (&0.into(), &"exited".into()),
            "{line}: {ended}"
        );
        assert!(ended["stdout"].as_str().unwrap().trim_end().ends_with("end"), "{line}: {ended}");
    }
    task.delete();
}

#[test]
fn a_closed_terminal_ends_its_login_shell_and_leaves_an_attached_one() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    for (number, before) in ["", "trap '' HUP;"].into_iter().enumerate() {
        let mut terminal = Terminal::run(&sandbox, &format!("{before} {PYRO} task shell {}", task.id));
        terminal.until("# ");
        terminal.close();
        let sequence = (number + 1).to_string();
        let ended = task.call("wait", ["--sequence", &sequence, "--json"]).json();
        assert_eq!(ended["outcome"], "killed", "{ended}");
    }
    let opened = sandbox.pyro(["task", "shell", "open", &task.id, "--json"]).json();
    let shell = opened["shell_id"].to_string();
    let mut terminal = Terminal::run(&sandbox, &format!("{PYRO} task shell attach {} {shell}", task.id));
    terminal.until("# ");
    terminal.close();
    wait_until_gone(&sandbox, "attach");
    let listed = sandbox.pyro(["task", "shell", "list", &task.id, "--json"]).json();
    assert_eq!(listed["shells"][0]["running"], true, "{listed}");
    task.delete();
}

#[test]
fn a_terminal_is_put_back_when_its_command_leaves_it_changed() {
    let sandbox = Sandbox::new();
    let line = format!("{PYRO} run -t {ENVIRONMENT} -- 'printf \"{WHOLE_SCREEN}\"'");
    let shown = Terminal::run(&sandbox, &line).finish();
    assert!(shown.contains(PUT_BACK) && shown.contains("status=0"), "{shown:?}");

    // Without a change, nothing is added.
    let line = format!("{PYRO} run -it {ENVIRONMENT} -- 'printf \"\\033[1mbold\\033[0m\"'");
    let shown = Terminal::run(&sandbox, &line).finish();
    assert!(shown.contains("\x1b[1mbold\x1b[0mstatus=0"), "{shown:?}");
    assert_put_back(&sandbox);
}

#[test]
fn a_terminal_is_put_back_after_signals() {
    let sandbox = Sandbox::new();
    // The shell gets the signal too: the terminal is not raw yet.
    let mut terminal = Terminal::run(&sandbox, &format!("trap : INT; {PYRO} run -it {ENVIRONMENT}"));
    sandbox.vmm();
    terminal.press("\x03");
    let shown = terminal.finish();
    assert!(shown.contains("status=130"), "{shown:?}");
    assert_put_back(&sandbox);

    let task = sandbox.task([]);
    for (signal, status) in [(Signal::HUP, 129), (Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131)]
    {
        let line = format!(
            "{PYRO} task exec -it {} -- 'printf \"{WHOLE_SCREEN}\"; echo begun; exec sleep 1000'",
            task.id
        );
        let mut terminal = Terminal::run(&sandbox, &line);
        terminal.until("begun");
        kill(client(&sandbox, "exec").pid, signal);
        let shown = terminal.finish();
        assert!(shown.contains(PUT_BACK), "{signal:?}: {shown:?}");
        assert!(shown.contains(&format!("status={status}")), "{signal:?}: {shown:?}");
        assert_put_back(&sandbox);
    }
    task.delete();
}

#[test]
fn a_suspended_client_gives_the_terminal_back_and_takes_it_again() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let guest = format!("printf \"{WHOLE_SCREEN}\"; echo begun; read word; echo got:$word");
    let line = format!(
        "set -m; {PYRO} task exec -it {} -- '{guest}'; stty -a > suspended; \
         bg; stty -a > background; fg",
        task.id
    );
    let mut terminal = Terminal::run(&sandbox, &line);
    terminal.until("begun");
    kill(client(&sandbox, "exec").pid, Signal::TSTP);
    terminal.until(PUT_BACK);
    // It is in the foreground again.
    terminal.until("\x1b[?1049h\x1b[?25l\x1b[?2004h");
    terminal.press("word\r");
    terminal.until("got:word");
    let shown = terminal.finish();
    assert!(shown.contains(PUT_BACK) && shown.contains("status=0"), "{shown:?}");
    assert_put_back(&sandbox);
    for name in ["suspended", "background"] {
        let modes = fs::read_to_string(sandbox.path(name)).unwrap();
        assert!(modes.contains(" icanon") && modes.contains(" echo "), "{name}: {modes}");
    }
    task.delete();
}

/// Without `-i` the terminal is not raw, but a program has changed it all the same.
#[test]
fn a_client_that_is_suspended_by_a_key_gives_the_terminal_back() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let guest =
        format!("printf \"{WHOLE_SCREEN}\"; echo begun; until [ -e go ]; do sleep 0.1; done; echo end");
    let line = format!("set -m; {PYRO} task exec -t {} -- '{guest}'; echo suspended=$?; fg", task.id);
    let mut terminal = Terminal::run(&sandbox, &line);
    terminal.until("begun");
    terminal.press("\x1a");
    terminal.until(PUT_BACK);
    terminal.until("suspended=148");
    terminal.until("\x1b[?1049h\x1b[?25l\x1b[?2004h");
    task.exec([], "touch go").success();
    terminal.until("end");
    let shown = terminal.finish();
    assert!(shown.contains(PUT_BACK) && shown.contains("status=0"), "{shown:?}");
    assert_put_back(&sandbox);
    task.delete();
}

/// Without job control, no process could continue it: its group is orphaned.
#[test]
fn a_client_that_cannot_be_suspended_goes_on() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let guest = format!("printf \"{WHOLE_SCREEN}\"; echo begun; while read word; do echo got:$word; done");
    let line = format!("{PYRO} task exec -it {} -- '{guest}'", task.id);
    let mut terminal = Terminal::run(&sandbox, &line);
    terminal.until("begun");
    let pid = client(&sandbox, "exec").pid;
    kill(pid, Signal::CONT);
    terminal.press("one\r");
    terminal.until("got:one");
    kill(pid, Signal::TSTP);
    terminal.until(PUT_BACK);
    terminal.until("\x1b[?1049h\x1b[?25l\x1b[?2004h");
    terminal.press("two\r");
    terminal.until("got:two");
    terminal.press("\x04");
    let shown = terminal.finish();
    assert!(shown.contains("status=0"), "{shown:?}");
    assert_eq!(shown.matches("\x1b[?1049h").count(), 2, "no change without a suspension: {shown:?}");
    assert_put_back(&sandbox);
    task.delete();
}

/// Its screen is that of the shell meanwhile, and nothing tells it that the terminal is its own again but another size.
#[test]
fn a_program_draws_again_after_its_client_was_suspended() {
    let sandbox = Sandbox::new();
    let tmux = Tmux::new(&sandbox);
    let line = format!("set -m; {PYRO} run -it {ENVIRONMENT}; echo suspended; read go; fg");
    let mut terminal = tmux.run(&line);
    terminal.until("# ");
    terminal.press("stty size; seq 1000 | less +G\r");
    terminal.until("32 101");
    terminal.until("(END)");
    let is_drawn = |screen: &str| screen.starts_with("970\n971\n") && screen.contains("\n998\n999\n");
    tmux.until("screen", is_drawn);
    kill(client(&sandbox, "run").pid, Signal::TSTP);
    terminal.until("suspended");
    assert!(!is_drawn(&tmux.screen()), "{}", tmux.screen());
    terminal.press("\r");
    tmux.until("screen as before", is_drawn);
    terminal.press("q");
    terminal.until("# ");
    terminal.press("stty size; exit 6\r");
    terminal.until("32 101");
    terminal.finish();
}

/// The profile of Debian sets `PATH`.
#[test]
fn the_callers_variables_win_in_a_login_shell() {
    let sandbox = Sandbox::new();
    let line = format!("{PYRO} run -it -e PATH=/ours:/bin -e OURS='a b' {ENVIRONMENT}");
    let mut terminal = Terminal::run(&sandbox, &line);
    terminal.until("# ");
    terminal.press("echo \"is:$PATH:$OURS:$TERM:$-\"\r");
    terminal.until("is:/ours:/bin:a b:xterm-256color:hi");
    terminal.press("exit 6\r");
    let shown = terminal.finish();
    assert!(shown.contains("status=6"), "{shown}");
}
