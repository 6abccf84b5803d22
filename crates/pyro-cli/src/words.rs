//! From the words of the command line to the one string a shell gets.

use std::ffi::OsString;

/// Why the words after the environment are not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WordsError {
    /// There are none.
    Missing,
    /// This one is not UTF-8 (shown lossily), and commands travel as text.
    NotUtf8(String),
    /// One contains a NUL byte, which no shell can take.
    Nul,
}

impl std::fmt::Display for WordsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("command is required after `--`"),
            Self::NotUtf8(shown) => write!(f, "a word of the command is not valid UTF-8: {shown}"),
            Self::Nul => f.write_str("a word of the command contains a NUL byte"),
        }
    }
}

impl std::error::Error for WordsError {}

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

#[cfg(test)]
mod tests;
