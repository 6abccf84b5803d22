//! Names and labels of tasks, and their limits.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, TtlFrom};

/// Maximum length of a name or of the key of a label, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// Maximum length of the value of a label, in bytes.
const MAX_LABEL_VALUE_BYTES: usize = 255;
/// Maximum number of labels of one task.
pub const MAX_LABELS: usize = 32;
/// Minimum number of digits by which a task can be addressed instead of by its whole id.
pub const MIN_PREFIX_DIGITS: usize = 3;

/// Name and labels of a task to create.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Naming {
    /// Name, usable wherever the id is. No other task of the same owner may have it. 1 to 63 letters, digits, `-`, `_` and `.`; begins with a
    /// letter or digit and is not hexadecimal, as an id is.
    pub name: Option<String>,
    /// Labels, at most 32: keys like names, and values of at most 255 bytes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Naming {
    /// Checks the name and the labels.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(&self) -> Result<(), Error> {
        self.name.as_deref().map_or(Ok(()), check_name)?;
        check_labels(&self.labels)
    }
}

/// Which tasks to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFilter {
    /// Only tasks with all of these labels, at most 32, each as `KEY=VALUE`, or as `KEY` for any value.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub labels: Vec<String>,
}

impl TaskFilter {
    /// Checks the labels to look for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(&self) -> Result<(), Error> {
        if self.labels.len() > MAX_LABELS {
            let message = format!("too many labels: a task has at most {MAX_LABELS}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        self.labels.iter().try_for_each(|wanted| match wanted.split_once('=') {
            Some((key, value)) => check_label(key, value),
            None => check_label(wanted, ""),
        })
    }

    /// Returns whether a task with these labels is to be listed.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|label| label == value),
            None => labels.contains_key(wanted),
        })
    }
}

/// Changes to a task. What is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskChanges {
    /// New name; an empty text takes the name away.
    pub name: Option<String>,
    /// Labels to add or replace.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keys of labels to remove; one that the task does not have is ignored.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub remove_labels: Vec<String>,
    /// When lifetimes begin from now on.
    pub ttl_from: Option<TtlFrom>,
}

impl TaskChanges {
    /// Checks the name and the labels.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(&self) -> Result<(), Error> {
        self.name.as_deref().filter(|name| !name.is_empty()).map_or(Ok(()), check_name)?;
        check_labels(&self.labels)
    }
}

/// Checks the labels that a task would have.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.len() > MAX_LABELS {
        let message = format!("too many labels: a task has at most {MAX_LABELS}");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    labels.iter().try_for_each(|(key, value)| check_label(key, value))
}

fn check_label(key: &str, value: &str) -> Result<(), Error> {
    if !has_form_of_name(key) {
        let message = format!(
            "invalid label '{}': expected a key of 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.' that begins \
             with a letter or digit",
            shown(key)
        );
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    if value.len() > MAX_LABEL_VALUE_BYTES || value.contains(char::is_control) {
        let message = format!(
            "invalid value of the label '{key}': expected at most {MAX_LABEL_VALUE_BYTES} bytes without control characters"
        );
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// Checks a name of something inside a task.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub(crate) fn check_name_of(what: &str, name: &str) -> Result<(), Error> {
    if has_form_of_name(name) {
        return Ok(());
    }
    let message = format!(
        "invalid {what} '{}': expected 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', beginning with a letter \
         or digit",
        shown(name)
    );
    Err(Error::new(ErrorKind::InvalidInput, message))
}

fn check_name(name: &str) -> Result<(), Error> {
    let expected = match has_form_of_name(name) {
        true if !is_hexadecimal(name) => return Ok(()),
        true => "a character other than 0-9 and a-f, because ids have only these".to_owned(),
        false => format!(
            "1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', beginning with a letter or digit"
        ),
    };
    let message = format!("invalid name '{}': expected {expected}", shown(name));
    Err(Error::new(ErrorKind::InvalidInput, message))
}

fn has_form_of_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Returns whether `text` could be an id or the first digits of one, whatever its length.
fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn shown(text: &str) -> String {
    text.escape_debug().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::VmId;

    fn named(name: &str) -> Result<(), Error> {
        Naming { name: Some(name.to_owned()), ..Naming::default() }.check()
    }

    #[test]
    fn names_are_plain_words_that_are_not_hexadecimal() {
        for name in ["web", "z", "build-2", "a.b_c", "x86", "Web", "0x1f"] {
            named(name).unwrap();
        }
        named(&"n".repeat(63)).unwrap();
        for name in ["", "-web", ".web", "_web", "we b", "a:b", "a/b", "wéb", "web\n", &"n".repeat(64)] {
            let error = named(name).unwrap_err().to_string();
            assert!(error.contains("expected 1 to 63 letters"), "{name:?}: {error}");
        }
        for name in ["de2", "9775b3af1eeb", "CAFE", "1", "0123456789abcdef"] {
            let error = named(name).unwrap_err().to_string();
            assert!(error.ends_with("because ids have only these"), "{name:?}: {error}");
        }
    }

    #[test]
    fn labels_are_bounded() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        check_labels(&one("team", "")).unwrap();
        check_labels(&one("1", &"v".repeat(255))).unwrap();
        check_labels(&one("a.b-c_d", "spaces, = and ä")).unwrap();
        for (key, value) in [
            ("", "x"),
            ("a=b", "x"),
            ("-a", "x"),
            ("a", "x\ny"),
            ("a", &"v".repeat(256)),
            (&"k".repeat(64), "x"),
        ] {
            assert_eq!(check_labels(&one(key, value)).unwrap_err().kind, ErrorKind::InvalidInput, "{key:?}");
        }
        let many = |count: usize| (0..count).map(|n| (format!("k{n}"), String::new())).collect();
        check_labels(&many(32)).unwrap();
        check_labels(&many(33)).unwrap_err();
    }

    #[test]
    fn a_filter_needs_all_of_its_labels() {
        let labels =
            BTreeMap::from([("team".to_owned(), "a=b".to_owned()), ("ci".to_owned(), String::new())]);
        let matches = |wanted: &[&str]| {
            TaskFilter { labels: wanted.iter().map(ToString::to_string).collect() }.matches(&labels)
        };
        for wanted in [&[][..], &["team"], &["team=a=b"], &["ci="], &["ci", "team"]] {
            assert!(matches(wanted), "{wanted:?}");
        }
        for wanted in [&["x"][..], &["team=a"], &["team", "x"], &["ci=1"]] {
            assert!(!matches(wanted), "{wanted:?}");
        }
    }

    #[test]
    fn a_filter_looks_for_labels_that_a_task_can_have() {
        let check = |labels: Vec<String>| TaskFilter { labels }.check();
        check(vec!["team".to_owned(), "team=a=b".to_owned(), "ci=".to_owned()]).unwrap();
        for wanted in ["", "=x", "-a", "a b=c", "a=x\ny"] {
            assert_eq!(
                check(vec![wanted.to_owned()]).unwrap_err().kind,
                ErrorKind::InvalidInput,
                "{wanted:?}"
            );
        }
        check(vec!["a".to_owned(); 33]).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_name_is_an_id_a_prefix_a_flag_or_a_path(name in ".{0,70}") {
            if named(&name).is_ok() {
                prop_assert!(VmId::parse(&name).is_err());
                prop_assert!(!name.starts_with('-') && !name.contains([':', '/', '=']));
                prop_assert!(!name.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
    }
}
