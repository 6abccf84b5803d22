//! Names of entries: `item`, and names below it.

use std::fmt;

use crate::{ArchiveError, MAX_DEPTH, MAX_NAME};

/// The name of the item in every stream.
const ITEM: &[u8] = b"item";

/// A name that stays below the item: no part of it is empty, `.` or `..`, and it is neither too long nor too
/// deep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(Vec<u8>);

impl Name {
    /// The item itself.
    pub(crate) fn item() -> Self {
        Self(ITEM.to_vec())
    }

    /// Checks a name from a stream. That of a directory may have a slash at its end.
    pub(crate) fn parse(bytes: &[u8], is_directory: bool) -> Result<Self, ArchiveError> {
        let bad = |why| Err(ArchiveError::BadName { name: printable(bytes), why });
        let name = if is_directory { bytes.strip_suffix(b"/").unwrap_or(bytes) } else { bytes };
        if name.contains(&0) {
            return bad("has a name with a zero byte");
        }
        if name.starts_with(b"/") {
            return bad("has an absolute name");
        }
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" => return bad("has a name with an empty part"),
                b"." | b".." => return bad("has a name with a `.` or `..` in it"),
                _ => {}
            }
        }
        if name.split(|byte| *byte == b'/').next() != Some(ITEM) {
            return bad("is not part of the item");
        }
        Self(name.to_vec()).within_bounds()
    }

    /// Returns the name of the entry `name` in this directory.
    pub(crate) fn child(&self, name: &[u8]) -> Result<Self, ArchiveError> {
        Self([&self.0, b"/".as_slice(), name].concat()).within_bounds()
    }

    fn within_bounds(self) -> Result<Self, ArchiveError> {
        if self.0.len() > MAX_NAME {
            return Err(ArchiveError::NameTooLong { name: self.to_string() });
        }
        if self.parts().count() >= MAX_DEPTH {
            return Err(ArchiveError::TooDeep { name: self.to_string() });
        }
        Ok(self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The parts below the item: none for the item itself.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').skip(1)
    }

    /// The name of the directory that this is in, and the last part; `None` for the item itself.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..]))
    }

    /// Whether a symlink of this name and target leads to the item or something in it, as long as all other
    /// symlinks there do.
    ///
    /// `..` may only stand at the target's beginning, where it is sure to lead to the directory that the name
    /// says. Behind another symlink it leads to that one's real parent: `a/b/c/up → ../../..` and
    /// `a/b/c/out → up/..` both seem to stay inside.
    pub(crate) fn keeps_inside(&self, target: &[u8]) -> bool {
        if target.starts_with(b"/") {
            return false;
        }
        let mut parts =
            target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
        // The link's own part does not count: its target starts from its directory.
        let mut depth = self.parts().count().checked_sub(1);
        while parts.next_if_eq(&b"..").is_some() {
            depth = depth.and_then(|depth| depth.checked_sub(1));
        }
        depth.is_some() && parts.all(|part| part != b"..")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&printable(&self.0))
    }
}

/// A name to show to people: without terminal control characters or invisible ones, and cut to a bounded length.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 160;
    // The rest would be cut off below.
    let mut text = String::new();
    for chunk in bytes[..bytes.len().min(4 * (MAX_CHARS + 1))].utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                // They are harmless, and `don't` is easier to read than `don\'t`.
                '\'' | '"' => text.push(character),
                _ => text.extend(character.escape_debug()),
            }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_in_the_item_are_names() {
        for name in ["item", "item/a", "item/a b/\u{e4}\n", "item/...", "item/item", "item/.a/..b"] {
            assert_eq!(Name::parse(name.as_bytes(), false).unwrap().as_bytes(), name.as_bytes());
            assert_eq!(Name::parse(format!("{name}/").as_bytes(), true).unwrap().as_bytes(), name.as_bytes());
        }
        let bad = "|/|.|..|/item|//item|items|ite|Item|item/|item//|item//a|item/./a|item/..|item/../b|\
                   item/a/..|./item|../item|item/a/.|item/\0|item\0|\0|etc/passwd|item\\a";
        for name in bad.split('|') {
            let error = Name::parse(name.as_bytes(), false).unwrap_err();
            assert!(matches!(error, ArchiveError::BadName { .. }), "{name:?}: {error}");
        }
        assert!(matches!(Name::parse(b"item//", true), Err(ArchiveError::BadName { .. })));
        assert!(matches!(Name::parse(b"/", true), Err(ArchiveError::BadName { .. })));
    }

    #[test]
    fn names_are_bounded() {
        let name = |length: usize| [b"item/".as_slice(), &vec![b'x'; length - 5]].concat();
        assert!(Name::parse(&name(MAX_NAME), false).is_ok());
        assert!(matches!(Name::parse(&name(MAX_NAME + 1), false), Err(ArchiveError::NameTooLong { .. })));
        let mut name = Name::item();
        for _ in 1..MAX_DEPTH {
            name = name.child(b"d").unwrap();
        }
        assert!(Name::parse(name.as_bytes(), true).is_ok());
        assert!(matches!(name.child(b"d"), Err(ArchiveError::TooDeep { .. })));
    }

    #[test]
    fn links_lead_nowhere_but_into_the_item() {
        let inside = |name: &str, target: &str| {
            Name::parse(name.as_bytes(), false).unwrap().keeps_inside(target.as_bytes())
        };
        for target in ["b", "b/c", ".", "./b", "b/", "b//c", "...", "..b"] {
            assert!(inside("item/a", target), "{target}");
        }
        for target in ["..", "../item", "../x", "/", "/etc", "./..", "b/..", "b/../c", "b/../../c"] {
            assert!(!inside("item/a", target), "{target}");
        }
        assert!(inside("item/a/b/c", "../.."));
        assert!(inside("item/a/b/c", ".././../x/y"));
        assert!(!inside("item/a/b/c", "../../.."));
        assert!(!inside("item/a/b/c", "../../../item"));
        assert!(!inside("item/a/b/out", "up/.."), "up may be a symlink to the item itself");
        assert!(!inside("item", "x"));
    }

    #[test]
    fn printable_names_are_harmless_and_short() {
        assert_eq!(printable("it's \u{e4} \"name\"".as_bytes()), "it's \u{e4} \"name\"");
        assert_eq!(printable(b"\x1b[2J\n\xff\\"), "\\u{1b}[2J\\n\\xff\\\\");
        assert_eq!(printable("\u{202e}\u{9b}".as_bytes()), "\\u{202e}\\u{9b}");
        for long in ["a", "\u{1f525}", "\u{1b}"] {
            let text = printable(long.repeat(5000).as_bytes());
            assert!(text.chars().count() == 161 && text.ends_with('\u{2026}'), "{text}");
        }
    }
}
