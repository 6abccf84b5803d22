//! The commands of the documentation, run as a reader runs them: in a checkout, one after another.

use std::fs;
use std::path::{Path, PathBuf};

use pyro_testkit::pages::{self, Block, Order, Shell, Step};

use crate::harness::{PYRO, Running, Sandbox, Terminal};

/// A sandbox in which `pyro` is a command, and the directory of a checkout.
fn checkout() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new().set("PATH", &with_pyro());
    let checkout = sandbox.path("checkout");
    fs::create_dir(&checkout).unwrap();
    let copied = sandbox.program("cp").arg("-r").arg(root().join("examples")).arg(&checkout).status();
    assert!(copied.unwrap().success());
    (sandbox, checkout)
}

/// This process's `PATH` with the executable under test.
fn with_pyro() -> String {
    format!("{}:{}", Path::new(PYRO).parent().unwrap().display(), std::env::var("PATH").unwrap())
}

fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

/// Runs the blocks of a page that `is_wanted` selects.
fn run(page: &str, is_wanted: impl Fn(&Order) -> bool) {
    let (sandbox, checkout) = checkout();
    let mut shell = Shell::start(sandbox.plain(), &checkout);
    let blocks = pages::blocks(root(), page);
    let wanted: Vec<&Block> =
        blocks.iter().filter(|block| block.has_commands() && is_wanted(&block.order)).collect();
    assert!(!wanted.is_empty(), "{page} has no such commands");
    for block in wanted {
        for step in block.steps() {
            match &block.order {
                Order::InTmux(keys) => run_in_tmux(&sandbox, &checkout, &step, keys),
                _ => shell.run(&step),
            }
        }
    }
    shell.end();
    // What a page leaves behind is not its reader's loss, but would be this test's.
    for id in sandbox.pyro(["task", "list", "-q"]).success().lines() {
        sandbox.pyro(["task", "delete", id]).success();
    }
}

/// Runs a command on a terminal, presses the keys when a prompt of a root shell is shown, and waits for its end.
fn run_in_tmux(sandbox: &Sandbox, checkout: &Path, step: &Step, keys: &str) {
    let Step { place, command, status, .. } = step;
    let server = sandbox.path("tmux");
    let ended = sandbox.path("status");
    let script = sandbox.path("command");
    let (directory, path, ended_in) = (checkout.display(), with_pyro(), ended.display());
    let text = format!("cd {directory}\nexport PATH={path}\n{command}\necho $? > {ended_in}\n");
    fs::write(&script, text).unwrap();
    let line = format!("tmux -f /dev/null -S {} new-session bash {}", server.display(), script.display());
    let mut terminal = Terminal::run(sandbox, &line);
    terminal.until("# ");
    let pressed = sandbox
        .program("tmux")
        .args(["-S", server.to_str().unwrap(), "send-keys"])
        .args(keys.split(' '))
        .status();
    assert!(pressed.unwrap().success());
    let shown = terminal.finish();
    let ended = fs::read_to_string(ended).unwrap();
    assert_eq!(ended.trim(), status.to_string(), "{place}: {command}\n{shown}");
}

#[test]
fn the_commands_of_the_readme_work() {
    run("README.md", |order| matches!(order, Order::InShell | Order::InTmux(_)));
}

#[test]
fn the_commands_of_the_reference_work() {
    run("docs/commands.md", |order| matches!(order, Order::InShell | Order::InTmux(_)));
}

/// In `make test-full` only, because `make recording` does the same.
#[test]
fn the_recording_can_be_made_again() {
    let (sandbox, _) = checkout();
    let picture = sandbox.path("picture.svg");
    let mut record = sandbox.program("python3");
    record.arg(root().join("docs/media/record.py")).arg(PYRO).arg(&picture);
    Running::start(&mut record).finish().success();
    let [new, kept] = [picture, root().join("docs/media/run-it.svg")].map(|picture| {
        let text = fs::read_to_string(picture).unwrap();
        for shown in [
            "$ pyro run -it debian:12<",
            ":/workspace/demo# watch -n 1 uptime<",
            ">Every 1.0s: uptime",
            ">hi<",
        ] {
            assert!(text.contains(shown), "{shown}");
        }
        text
    });
    // Versions, and what was typed.
    let sources = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("<desc>")).unwrap_or("nothing");
        line.to_owned()
    };
    assert_eq!(sources(&kept), sources(&new), "`make recording` makes the picture again");
}

/// In `make test-full` only, because it builds environments.
#[test]
fn the_commands_in_other_environments_work() {
    run("docs/commands.md", |order| *order == Order::InTestFull);
}
