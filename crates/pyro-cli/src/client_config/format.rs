//! The two formats behind one face: text in, text out.

use serde_json::Value;

use super::entry::Entry;
use super::error::Problem;
use super::{json, toml};

/// How a client writes its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    /// With comments and trailing commas, as several clients allow.
    Json,
    Toml,
}

impl Format {
    /// What the text says. Empty text is an empty object.
    pub(super) fn read(self, text: &str) -> Result<Value, Problem> {
        let (_, text) = split_mark(text);
        match self {
            Self::Json => json::read(text),
            Self::Toml => toml::read(text),
        }
    }

    /// The text with `name` in the object `key` set to `entry`, and everything else as it is.
    pub(super) fn edited(self, text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
        let (mark, text) = split_mark(text);
        let edited = match self {
            Self::Json => json::edited(text, key, name, entry)?,
            Self::Toml => toml::edited(text, key, name, entry)?,
        };
        Ok(mark.to_owned() + &edited)
    }
}

/// The byte order mark that some editors on Windows begin a file with, and the text that a parser takes.
fn split_mark(text: &str) -> (&str, &str) {
    text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 })
}

#[cfg(test)]
mod tests;
