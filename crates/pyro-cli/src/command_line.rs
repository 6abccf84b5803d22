//! Parses a command line, with the checks that a grammar cannot express.

use std::ffi::OsString;

use clap::error::ErrorKind;

use crate::commands::mcp::McpCommand;
use crate::commands::mcp::serve::McpTransport;
use crate::commands::task::TaskCommand;
use crate::commands::task::service::ServiceSubcommand;
use crate::commands::task::shell::ShellCommand;
use crate::commands::{Command, grammar, parsed};

/// Parses a command line, program name included. A request for help or the version is returned as an error, as clap
/// does it.
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
        Command::Task(TaskCommand::Shell(args)) => {
            let task = grammar.find_subcommand_mut("task");
            let shell = task.and_then(|task| task.find_subcommand_mut("shell"));
            match &args.detached {
                None => Some((&args.words, shell)),
                Some(ShellCommand::Open(args)) => {
                    Some((&args.words, shell.and_then(|shell| shell.find_subcommand_mut("open"))))
                }
                Some(_) => None,
            }
        }
        Command::Task(TaskCommand::Service(ServiceSubcommand::Start(args))) => {
            let task = grammar.find_subcommand_mut("task");
            let service = task.and_then(|task| task.find_subcommand_mut("service"));
            Some((&args.words, service.and_then(|service| service.find_subcommand_mut("start"))))
        }
        _ => None,
    };
    if let Some((trailing, Some(grammar))) = trailing {
        refuse_misplaced_flags(trailing, &words, grammar)?;
    }
    // The client starts the server in the background, so report a mistake in the flags now.
    if let Command::Mcp(McpCommand::Install(args)) = &mut command
        && let Command::Mcp(McpCommand::Serve(serve)) = parse(args.server_words("pyro").map(OsString::from))?
    {
        let over_http = (serve.transport == McpTransport::Http).then(|| "--transport http".to_owned());
        if let Some(flag) = over_http.or_else(|| args.flag_for_http()) {
            let text = format!(
                "{flag} is only for HTTP; the client starts the server itself and uses its standard input and output"
            );
            return Err(grammar.error(ErrorKind::ArgumentConflict, text));
        }
        args.environments = serve.limits.environment;
    }
    Ok(command)
}

/// Rejects `pyro run ENV CMD --network`: as part of the command the flag would silently do nothing, as a flag of pyro it
/// would be missing from the command. After `--` it is unambiguous. `words` are the command's.
fn refuse_misplaced_flags(
    words: &[OsString],
    command_line: &[OsString],
    grammar: &mut clap::Command,
) -> Result<(), clap::Error> {
    let before_words = command_line.len().saturating_sub(words.len());
    if command_line.iter().take(before_words).any(|word| word == "--") {
        return Ok(());
    }
    // No program has such a name, and a mistyped flag must not start anything.
    if let Some(flag) = words.first().and_then(|word| word.to_str()).filter(|word| word.starts_with('-')) {
        return Err(grammar.error(
            ErrorKind::UnknownArgument,
            format!("unexpected argument `{flag}`; write `--` before the command if it begins with `-`"),
        ));
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
            "`{flag}` after the command is ambiguous: it could be a flag of pyro or of the command; \
             write `--` before the command, and flags of pyro before `--`"
        ),
    ))
}

#[cfg(test)]
mod tests;
