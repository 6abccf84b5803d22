//! `pyro task cp`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use pyro_engine::{
    CopyFromGuest, CopyLimits, CopyToGuest, Engine, Error, ErrorKind, Hint, OutputStream, TaskCopied,
};
use tokio_util::io::ReaderStream;

use crate::error::CliError;
use crate::printer::{OutputError, Printer};
use crate::reply::Reply;
use crate::session;

/// Stands for the standard input or output.
const STREAM: &str = "-";
/// Maximum number of entries of a copy, unless its caller sets another.
const MAX_ENTRIES: u64 = 1_000_000;
/// Maximum size of a piece of the standard input, in bytes.
const PIECE_BYTES: usize = 64 << 10;

const CP_EXAMPLES: &str = "\
Either the source or the destination is in a task, written TASK_ID:PATH; PATH is relative to /workspace \
unless it is absolute, and TASK_ID: alone is /workspace. If the destination is a directory, the copy is made in it under the \
source's name. Existing files are replaced, in a task with the mode and owner that they had; holes stay holes. Left out, and listed with the reason, are fifos, sockets, devices, \
and directories of the kernel such as /proc; a copy to this machine also leaves out symbolic links that lead out of it.
A source - is the standard input, and a destination - the standard output: the other one is then one file.

Examples:
  pyro task cp src 9775b3af1eeb:project
  pyro task cp 9775b3af1eeb:project/build/report.html .
  pyro task cp 9775b3af1eeb:/etc/os-release guest-release
  pyro task cp --strict 9775b3af1eeb: workspace
  pyro task cp 9775b3af1eeb:/var/log/dpkg.log - | tail
  date | pyro task cp - 9775b3af1eeb:started";

/// Copy files and directories into a task or out of it
#[derive(Debug, Args)]
#[command(after_help = CP_EXAMPLES)]
pub(crate) struct TaskCpArgs {
    /// File or directory to copy, or - for the standard input
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// Existing directory for the copy, or the copy's name, or - for the standard output
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: PathBuf,
    /// Maximum total size of the copy, in MiB
    #[arg(long, value_name = "MIB", default_value = "8192", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(crate) max_mib: u64,
    /// Maximum number of files, directories and links [default: 1000000]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_entries: Option<u64>,
    /// Keep the modes of the task's files [default: less the permissions that the umask takes away]
    #[arg(short, long)]
    pub(crate) preserve_mode: bool,
    /// Fail if something was left out, after the rest is copied [default: list it]
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn run(args: &TaskCpArgs, engine: &Engine, printer: &Printer) -> Result<Reply, CliError> {
    let max_entries = args.max_entries.unwrap_or(MAX_ENTRIES);
    let limits = CopyLimits { max_entries, max_bytes: args.max_mib << 20 };
    match (in_task(&args.source), in_task(&args.destination)) {
        (Some((id, path)), None) if args.destination == Path::new(STREAM) => {
            check_stream(args)?;
            read_to_stdout(id, path, limits.max_bytes, engine, printer)?;
            return Ok(Reply::nothing());
        }
        (None, Some((id, path))) if args.source == Path::new(STREAM) => {
            check_stream(args)?;
            let (copied, _) = session::watch(printer, args.json, async |_, cancel| {
                let input = ReaderStream::with_capacity(tokio::io::stdin(), PIECE_BYTES);
                engine.write_task_file_from(id, path, limits.max_bytes, input, &cancel).await
            })?;
            return Ok(Reply::of(args.json, &copied, report)?);
        }
        _ => {}
    }
    let (copied, _) = session::watch(printer, args.json, async |_, cancel| {
        match (in_task(&args.source), in_task(&args.destination)) {
            (Some((id, path)), None) => {
                let (preserve_mode, strict) = (args.preserve_mode, args.strict);
                let copy = CopyFromGuest { path, target: &args.destination, limits, preserve_mode, strict };
                engine.copy_from_task(id, copy, &cancel).await
            }
            (None, Some((id, path))) => {
                let copy = CopyToGuest { source: &args.source, path, limits, strict: args.strict };
                engine.copy_to_task(id, copy, &cancel).await
            }
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "exactly one of SOURCE and DESTINATION must be in a task",
            )
            .hint(Hint::CommandLine {
                text:
                    "write a path in a task as TASK_ID:PATH, and a file of this machine with a colon in its name as ./NAME"
                        .to_owned(),
            })),
        }
    })?;
    Ok(Reply::of(args.json, &copied, report)?)
}

/// Refuses options that mean nothing for the standard input or output.
fn check_stream(args: &TaskCpArgs) -> Result<(), Error> {
    let given = [
        ("--preserve-mode", args.preserve_mode),
        ("--strict", args.strict),
        ("--max-entries", args.max_entries.is_some()),
        // The contents take the place of the document.
        ("--json", args.json && args.destination == Path::new(STREAM)),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => {
            let message = format!("{option} cannot be used with -, which copies the contents of one file");
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
    }
}

/// Writes the contents of a file in a task to the standard output.
fn read_to_stdout(
    id: &str,
    path: &str,
    max_bytes: u64,
    engine: &Engine,
    printer: &Printer,
) -> Result<(), CliError> {
    let failed = Arc::new(Mutex::new(None));
    let sink = Watched { sink: io::stdout(), failed: Arc::clone(&failed) };
    let read = session::watch(printer, false, async |_, cancel| {
        engine.read_task_file_to(id, path, max_bytes, sink, &cancel).await
    });
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (read, failed) {
        // The copy failed because of the output, not because of the task.
        (Err(CliError::Engine(_)), Some(source)) => {
            Err(OutputError::new(OutputStream::Stdout, source).into())
        }
        (read, _) => read.map(drop),
    }
}

/// A sink that keeps the first failure to write to it.
struct Watched<W> {
    sink: W,
    failed: Arc<Mutex<Option<io::Error>>>,
}

impl<W> Watched<W> {
    /// Keeps `error`, and returns one of the same kind.
    fn keep(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        if kind != io::ErrorKind::Interrupted {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        kind.into()
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write(bytes).map_err(|error| self.keep(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush().map_err(|error| self.keep(error))
    }
}

/// Returns the id and the path of `TASK_ID:PATH`; without a path, it is the workspace. Text with a slash before the colon is not
/// an id.
pub(super) fn in_task(path: &Path) -> Option<(&str, &str)> {
    let (id, path) = path.to_str()?.split_once(':')?;
    let path = if path.is_empty() { "." } else { path };
    (!id.contains('/')).then_some((id, path))
}

fn report(copied: &TaskCopied) -> String {
    let entries = if copied.entries == 1 { "entry" } else { "entries" };
    let mut text = format!("Copied: {} {entries}, {} bytes\n", copied.entries, copied.bytes);
    if copied.left_out > 0 {
        text.push_str(&format!("Left out: {}\n", copied.left_out));
        copied.left_out_examples.iter().for_each(|name| text.push_str(&format!("- {name}\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: TaskCpArgs,
    }

    #[test]
    fn options_without_meaning_for_a_stream_are_refused() {
        let check = |words: &str| {
            let line = Line::try_parse_from(["cp"].into_iter().chain(words.split(' '))).unwrap();
            check_stream(&line.args).map_err(|error| error.to_string())
        };
        for words in ["9775b3af1eeb:x - --max-mib 1", "- 9775b3af1eeb:x --json"] {
            check(words).unwrap();
        }
        for (words, option) in [
            ("9775b3af1eeb:x - --json", "--json"),
            ("9775b3af1eeb:x - --preserve-mode", "--preserve-mode"),
            ("- 9775b3af1eeb:x --strict", "--strict"),
            ("- 9775b3af1eeb:x --max-entries 1000000", "--max-entries"),
        ] {
            let message = check(words).unwrap_err();
            assert!(message.starts_with(option), "{message}");
        }
    }

    #[test]
    fn a_failure_to_write_is_kept() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let failed = Arc::default();
        let mut sink = Watched { sink: Closed, failed: Arc::clone(&failed) };
        assert_eq!(sink.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let kept = failed.lock().unwrap().take().unwrap();
        assert!(OutputError::new(OutputStream::Stdout, kept).is_broken_pipe());
    }

    #[test]
    fn only_what_looks_like_an_id_and_a_path_is_in_a_task() {
        assert_eq!(in_task(Path::new("9775b3af1eeb:a:b")), Some(("9775b3af1eeb", "a:b")));
        assert_eq!(in_task(Path::new("9775b3af1eeb:/etc")), Some(("9775b3af1eeb", "/etc")));
        assert_eq!(in_task(Path::new("9775b3af1eeb:")), Some(("9775b3af1eeb", ".")));
        for path in ["plain", "./a:b", "dir/9775b3af1eeb:x", "/abs:x"] {
            assert_eq!(in_task(Path::new(path)), None, "{path}");
        }
    }
}
