//! Programs in a guest that use the whole screen, as a person at a terminal sees them.

use crate::harness::{PYRO, Sandbox, Tmux};

/// The environment that has them.
const AGENT: &str = "debian:12-agent";

/// In `make test-full` only, because it builds an environment.
#[test]
fn an_editor_and_a_multiplexer_work_in_a_guest() {
    let sandbox = Sandbox::new();
    let pulled = sandbox.pyro(["env", "pull", AGENT]);
    assert_eq!(pulled.code(), 0, "{pulled:?}");
    let tmux = Tmux::new(&sandbox);
    let mut terminal = tmux.run(&format!("{PYRO} run -it {AGENT}; echo $? > status"));
    let is_at_prompt = |screen: &str| screen.trim_end().ends_with(":/workspace#");
    tmux.until("prompt", is_at_prompt);
    // Its keys are for the one in the guest.
    tmux.call(&["set-option", "-g", "prefix", "None"]);

    terminal.press("vi notes\r");
    tmux.until("new file", |screen| screen.starts_with("\n~\n~\n") && screen.contains("\"notes\" [New"));
    terminal.press("ione\rtwo\rthree\x1b");
    tmux.until("text", |screen| screen.starts_with("one\ntwo\nthree\n~\n"));
    terminal.press(":2s/two/zw\u{f6}lf/\rggdd");
    tmux.until("changed text", |screen| screen.starts_with("zw\u{f6}lf\nthree\n~\n"));
    terminal.resize(40, 90);
    tmux.until("text in a larger window", |screen| {
        screen.starts_with("zw\u{f6}lf\nthree\n~\n") && screen.matches("\n~").count() > 33
    });
    terminal.resize(33, 101);
    tmux.until("text in a smaller window", |screen| screen.matches("\n~").count() < 30);
    terminal.press(":wq\r");
    tmux.until("prompt after the editor", is_at_prompt);
    terminal.press("cat -A notes\r");
    tmux.until("file", |screen| screen.contains("\nzwM-CM-6lf$\nthree$\n"));

    terminal.press("clear; tmux\r");
    tmux.until("status line", |screen| screen.lines().nth(31).is_some_and(|line| line.starts_with("[0] 0:")));
    terminal.press("stty size; echo le''ft\r");
    tmux.until("window", |screen| screen.contains("\n31 101\nleft\n"));
    terminal.press("\x02%");
    tmux.until("second pane", |screen| screen.contains("\u{2502}root@"));
    terminal.press("stty size; echo ri''ght\r");
    let has_both = |screen: &str| {
        let lines: Vec<&str> = screen.lines().collect();
        lines.iter().any(|line| line.starts_with("left ") || line.trim_end() == "left")
            && lines.iter().any(|line| line.ends_with("31 50"))
            && lines.iter().any(|line| line.ends_with("right") && !line.contains("echo"))
    };
    tmux.until("two panes", has_both);
    terminal.press("\x02d");
    tmux.until("prompt after detaching", |screen| {
        screen.contains("[detached (from session 0)]") && is_at_prompt(screen)
    });
    assert!(!has_both(&tmux.screen()), "{}", tmux.screen());
    terminal.press("tmux attach\r");
    tmux.until("two panes again", has_both);
    terminal.press("tmux kill-server\r");
    tmux.until("prompt after tmux", |screen| screen.contains("[server exited]") && is_at_prompt(screen));
    terminal.press("exit 6\r");
    terminal.finish();
    assert_eq!(std::fs::read_to_string(sandbox.path("status")).unwrap(), "6\n");
}
