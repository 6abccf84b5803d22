//! Ids of VMs and tasks.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Kind};

/// Id of a VM or a task: 12 lowercase hexadecimal digits.
///
/// It is safe to use as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize)]
#[serde(transparent)]
pub struct VmId(String);

// Text from outside becomes an id only through `parse`, also when it is deserialised.
impl VmId {
    /// Number of digits.
    pub const LEN: usize = 12;

    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) with the text for an unknown id: a VM with an
    /// ill-formed id cannot exist, and callers need not tell the two apart.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_as(Kind::Vm, text)
    }

    /// As [`VmId::parse`], with the text for an unknown `kind`.
    pub fn parse_as(kind: Kind, text: &str) -> Result<Self, Error> {
        let well_formed =
            text.len() == Self::LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if well_formed { Ok(Self(text.to_owned())) } else { Err(Error::not_found(kind, text)) }
    }

    /// A new random id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) if the system has no random numbers.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0u8; Self::LEN / 2];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::internal("no random numbers for a VM id").caused_by(error))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for VmId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for VmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl AsRef<str> for VmId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ill_formed_ids_do_not_exist() {
        for id in
            ["", "../victim", "de259a89b18", "de259a89b1840", "DE259A89B184", "de259a89b18g", "de259a89b1é"]
        {
            assert_eq!(VmId::parse(id).unwrap_err().to_string(), format!("vm '{id}' does not exist"));
        }
    }

    #[test]
    fn an_ill_formed_id_cannot_break_the_message() {
        let error = VmId::parse(&"\n\u{1b}[31m".repeat(1000)).unwrap_err();
        assert!(error.message.len() < 1024);
        assert!(!error.message.contains(['\n', '\u{1b}']));
        assert!(error.message.ends_with("…' does not exist"));
    }

    #[test]
    fn random_ids_parse_and_differ() {
        let (first, second) = (VmId::random().unwrap(), VmId::random().unwrap());
        assert_eq!(VmId::parse(first.as_str()).unwrap(), first);
        assert_ne!(first, second);
    }

    proptest! {
        #[test]
        fn accepts_exactly_twelve_hex_digits(text in "[0-9a-f]{12}") {
            let id = VmId::parse(&text)?;
            prop_assert_eq!(id.as_str(), text);
        }

        #[test]
        fn whatever_parses_is_a_plain_file_name(text in ".{0,16}") {
            if let Ok(id) = VmId::parse(&text) {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric()));
            }
        }
    }
}
