//! Names in the domain name system, as they are compared.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a name in bytes, without the final dot.
const MAX_BYTES: usize = 253;
/// Maximum length of a label in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// A name in lower case, of letters, digits, hyphens, underscores and dots, without a final dot. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// Returns the name, unless `text` has another form.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        Self::of_labels(text.split('.').map(str::as_bytes))
    }

    /// Returns the name with these labels, unless it has another form.
    pub(crate) fn of_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut name = String::new();
        for label in labels {
            let is_label = (1..=MAX_LABEL_BYTES).contains(&label.len())
                && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            if !is_label || name.len() + label.len() > MAX_BYTES {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        (!name.is_empty() && name.len() <= MAX_BYTES).then(|| Self(name.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DnsName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).ok_or_else(|| serde::de::Error::custom("invalid name"))
    }
}

/// A name, or all names below one (`*.example.test`, which does not include `example.test`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainPattern {
    /// The name.
    pub name: DnsName,
    /// All names below it, but not the name itself.
    pub below: bool,
}

impl DomainPattern {
    /// Returns whether `name` is one of these names.
    pub fn matches(&self, name: &DnsName) -> bool {
        match self.below {
            false => self.name == *name,
            true => name.as_str().strip_suffix(self.name.as_str()).is_some_and(|rest| rest.ends_with('.')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case_and_final_dot() {
        let name = DnsName::new("WWW.Example.Test.").unwrap();
        assert_eq!(name.as_str(), "www.example.test");
        assert_eq!(DnsName::new(&"a.".repeat(126)).unwrap().as_str().len(), 251);
        let long_label = "a".repeat(64);
        let long = "abc.".repeat(64);
        for text in
            ["", ".", "a..b", ".a", "a b", "a\u{202e}b", "exämple.test", "a/b", long_label.as_str(), &long]
        {
            assert_eq!(DnsName::new(text), None, "{text}");
        }
    }

    #[test]
    fn a_pattern_matches_one_name_or_all_below_it() {
        let name = |text: &str| DnsName::new(text).unwrap();
        let exact = DomainPattern { name: name("example.test"), below: false };
        assert!(exact.matches(&name("Example.Test")) && !exact.matches(&name("a.example.test")));
        let below = DomainPattern { below: true, ..exact.clone() };
        assert!(below.matches(&name("a.example.test")) && below.matches(&name("a.b.example.test")));
        assert!(!below.matches(&name("example.test")) && !below.matches(&name("badexample.test")));
    }
}
