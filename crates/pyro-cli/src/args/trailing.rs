//! The command that follows pyro's own words.

use std::ffi::OsString;

use clap::error::ErrorKind;

/// Refuses `pyro run ENV CMD --network`: taken as a word of the command the flag would silently do nothing, taken as
/// ours it would be missing from the command. After `--` there is no doubt. `words` are the command's.
pub(super) fn refuse_misplaced_flags(
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
