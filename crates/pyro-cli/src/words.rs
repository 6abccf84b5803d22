//! What words of the command line say: numbers, and the one string that a shell gets.

use std::ffi::OsString;

/// Why the words after the environment are not a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordsError {
    /// There are none.
    #[error("command is required after `--`")]
    Missing,
    /// This one is not UTF-8 (shown lossily), and commands travel as text.
    #[error("a word of the command is not valid UTF-8: {0}")]
    NotUtf8(String),
    /// One contains a NUL byte, which no shell can take.
    #[error("a word of the command contains a NUL byte")]
    Nul,
}

/// One word is a shell line and passes verbatim; of several, each is quoted so that the shell gives back
/// exactly these words. A lone empty word is quoted too: as a shell line it would succeed in silence, and
/// an unset variable on the caller's side is the likely cause.
pub(crate) fn join(words: &[OsString]) -> Result<String, WordsError> {
    let words: Vec<&str> = words
        .iter()
        .map(|word| word.to_str().ok_or_else(|| WordsError::NotUtf8(word.to_string_lossy().into_owned())))
        .collect::<Result<_, _>>()?;
    match words.as_slice() {
        [] => Err(WordsError::Missing),
        [line] if !line.is_empty() => Ok((*line).to_owned()),
        several => shlex::try_join(several.iter().copied()).map_err(|_| WordsError::Nul),
    }
}

/// Reads an integer of any size. One that does not fit becomes the nearest that does: still outside every limit, and
/// refused with the text of that limit.
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
