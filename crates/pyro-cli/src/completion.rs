//! Completes the command line for a shell, whose script calls pyro with `_PYRO_COMPLETE` set.
//!
//! This is for each press of a key, so it starts nothing, changes nothing, and reports nothing but candidates.

use std::ffi::{OsStr, OsString};

use clap::Arg;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _};
use clap_complete::env::Shells;
use pyro_engine::{KnownNames, MIN_PREFIX_DIGITS, known_names};

use crate::exit::Exit;
use crate::text::printable;
use crate::{commands, config, session};

/// Tells pyro to complete a command line, and for which shell.
const VARIABLE: &str = "_PYRO_COMPLETE";
/// Which of the words is being typed, as the scripts of `clap_complete` pass it.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
const PROGRAM: &str = "pyro";

/// Zsh reads the script when it needs it for the first time, and takes it for the function.
const ZSH_FIRST_USE: &[u8] =
    b"if [ \"$funcstack[1]\" = \"_pyro\" ]; then\n    _clap_dynamic_completer_pyro \"$@\"\nfi\n";

/// Answers a shell that asks for candidates. `None`: no shell asks.
pub(crate) fn answer() -> Option<Exit> {
    let directory = std::env::current_dir().ok();
    let complete = CompleteEnv::with_factory(grammar).var(VARIABLE).bin(PROGRAM).completer(PROGRAM);
    match complete.try_complete(std::env::args_os(), directory.as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(Exit::Success),
        // A message would end up in the middle of what is being typed.
        Err(_) => Some(Exit::Failure),
    }
}

/// Returns the script that a shell has to read.
///
/// # Errors
/// This shell has no script.
pub(crate) fn script(shell: clap_complete::Shell) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string()).ok_or(std::io::ErrorKind::Unsupported)?;
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    if shell.is("zsh") {
        script.extend_from_slice(ZSH_FIRST_USE);
    }
    Ok(script)
}

/// The grammar in which arguments know their candidates, without the hidden commands.
fn grammar() -> clap::Command {
    with_names(commands::grammar_for_people())
}

fn with_names(command: clap::Command) -> clap::Command {
    command.mut_args(with_candidates).mut_subcommands(with_names)
}

/// Adds the candidates of an argument that names something. What it names is the same for each value name.
fn with_candidates(arg: Arg) -> Arg {
    let value = arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string);
    let completer = match value.as_deref() {
        Some("TASK_ID") => ArgValueCompleter::new(tasks),
        Some("ENVIRONMENT") => ArgValueCompleter::new(environments),
        Some("NAME") if arg.is_positional() => ArgValueCompleter::new(services),
        Some("TASK_ID:PATH" | "TASK_ID:[PATH]") => ArgValueCompleter::new(places),
        Some("SOURCE" | "DESTINATION") => ArgValueCompleter::new(places_and_paths),
        _ => return arg,
    };
    arg.add(completer)
}

fn known() -> KnownNames {
    config::of_process().map(|config| known_names(&config.base_dir)).unwrap_or_default()
}

/// Names of tasks, and ids of all of them.
fn tasks(typed: &OsStr) -> Vec<CompletionCandidate> {
    tasks_with(typed, "")
}

/// The same, as the beginning of a place in a task.
fn places(typed: &OsStr) -> Vec<CompletionCandidate> {
    tasks_with(typed, ":")
}

fn places_and_paths(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = places(typed);
    candidates.extend(PathCompleter::any().complete(typed));
    candidates
}

fn tasks_with(typed: &OsStr, end: &str) -> Vec<CompletionCandidate> {
    let tasks = known().tasks;
    let named = tasks.iter().filter_map(|task| Some((task.name.clone()?, task)));
    let by_id = tasks.iter().map(|task| (task.id.clone(), task));
    let all = named.chain(by_id).map(|(text, task)| {
        let about = format!("{} {}", task.environment, task.state);
        (text + end, about)
    });
    matching(typed, all)
}

/// Services of the task that is named before them.
fn services(typed: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<String> = words_before().map(|word| word.to_string_lossy().into_owned()).collect();
    let known = known();
    let of_task = known.services.into_iter().filter(|(_, id)| {
        let name = known.tasks.iter().find(|task| task.id == *id).and_then(|task| task.name.as_ref());
        let is_prefix = |word: &String| word.len() >= MIN_PREFIX_DIGITS && id.starts_with(word);
        words.iter().any(|word| is_prefix(word) || name == Some(word))
    });
    matching(typed, of_task.map(|(name, task)| (name, format!("service of task {task}"))))
}

/// The words after that for the kind of command, such as `stop`, up to the one that is typed.
fn words_before() -> impl Iterator<Item = OsString> {
    let words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    // Otherwise the shell passes only words up to the one that is typed.
    let index = std::env::var(INDEX).ok().and_then(|index| index.parse().ok());
    let typed = index.unwrap_or(words.len().saturating_sub(1));
    words.into_iter().take(typed).skip_while(|word| word != "service").skip(2)
}

fn environments(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Ok(engine) = config::engine() else { return Vec::new() };
    let Ok(list) = session::block_on(engine.list_environments()) else { return Vec::new() };
    let all = list.environments.into_iter().map(|environment| {
        let state = if environment.installed { "installed" } else { "not installed" };
        (environment.name, state.to_owned())
    });
    matching(typed, all)
}

/// Candidates that begin with what was typed, in the order of their kinds and names. What they are about may come from another
/// user, so it does not control the terminal.
fn matching(typed: &OsStr, all: impl Iterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let fitting = all.filter(|(text, _)| text.starts_with(&*typed));
    fitting
        .map(|(text, about)| CompletionCandidate::new(text).help(Some(printable(&about).into_owned().into())))
        .collect()
}
