//! Bounds on the values that a guest sends, applied when they are decoded.
//!
//! A guest may send anything. Numbers and texts that are only shown or stored are clamped, so that an absurd value affects
//! nothing else; values that identify the guest are rejected instead. No number that passes here overflows the signed
//! 64-bit integers of the registry, even after a few of them were added.

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

/// Largest count or duration that is accepted from a guest: 2^53 − 1, the largest integer that every JSON reader
/// holds exactly.
pub const MAX_COUNT: u64 = (1 << 53) - 1;
/// Longest text that is accepted from a guest, in bytes of UTF-8: twice the longest path.
pub const MAX_TEXT_BYTES: usize = 8 * 1024;
/// Longest version or kernel release that is accepted from a guest, in bytes: what `uname` can hold.
pub const MAX_LABEL_BYTES: usize = 64;
/// Maximum number of example names in a report.
pub const MAX_EXAMPLES: usize = 5;
/// Longest example name in a report, in bytes of UTF-8.
pub const MAX_EXAMPLE_BYTES: usize = 1024;

/// Largest `errno` that Linux returns to user space.
const MAX_ERRNO: i32 = 4095;
/// Last real-time signal.
const MAX_SIGNAL: i32 = 64;

/// A count or a duration, at most [`MAX_COUNT`].
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(u64::deserialize(deserializer)?.min(MAX_COUNT))
}

/// An exit code, 0 to 255.
pub(crate) fn exit_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    Ok(i32::deserialize(deserializer)?.clamp(0, 255))
}

/// The number of a signal, 1 to 64.
pub(crate) fn signal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    Ok(i32::deserialize(deserializer)?.clamp(1, MAX_SIGNAL))
}

/// An `errno`; what cannot be one counts as absent.
pub(crate) fn errno<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|errno| (1..=MAX_ERRNO).contains(errno)))
}

/// A text for people, at most [`MAX_TEXT_BYTES`]. A longer one is cut and ends with `…`.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(cut(String::deserialize(deserializer)?, MAX_TEXT_BYTES))
}

/// A text for people that may be absent.
pub(crate) fn optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(|text| cut(text, MAX_TEXT_BYTES)))
}

/// Permissions: the lower twelve bits.
pub(crate) fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(u32::deserialize(deserializer)? & 0o7777)
}

/// A time in milliseconds since the epoch, at most [`MAX_COUNT`] from it.
pub(crate) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let limit = MAX_COUNT.cast_signed();
    Ok(i64::deserialize(deserializer)?.clamp(-limit, limit))
}

/// A version: printable ASCII, at most [`MAX_LABEL_BYTES`].
pub(crate) fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() <= MAX_LABEL_BYTES && text.bytes().all(is_printable) {
        Ok(text)
    } else {
        Err(D::Error::custom(format_args!(
            "invalid version: expected at most {MAX_LABEL_BYTES} printable ASCII characters"
        )))
    }
}

/// Turns any text into one that the other end accepts as a version or kernel release.
pub fn to_label(text: &str) -> String {
    text.chars()
        .take(MAX_LABEL_BYTES)
        .map(|character| match u8::try_from(character) {
            Ok(byte) if is_printable(byte) => character,
            _ => '?',
        })
        .collect()
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// The first [`MAX_EXAMPLES`] names, each at most [`MAX_EXAMPLE_BYTES`].
pub(crate) fn examples<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Examples;

    impl<'de> Visitor<'de> for Examples {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a list of names")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Vec<String>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < MAX_EXAMPLES {
                match names.next_element()? {
                    Some(name) => kept.push(cut(name, MAX_EXAMPLE_BYTES)),
                    None => return Ok(kept),
                }
            }
            while names.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(Examples)
}

/// Cuts a text to `max` bytes, the `…` at its end included.
fn cut(mut text: String, max: usize) -> String {
    const ELLIPSIS: char = '…';
    if text.len() > max {
        let mut end = max.saturating_sub(ELLIPSIS.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push(ELLIPSIS);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cut_text_is_within_its_bound_and_is_not_cut_again(text in "\\PC{0,40}", max in 3usize..60) {
            let shorter = cut(text.clone(), max);
            prop_assert!(shorter.len() <= max);
            prop_assert_eq!(cut(shorter.clone(), max), shorter.clone());
            prop_assert!(text.len() > max || shorter == text);
        }

        #[test]
        fn every_text_makes_a_label(text in any::<String>()) {
            let made = to_label(&text);
            let json = serde_json::Value::String(made.clone());
            prop_assert_eq!(label(json).unwrap(), made);
        }
    }
}
