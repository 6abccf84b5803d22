//! `pyro task cp`.

use std::path::Path;

use pyro_engine::{CopyLimits, EngineError, ErrorKind, Hint, TaskCopied};

use crate::args::TaskCpArgs;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;

pub(super) fn run(args: TaskCpArgs, printer: &Printer) -> Result<Exit, CliError> {
    let engine = super::super::engine()?;
    let limits = CopyLimits { max_entries: args.max_entries, max_bytes: args.max_mib << 20 };
    let json = args.json;
    let (copied, _) = session::block_on(session::watch(printer, json, |_, cancel| async move {
        match (in_task(&args.source), in_task(&args.destination)) {
            (Some((id, path)), None) => {
                engine.copy_from_task(id, path, &args.destination, limits, &cancel).await
            }
            (None, Some((id, path))) => engine.copy_to_task(id, &args.source, path, limits, &cancel).await,
            _ => Err(EngineError::new(
                ErrorKind::InvalidInput,
                "one of the two, source or destination, must be in a task",
            )
            .hint(Hint::CommandLine {
                text:
                    "write it as TASK_ID:PATH; write a file of this machine whose name has a colon as ./NAME"
                        .to_owned(),
            })),
        }
    }))?;
    match json {
        true => printer.json(&copied)?,
        false => printer.text(&report(&copied))?,
    }
    Ok(Exit::Success)
}

/// The id and the path of `TASK_ID:PATH`. What stands before the colon of a path with a slash is no id.
fn in_task(path: &Path) -> Option<(&str, &str)> {
    let (id, path) = path.to_str()?.split_once(':')?;
    (!id.contains('/')).then_some((id, path))
}

fn report(copied: &TaskCopied) -> String {
    let mut text = format!("Copied: {} entries, {} bytes\n", copied.entries, copied.bytes);
    if copied.left_out > 0 {
        text.push_str(&format!("Left out: {}\n", copied.left_out));
        copied.left_out_examples.iter().for_each(|name| text.push_str(&format!("- {name}\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_an_id_and_a_path_is_in_a_task() {
        assert_eq!(in_task(Path::new("9775b3af1eeb:a:b")), Some(("9775b3af1eeb", "a:b")));
        assert_eq!(in_task(Path::new("9775b3af1eeb:/etc")), Some(("9775b3af1eeb", "/etc")));
        for path in ["plain", "./a:b", "dir/9775b3af1eeb:x", "/abs:x"] {
            assert_eq!(in_task(Path::new(path)), None, "{path}");
        }
    }
}
