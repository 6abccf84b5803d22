//! On whose behalf a call is made, and what that caller may find.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, VmId};

/// Name of a caller that owns what it creates: 1 to 96 letters, digits, `.`, `_`, `-` and `:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnerName(Arc<str>);

/// A text is not the name of an owner.
#[derive(Debug, thiserror::Error)]
#[error("invalid owner name: expected 1 to {} letters, digits, `.`, `_`, `-` or `:`", OwnerName::MAX_LENGTH)]
pub struct InvalidOwner;

impl OwnerName {
    /// Maximum length, in characters.
    pub const MAX_LENGTH: usize = 96;

    /// A name that no other owner has: `kind`, a colon and random digits.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) if the system has no random numbers, or `kind` is not part of a
    /// name.
    pub fn random(kind: &str) -> Result<Self, Error> {
        let name = format!("{kind}:{}", VmId::random()?);
        name.parse().map_err(|invalid: InvalidOwner| Error::internal(invalid.to_string()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OwnerName {
    type Err = InvalidOwner;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        match (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_fine) {
            true => Ok(Self(text.into())),
            false => Err(InvalidOwner),
        }
    }
}

impl fmt::Display for OwnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The VMs and tasks that a client may find. For the caller, all others do not exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Those that it created.
    #[default]
    Own,
    /// All.
    All,
}

/// On whose behalf a call is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Caller {
    /// The user of this host, who may do everything. What is created has no owner.
    #[default]
    Operator,
    /// A client that owns what it creates.
    Client {
        /// Its name.
        name: OwnerName,
        /// What it may find.
        visibility: Visibility,
    },
}

impl Caller {
    /// The owner of what the caller creates.
    pub fn owner(&self) -> Option<&OwnerName> {
        match self {
            Self::Operator => None,
            Self::Client { name, .. } => Some(name),
        }
    }

    /// The caller may find everything.
    pub fn finds_all(&self) -> bool {
        !matches!(self, Self::Client { visibility: Visibility::Own, .. })
    }

    /// The caller may find what has this owner.
    pub fn finds(&self, owner: Option<&str>) -> bool {
        self.finds_all() || self.owner().map(OwnerName::as_str) == owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, visibility: Visibility) -> Caller {
        Caller::Client { name: name.parse().unwrap(), visibility }
    }

    #[test]
    fn a_client_finds_its_own_and_an_operator_everything() {
        let own = client("a", Visibility::Own);
        assert!(own.finds(Some("a")));
        assert!(!own.finds(Some("b")) && !own.finds(None));
        for caller in [client("a", Visibility::All), Caller::Operator] {
            assert!(caller.finds(Some("a")) && caller.finds(Some("b")) && caller.finds(None));
        }
        assert_eq!(client("a", Visibility::All).owner().unwrap().as_str(), "a");
        assert_eq!(Caller::Operator.owner(), None);
    }

    #[test]
    fn a_name_is_plain_text() {
        for name in ["a", "token:ci-1", &"x".repeat(96)] {
            assert_eq!(name.parse::<OwnerName>().unwrap().as_str(), name);
        }
        for name in ["", "a b", "a\n", "é", &"x".repeat(97)] {
            assert!(name.parse::<OwnerName>().is_err(), "{name:?}");
        }
    }
}
