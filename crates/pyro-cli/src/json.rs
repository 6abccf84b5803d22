//! The JSON every `--json` prints: keys sorted, pure ASCII, one newline at the end; a document with two-space indent, or a line.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Returns the document as text.
pub(crate) fn document<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    written(value, AsciiPretty(PrettyFormatter::new()))
}

/// Returns the value as one line.
pub(crate) fn line<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    written(value, AsciiCompact)
}

fn written<T: Serialize>(value: &T, formatter: impl Formatter) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    // Already sorted unless some crate in the build turns on serde_json's `preserve_order`.
    value.sort_all_objects();
    let mut bytes = Vec::with_capacity(1024);
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes a part of a string with everything but printable ASCII escaped.
fn write_ascii<W: ?Sized + io::Write>(out: &mut W, fragment: &str) -> io::Result<()> {
    let mut plain_from = 0;
    for (at, character) in fragment.char_indices() {
        // serde_json has escaped the control characters below space; DEL is the one it leaves.
        if character.is_ascii() && character != '\u{7f}' {
            continue;
        }
        out.write_all(&fragment.as_bytes()[plain_from..at])?;
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}")?;
        }
        plain_from = at + character.len_utf8();
    }
    out.write_all(&fragment.as_bytes()[plain_from..])
}

/// Writes as [`CompactFormatter`](serde_json::ser::CompactFormatter) does, with everything but printable ASCII escaped.
struct AsciiCompact;

impl Formatter for AsciiCompact {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_ascii(out, fragment)
    }
}

/// [`PrettyFormatter`], with everything but printable ASCII escaped.
struct AsciiPretty(PrettyFormatter<'static>);

impl Formatter for AsciiPretty {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_ascii(out, fragment)
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn text(value: &Value) -> String {
        String::from_utf8(document(value).unwrap()).unwrap()
    }

    #[test]
    fn keys_are_sorted_indented_and_ascii() {
        let value =
            json!({"b": ["ä", "😀", "\u{7f}\n\"\\"], "a": {}, "c": [], "Z": null, "d": {"y": 1, "x": -2.5}});
        insta::assert_snapshot!(text(&value), @r#"
        {
          "Z": null,
          "a": {},
          "b": [
            "\u00e4",
            "\ud83d\ude00",
            "\u007f\n\"\\"
          ],
          "c": [],
          "d": {
            "x": -2.5,
            "y": 1
          }
        }
        "#);
        assert!(text(&value).ends_with("}\n"));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            proptest::collection::vec(any::<char>(), 0..8).prop_map(|c| Value::from(String::from_iter(c))),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn parsing_gives_the_value_back_and_all_bytes_are_ascii(value in any_value()) {
            let bytes = document(&value).unwrap();
            prop_assert!(bytes.iter().all(|byte| *byte == b'\n' || (b' '..=b'~').contains(byte)));
            prop_assert_eq!(&serde_json::from_slice::<Value>(&bytes).unwrap(), &value);
            let bytes = line(&value).unwrap();
            let (end, rest) = bytes.split_last().unwrap();
            prop_assert!(*end == b'\n' && rest.iter().all(|byte| (b' '..=b'~').contains(byte)));
            prop_assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), value);
        }
    }
}
