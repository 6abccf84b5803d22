//! The two formats behind one face: text in, text out.

use std::error::Error;

use serde_json::Value;

use super::{Entry, json, toml};

/// How a client writes its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    /// With comments and trailing commas, as several clients allow.
    Json,
    Toml,
}

/// What a parser or an editor did not like.
pub(super) type Problem = Box<dyn Error + Send + Sync>;

impl Format {
    /// What the text says. Empty text is an empty object.
    pub(super) fn read(self, text: &str) -> Result<Value, Problem> {
        match self {
            Self::Json => json::read(text),
            Self::Toml => toml::read(text),
        }
    }

    /// The text with `name` in the object `key` set to `entry`, and everything else as it is.
    pub(super) fn edited(self, text: &str, key: &str, name: &str, entry: &Entry) -> Result<String, Problem> {
        match self {
            Self::Json => json::edited(text, key, name, entry),
            Self::Toml => toml::edited(text, key, name, entry),
        }
    }
}

#[cfg(test)]
mod tests;
