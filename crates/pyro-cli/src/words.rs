//! Words of the command line: numbers, and the command that the shell gets.

use std::ffi::OsString;

/// Why the words after the environment are not a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordsError {
    /// There are no words.
    #[error("command is required after `--`")]
    Missing,
    /// A word is not UTF-8 (shown lossily), and commands are sent as text.
    #[error("a word of the command is not valid UTF-8: {0}")]
    NotUtf8(String),
    /// A word contains a NUL byte, which a shell cannot accept.
    #[error("a word of the command contains a NUL byte")]
    Nul,
}

/// A single word is a shell line and is passed verbatim. Several words are quoted, so that the shell splits the line into
/// exactly these words. A single empty word is quoted too: as a shell line it would succeed silently, and the likely cause
/// is an unset variable of the caller.
pub(crate) fn join(words: &[OsString]) -> Result<String, WordsError> {
    match texts(words)?.as_slice() {
        [] => Err(WordsError::Missing),
        [line] if !line.is_empty() => Ok((*line).to_owned()),
        several => shlex::try_join(several.iter().copied()).map_err(|_| WordsError::Nul),
    }
}

/// Returns the words as texts.
pub(crate) fn texts(words: &[OsString]) -> Result<Vec<&str>, WordsError> {
    let text = |word: &'_ OsString| WordsError::NotUtf8(word.to_string_lossy().into_owned());
    words.iter().map(|word| word.to_str().ok_or_else(|| text(word))).collect()
}

/// Parses an integer of any size. One that does not fit becomes the nearest that does, which is outside every limit, so
/// that the error names the limit.
pub(crate) fn integer(text: &str) -> Result<i64, &'static str> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().or_else(|error: std::num::ParseIntError| match error.kind() {
        PosOverflow => Ok(i64::MAX),
        NegOverflow => Ok(i64::MIN),
        _ => Err("not an integer"),
    })
}

#[cfg(test)]
mod tests;
