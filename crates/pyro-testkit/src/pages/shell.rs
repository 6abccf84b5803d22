//! A shell that runs the commands of pages.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::Step;
use crate::Sandbox;

/// One `bash`, so that variables and the working directory stay from one command to the next. Its commands have no input.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    commands: ChildStdin,
    statuses: BufReader<ChildStdout>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Shell {
    /// Starts it with the variables of `sandbox`, in `directory`.
    pub fn start(sandbox: &Sandbox, directory: &Path) -> Self {
        let mut child = sandbox
            .program("bash")
            .args(["--noprofile", "--norc"])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let statuses = BufReader::new(child.stdout.take().unwrap());
        let (stdout, stderr) = (sandbox.path("stdout"), sandbox.path("stderr"));
        Self { child, commands, statuses, stdout, stderr }
    }

    /// Runs a command.
    ///
    /// # Panics
    /// It ends or writes something else than its page says.
    pub fn run(&mut self, step: &Step) {
        let [command, stdout, stderr] =
            [&*step.command, self.stdout.to_str().unwrap(), self.stderr.to_str().unwrap()]
                .map(|word| format!("'{}'", word.replace('\'', r"'\''")));
        writeln!(self.commands, "eval {command} </dev/null >{stdout} 2>{stderr}; echo $?").unwrap();
        let mut status = String::new();
        self.statuses.read_line(&mut status).unwrap();
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        let Step { place, command, shown, status: stated } = step;
        let ended = format!("{place}: {command}\nstatus: {status}stdout:\n{stdout}stderr:\n{stderr}");
        assert_eq!(status.trim(), stated.to_string(), "another status than on the page\n{ended}");
        if let Some(shown) = shown {
            assert!(is_shown(shown, &stdout), "other output than on the page\n{ended}");
        }
    }

    /// Ends it.
    pub fn end(mut self) {
        drop(self.commands);
        assert!(self.child.wait().unwrap().success());
    }
}

/// Returns whether a page that shows `shown` shows `output`. Dots stand for any text, on a line of their own for any lines.
fn is_shown(shown: &str, output: &str) -> bool {
    let shown: String =
        shown.split_inclusive('\n').map(|line| if line == "...\n" { "..." } else { line }).collect();
    let Some((head, rest)) = shown.split_once("...") else { return shown == output };
    let (between, tail) = rest.rsplit_once("...").unwrap_or(("", rest));
    let Some(mut output) = output.strip_prefix(head).and_then(|output| output.strip_suffix(tail)) else {
        return false;
    };
    between.split("...").all(|piece| match output.split_once(piece) {
        Some((_, behind)) => {
            output = behind;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(commands: &[(&str, Option<&str>, i32)]) {
        let mut sandbox = Sandbox::new("pyro-pages-");
        sandbox.set("PATH", "/usr/bin:/bin");
        let mut shell = Shell::start(&sandbox, sandbox.root());
        for (command, shown, status) in commands {
            let (command, shown) = ((*command).to_owned(), shown.map(str::to_owned));
            shell.run(&Step { place: "page.md:1".to_owned(), command, shown, status: *status });
        }
        shell.end();
    }

    #[test]
    fn commands_share_a_shell_and_have_no_input() {
        run(&[
            ("mkdir sub && cd sub && x='it'\"'\"'s'", Some(""), 0),
            ("echo \"$x\"; basename \"$PWD\"; cat; echo unseen >&2", Some("it's\nsub\n"), 0),
            ("seq 9; false", Some("1\n2\n...\n9\n"), 1),
            ("echo id: 815, at 12:00; seq 9", Some("id: ..., at ...\n1\n...\n5\n...\n"), 0),
            ("true", Some("...\n"), 0),
        ]);
    }

    #[test]
    #[should_panic = "page.md:1: false\nstatus: 1"]
    fn another_status_fails() {
        run(&[("false", None, 0)]);
    }

    #[test]
    fn other_output_fails() {
        assert!(!is_shown("one\n", "two\n"));
        assert!(!is_shown("one\n...\nthree\n", "one\ntwo\n"));
        assert!(!is_shown("one...\n...\n4\n...\n", "one\n2\n3\n"));
        let ended = std::panic::catch_unwind(|| run(&[("echo two", Some("one\n"), 0)]));
        assert!(ended.is_err());
    }
}
