//! Reading a command line, with the checks that a grammar cannot express.

use std::ffi::OsString;

use clap::error::ErrorKind;

use crate::commands::mcp::McpCommand;
use crate::commands::mcp::serve::McpTransport;
use crate::commands::task::TaskCommand;
use crate::commands::{Command, grammar, parsed};

/// Reads a command line, program name included. The error is also how help and the version are asked for.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let mut grammar = grammar();
    let matches = grammar.try_get_matches_from_mut(&words)?;
    let mut command = parsed(&matches).map_err(|error| error.format(&mut grammar))?;
    let trailing = match &command {
        Command::Run(args) => Some((&args.words, grammar.find_subcommand_mut("run"))),
        Command::Task(TaskCommand::Exec(args)) => {
            let task = grammar.find_subcommand_mut("task");
            Some((&args.words, task.and_then(|task| task.find_subcommand_mut("exec"))))
        }
        _ => None,
    };
    if let Some((trailing, Some(grammar))) = trailing {
        refuse_misplaced_flags(trailing, &words, grammar)?;
    }
    // A client starts the server out of sight: a mistake in the flags has to be seen now.
    if let Command::Mcp(McpCommand::Install(args)) = &mut command
        && let Command::Mcp(McpCommand::Serve(serve)) = parse(args.server_words("pyro").map(OsString::from))?
    {
        let over_http = (serve.transport == McpTransport::Http).then(|| "--transport http".to_owned());
        if let Some(flag) = over_http.or_else(|| args.flag_for_http()) {
            let text = format!(
                "{flag} is for HTTP; clients of this kind start the server themselves and talk to its standard input \
                 and output"
            );
            return Err(grammar.error(ErrorKind::ArgumentConflict, text));
        }
        args.environments = serve.limits.environment;
    }
    Ok(command)
}

/// Refuses `pyro run ENV CMD --network`: taken as a word of the command the flag would silently do nothing, taken as
/// ours it would be missing from the command. After `--` there is no doubt. `words` are the command's.
fn refuse_misplaced_flags(
    words: &[OsString],
    command_line: &[OsString],
    grammar: &mut clap::Command,
) -> Result<(), clap::Error> {
    let before_words = command_line.len().saturating_sub(words.len());
    if command_line.iter().take(before_words).any(|word| word == "--") {
        return Ok(());
    }
    let flags: Vec<String> =
        grammar.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")).collect();
    let is_ours = |word: &&str| {
        let name = word.split_once('=').map_or(*word, |(name, _)| name);
        name != "--help" && flags.iter().any(|flag| flag == name)
    };
    let Some(flag) = words.iter().filter_map(|word| word.to_str()).find(is_ours) else {
        return Ok(());
    };
    Err(grammar.error(
        ErrorKind::UnknownArgument,
        format!(
            "`{flag}` after the command could be meant for pyro or for the command: \
             write `--` before the command, and flags of pyro before `--`"
        ),
    ))
}

#[cfg(test)]
mod tests;
