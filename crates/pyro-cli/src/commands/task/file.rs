//! `pyro task file`: the tree of a task's files.

use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use pyro_engine::{
    Engine, Error, ErrorKind, FileInfo, FileKind, FileMove, FileRemoval, FileWatch, Hint, Listing,
    TaskFileChanges, TaskFileList, WatchEnd,
};

use crate::commands::task::cp::in_task;
use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::session;
use crate::text::printable;

const FILE_EXAMPLES: &str = "\
A path in a task is written TASK_ID:PATH, as for `pyro task cp`. PATH is relative to /workspace unless it is \
absolute, and TASK_ID: alone is /workspace. To read and write contents, use `pyro task cp` with -.

Examples:
  pyro task file list 9775b3af1eeb:src
  pyro task file stat 9775b3af1eeb:/etc/passwd --json | jq -r .file.mode
  pyro task file mkdir 9775b3af1eeb:build/out
  pyro task file move 9775b3af1eeb:draft.md final.md
  pyro task file remove --recursive 9775b3af1eeb:build
  pyro task file watch --recursive 9775b3af1eeb:src";

/// Look at the files of a running task, and move, remove, or watch them
#[derive(Debug, Subcommand)]
#[command(after_help = FILE_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum TaskFileCommand {
    Stat(StatArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    #[command(visible_alias = "mv")]
    Move(MoveArgs),
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
    Mkdir(MkdirArgs),
    Watch(WatchArgs),
}

const STAT_EXAMPLES: &str = "\
Examples:
  pyro task file stat 9775b3af1eeb:/etc/passwd
  pyro task file stat 9775b3af1eeb:run.sh --json | jq -r .file.mode";

/// Describe a file or a directory; a symbolic link is not followed
#[derive(Debug, Args)]
#[command(after_help = STAT_EXAMPLES)]
pub(crate) struct StatArgs {
    /// The file or directory
    #[arg(value_name = "TASK_ID:PATH")]
    file: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

const LIST_EXAMPLES: &str = "\
Examples:
  pyro task file list 9775b3af1eeb:
  pyro task file list --recursive 9775b3af1eeb:/etc/apt";

/// List a directory
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    /// The directory
    #[arg(value_name = "TASK_ID:[PATH]")]
    directory: String,
    /// Also list what is in its directories, but not in other mounted file systems [default: off]
    #[arg(short, long)]
    recursive: bool,
    /// Maximum number of entries to list, up to 100000, with at most 16 MiB of paths; if there are more, these are any of them
    #[arg(long, value_name = "COUNT", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    max_entries: u64,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

const MOVE_EXAMPLES: &str = "\
Examples:
  pyro task file move 9775b3af1eeb:draft.md final.md
  pyro task file move --replace 9775b3af1eeb:new.conf /etc/app.conf";

/// Move or rename a file or a directory
#[derive(Debug, Args)]
#[command(after_help = MOVE_EXAMPLES)]
pub(crate) struct MoveArgs {
    /// The file or directory
    #[arg(value_name = "TASK_ID:PATH")]
    source: String,
    /// Its new path in the same task, with or without TASK_ID:; the directory that it is in must exist
    #[arg(value_name = "NEW_PATH")]
    destination: String,
    /// Replace a file, or an empty directory by a directory, that has the new path [default: fail]
    #[arg(long)]
    replace: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  pyro task file remove 9775b3af1eeb:note
  pyro task file remove --recursive 9775b3af1eeb:build";

/// Remove a file or an empty directory; of a symbolic link, only the link
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(crate) struct RemoveArgs {
    /// The file or directory
    #[arg(value_name = "TASK_ID:PATH")]
    file: String,
    /// Remove a directory with what is in it [default: fail unless it is empty]
    #[arg(short, long)]
    recursive: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

const MKDIR_EXAMPLES: &str = "\
Examples:
  pyro task file mkdir 9775b3af1eeb:build/out";

/// Make a directory and its missing parents
#[derive(Debug, Args)]
#[command(after_help = MKDIR_EXAMPLES)]
pub(crate) struct MkdirArgs {
    /// The directory
    #[arg(value_name = "TASK_ID:PATH")]
    directory: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

const WATCH_EXAMPLES: &str = "\
Examples:
  pyro task file watch --recursive 9775b3af1eeb:src
  pyro task file watch --json --idle-seconds 1 9775b3af1eeb:";

/// Print each change of a file or in a directory as it happens
///
/// Changes from the moment of the message `watching` on are printed: created, modified, attributes, removed, moved, or lost, if there
/// were too many changes at once. Exit status: 0 after the time, when nothing changes any more, or when what is watched is gone.
#[derive(Debug, Args)]
#[command(after_help = WATCH_EXAMPLES)]
pub(crate) struct WatchArgs {
    /// The directory or file
    #[arg(value_name = "TASK_ID:[PATH]")]
    file: String,
    /// Also watch its directories, at most 8192 [default: off]
    #[arg(short, long)]
    recursive: bool,
    /// Maximum time to watch, up to 3600
    #[arg(long, value_name = "SECONDS", default_value = "3600")]
    timeout_seconds: f64,
    /// End when something has changed and then nothing for this time [default: go on]
    #[arg(long, value_name = "SECONDS")]
    idle_seconds: Option<f64>,
    /// Print a JSON object per change on stdout instead of text [default: off]
    #[arg(long)]
    json: bool,
}

impl TaskFileCommand {
    pub(super) fn run(self, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
        match self {
            Self::Stat(args) => stat(&args, engine, printer),
            Self::List(args) => list(&args, engine, printer),
            Self::Move(args) => rename(&args, engine, printer),
            Self::Remove(args) => remove(&args, engine, printer),
            Self::Mkdir(args) => mkdir(&args, engine, printer),
            Self::Watch(args) => watch(&args, engine, printer),
        }
    }

    pub(super) fn wants_json(&self) -> bool {
        match self {
            Self::Stat(args) => args.json,
            Self::List(args) => args.json,
            Self::Move(args) => args.json,
            Self::Remove(args) => args.json,
            Self::Mkdir(args) => args.json,
            Self::Watch(args) => args.json,
        }
    }
}

fn stat(args: &StatArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.file)?;
    let (found, _) = session::watch(printer, args.json, async |_, cancel| {
        engine.stat_task_file(id, path.to_owned(), &cancel).await
    })?;
    Ok(Reply::of(args.json, &found, |found| described(&found.file))?)
}

fn list(args: &ListArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.directory)?;
    let listing = Listing { path: path.to_owned(), recursive: args.recursive, max_entries: args.max_entries };
    let (list, _) = session::watch(printer, args.json, async |_, cancel| {
        engine.list_task_files(id, listing, &cancel).await
    })?;
    let reply = Reply::of(args.json, &list, listed)?;
    Ok(match list.truncated {
        true if !args.json => {
            reply.note(format!("[pyro] only {} of the entries; more with --max-entries", list.entries.len()))
        }
        _ => reply,
    })
}

fn rename(args: &MoveArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.source)?;
    let destination = in_same_task(id, &args.destination)?;
    let files =
        FileMove { source: path.to_owned(), destination: destination.to_owned(), replace: args.replace };
    let (moved, _) = session::watch(printer, args.json, async |_, cancel| {
        engine.move_task_file(id, files, &cancel).await
    })?;
    Ok(Reply::of(args.json, &moved, |moved| {
        format!("Moved: {} -> {}\n", printable(&moved.source), printable(&moved.destination))
    })?)
}

fn remove(args: &RemoveArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.file)?;
    let removal = FileRemoval { path: path.to_owned(), recursive: args.recursive };
    let (removed, _) = session::watch(printer, args.json, async |_, cancel| {
        engine.remove_task_file(id, removal, &cancel).await
    })?;
    Ok(Reply::of(args.json, &removed, |removed| format!("Removed: {}\n", printable(&removed.path)))?)
}

fn mkdir(args: &MkdirArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.directory)?;
    let (made, _) = session::watch(printer, args.json, async |_, cancel| {
        engine.make_task_directory(id, path.to_owned(), &cancel).await
    })?;
    Ok(Reply::of(args.json, &made, |made| format!("Directory: {}\n", printable(&made.path)))?)
}

fn watch(args: &WatchArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let (id, path) = place(&args.file)?;
    let watch = FileWatch {
        path: path.to_owned(),
        recursive: args.recursive,
        timeout_seconds: args.timeout_seconds,
        idle_seconds: args.idle_seconds,
        max_changes: 0,
    };
    let (TaskFileChanges { reason, .. }, _) = session::watch(printer, args.json, async |events, cancel| {
        engine.watch_task_files(id, watch, &events, &cancel).await
    })?;
    Ok(match reason {
        WatchEnd::Gone if !args.json => Reply::nothing().note("[watch] what was watched is gone"),
        WatchEnd::Time if !args.json => Reply::nothing().note("[watch] timed out"),
        _ => Reply::nothing(),
    })
}

/// The task and the path of `TASK_ID:PATH`.
fn place(text: &str) -> Result<(&str, &str), Error> {
    in_task(text.as_ref()).ok_or_else(|| {
        let message = format!("invalid path in a task {text:?}: expected TASK_ID:PATH");
        Error::new(ErrorKind::InvalidInput, message)
            .hint(Hint::CommandLine { text: "`pyro task list` shows the ids of all tasks".to_owned() })
    })
}

/// The path of `NEW_PATH`, which may name the task again.
fn in_same_task<'a>(id: &str, text: &'a str) -> Result<&'a str, Error> {
    match in_task(text.as_ref()) {
        None => Ok(text),
        Some((same, path)) if same == id => Ok(path),
        Some((other, _)) => {
            let message = format!("invalid new path {text:?}: expected a path in task {id}, not in {other}");
            let hint = format!(
                "write ./{text} if {other}: is part of the name; `pyro task cp` copies between tasks"
            );
            Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::CommandLine { text: hint }))
        }
    }
}

fn described(file: &FileInfo) -> String {
    let mut lines = vec![
        format!("Path: {}", printable(&file.path)),
        format!("Kind: {}", word(file.kind)),
        format!("Size: {} bytes", file.size_bytes),
        format!("Mode: {}", file.mode),
        format!("Owner: {}:{}", file.uid, file.gid),
        format!("Modified: {}", time(file.modified_at)),
    ];
    lines.extend(file.target.as_ref().map(|target| format!("Target: {}", printable(target))));
    lines.join("\n") + "\n"
}

fn listed(list: &TaskFileList) -> String {
    let width = list.entries.iter().map(|file| file.size_bytes.to_string().len()).max().unwrap_or_default();
    let line = |file: &FileInfo| {
        let (end, target) = match file.kind {
            FileKind::Directory => ("/", None),
            FileKind::Symlink => ("", file.target.as_deref()),
            FileKind::File | FileKind::Special => ("", None),
        };
        let target = target.map(|target| format!(" -> {}", one_line(target))).unwrap_or_default();
        format!(
            "{} {:>width$} {} {}{end}{target}\n",
            file.mode,
            file.size_bytes,
            time(file.modified_at),
            one_line(&file.path)
        )
    };
    list.entries.iter().map(line).collect()
}

fn one_line(name: &str) -> String {
    printable(name).replace('\n', "\\n")
}

fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Special => "FIFO, socket or device",
    }
}

/// The time in UTC to the second.
fn time(seconds: f64) -> String {
    let moment = DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default();
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use pyro_engine::VmId;

    use super::*;

    fn entry(path: &str, kind: FileKind, size_bytes: u64) -> FileInfo {
        FileInfo {
            path: path.to_owned(),
            kind,
            size_bytes,
            mode: "0644".to_owned(),
            uid: 0,
            gid: 0,
            modified_at: 1_700_000_000.5,
            target: (kind == FileKind::Symlink).then(|| "a\u{1b}[2J".to_owned()),
        }
    }

    #[test]
    fn a_list_has_a_line_for_each_entry_and_does_not_control_the_terminal() {
        let entries = vec![
            entry("a\nb", FileKind::File, 1234),
            entry("dir", FileKind::Directory, 1),
            entry("link", FileKind::Symlink, 2),
        ];
        let task_id = VmId::parse("9775b3af1eeb").unwrap();
        let list = TaskFileList { task_id, path: ".".to_owned(), entries, truncated: false };
        let expected = "\
0644 1234 2023-11-14T22:13:20Z a\\nb
0644    1 2023-11-14T22:13:20Z dir/
0644    2 2023-11-14T22:13:20Z link -> a\\u{1b}[2J
";
        assert_eq!(listed(&list), expected);
    }

    #[test]
    fn a_path_needs_its_task() {
        assert_eq!(place("9775b3af1eeb:a:b").unwrap(), ("9775b3af1eeb", "a:b"));
        assert_eq!(place("9775b3af1eeb:").unwrap(), ("9775b3af1eeb", "."));
        assert_eq!(place("plain").unwrap_err().kind, ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_moves_within_its_task() {
        let id = "9775b3af1eeb";
        for (text, path) in [
            ("b", "b"),
            ("9775b3af1eeb:b", "b"),
            ("9775b3af1eeb:/b:c", "/b:c"),
            ("./a:b", "./a:b"),
            ("/a:b", "/a:b"),
        ] {
            assert_eq!(in_same_task(id, text).unwrap(), path);
        }
        let error = in_same_task(id, "000000000000:b").unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput);
        assert!(error.message.ends_with("not in 000000000000"), "{}", error.message);
    }
}
