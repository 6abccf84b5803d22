//! The links and fenced blocks of Markdown pages, and the commands in them, for tests that run what the documentation shows.
//!
//! The language of a block says what it is: `sh` has commands, and `console` commands after `$ ` with what they write to standard
//! output, where `...` stands for any text, and on a line of its own for any lines. A command ends with its line, unless that ends with a backslash, and with
//! status 0, unless a comment says `# exit status N`. A comment before a block changes that:
//!
//! * `<!-- run in tmux, typing: KEYS -->`: on a terminal; when a prompt is shown, tmux presses these keys.
//! * `<!-- run by make test-full -->`: it takes too long for `make test`.
//! * `<!-- not run: REASON -->`

mod links;
mod shell;

use std::fs;
use std::path::Path;

pub use self::links::broken_links;
pub use self::shell::Shell;

/// A fenced block of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Path of the page, and the number of the line where the block begins.
    pub place: String,
    /// Word after the fence.
    pub language: String,
    /// Text between the fences.
    pub text: String,
    /// How its commands are run.
    pub order: Order,
    first_line: usize,
    page: String,
}

/// How the commands of a block are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// By a shell, one after another, with no input.
    InShell,
    /// In tmux, which presses these keys when a prompt is shown.
    InTmux(String),
    /// Like [`Self::InShell`], but only by `make test-full`.
    InTestFull,
    /// Not at all, for this reason.
    NotRun(String),
}

/// A command of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Path of the page, and number of the line.
    pub place: String,
    /// Text for a shell.
    pub command: String,
    /// What the page shows of its standard output.
    pub shown: Option<String>,
    /// The exit status that the page states.
    pub status: i32,
}

/// Returns the blocks of a page below `root`.
///
/// # Panics
/// The page cannot be read, has a block without an end, or an unknown comment before one.
pub fn blocks(root: impl AsRef<Path>, page: &str) -> Vec<Block> {
    let path = root.as_ref().join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(page, &text)
}

fn parse(page: &str, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let place = format!("{page}:{number}");
            let mut text = String::new();
            loop {
                match lines.next() {
                    Some((_, "```")) => break,
                    Some((_, line)) => text = text + line + "\n",
                    None => panic!("{place}: the block has no end"),
                }
            }
            let order = order(before).unwrap_or_else(|| panic!("{place}: unknown comment: {before}"));
            let (language, page) = (language.to_owned(), page.to_owned());
            blocks.push(Block { place, language, text, order, first_line: number + 1, page });
        }
        if !line.is_empty() {
            before = line;
        }
    }
    blocks
}

/// Returns what the line before a block says about it; `None` if that is a comment of an unknown form.
fn order(before: &str) -> Option<Order> {
    let Some(comment) = before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) else {
        return Some(Order::InShell);
    };
    if comment == "run by make test-full" {
        return Some(Order::InTestFull);
    }
    let (what, rest) = comment.split_once(": ").filter(|(_, rest)| !rest.trim().is_empty())?;
    match what {
        "run in tmux, typing" => Some(Order::InTmux(rest.to_owned())),
        "not run" => Some(Order::NotRun(rest.to_owned())),
        _ => None,
    }
}

impl Block {
    /// Returns whether it consists of commands for a shell.
    pub fn has_commands(&self) -> bool {
        ["sh", "console"].contains(&&*self.language)
    }

    /// Returns its commands.
    pub fn steps(&self) -> Vec<Step> {
        let is_console = self.language == "console";
        let mut steps: Vec<Step> = Vec::new();
        let mut lines = (self.first_line..).zip(self.text.lines());
        while let Some((number, line)) = lines.next() {
            let place = format!("{}:{number}", self.page);
            let command = if is_console { line.strip_prefix("$ ") } else { Some(line) };
            let Some(command) = command else {
                let step = steps.last_mut().unwrap_or_else(|| panic!("{place}: output without a command"));
                step.shown = step.shown.take().map(|shown| shown + line + "\n");
                continue;
            };
            let mut command = command.to_owned();
            while command.ends_with('\\') {
                let (_, more) = lines.next().unwrap_or_else(|| panic!("{place}: the command has no end"));
                command = command + "\n" + more;
            }
            if command.is_empty() || command.starts_with('#') {
                continue;
            }
            let status = stated_status(&command);
            let shown = is_console.then(String::new);
            steps.push(Step { place, command, shown, status });
        }
        steps
    }
}

fn stated_status(command: &str) -> i32 {
    let Some((_, rest)) = command.split_once("exit status ") else { return 0 };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after `exit status` in: {command}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# A page

```console
$ echo one; \\
  echo two
one
two
$ true
```

<!-- run in tmux, typing: exit Enter -->

```sh
# A comment.
cat
```

<!-- run by make test-full -->
```sh
make

false   # exit status 1
```

A paragraph.

<!-- not run: it needs the internet -->
```sh
curl
```
";

    #[test]
    fn blocks_are_read_with_their_orders() {
        let blocks = parse("page.md", PAGE);
        let orders: Vec<_> = blocks.iter().map(|block| (&*block.place, block.order.clone())).collect();
        assert_eq!(
            orders,
            [
                ("page.md:3", Order::InShell),
                ("page.md:13", Order::InTmux("exit Enter".to_owned())),
                ("page.md:19", Order::InTestFull),
                ("page.md:28", Order::NotRun("it needs the internet".to_owned())),
            ]
        );
    }

    #[test]
    fn commands_have_their_output_and_status() {
        let blocks = parse("page.md", PAGE);
        let steps: Vec<_> = blocks.iter().take(3).flat_map(Block::steps).collect();
        let step = |line: u32, command: &str, shown: Option<&str>, status| Step {
            place: format!("page.md:{line}"),
            command: command.to_owned(),
            shown: shown.map(str::to_owned),
            status,
        };
        assert_eq!(
            steps,
            [
                step(4, "echo one; \\\n  echo two", Some("one\ntwo\n"), 0),
                step(8, "true", Some(""), 0),
                step(15, "cat", None, 0),
                step(20, "make", None, 0),
                step(22, "false   # exit status 1", None, 1),
            ]
        );
    }

    #[test]
    #[should_panic = "unknown comment: <!-- not run -->"]
    fn a_block_that_is_not_run_needs_a_reason() {
        parse("page.md", "<!-- not run -->\n```sh\n```\n");
    }
}
