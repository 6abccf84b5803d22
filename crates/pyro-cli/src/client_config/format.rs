//! The two formats behind one interface: text in, text out.

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
    /// Parses the text. Empty text is an empty object.
    pub(super) fn read(self, text: &str) -> Result<Value, Problem> {
        let (_, text) = split_mark(text);
        match self {
            Self::Json => json::read(text),
            Self::Toml => toml::read(text),
        }
    }

    /// Returns the text with `name` in the object `key` set to `entry`, and everything else unchanged.
    pub(super) fn edited(self, text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
        let (mark, text) = split_mark(text);
        let edited = match self {
            Self::Json => json::edited(text, key, name, entry)?,
            Self::Toml => toml::edited(text, key, name, entry)?,
        };
        Ok(mark.to_owned() + &edited)
    }
}

/// Splits off the byte order mark with which some editors on Windows begin a file.
fn split_mark(text: &str) -> (&str, &str) {
    text.split_at(if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 })
}

#[cfg(test)]
mod tests;
