//! The modes of a terminal that differ from those that it had, as the escape sequences that it was shown say.
//!
//! A shell that goes on in its VM, or ends with it, does not put them back itself.

use std::collections::BTreeSet;

/// Private modes that are off unless a program sets them: application keys, reverse colours, origin, mouse, focus reports, the
/// alternate screen, the keypad, pasting, and synchronized output.
const USUALLY_OFF: [u16; 19] =
    [1, 5, 6, 9, 47, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026];
/// Private modes that are on unless a program resets them: wrapping, and a visible cursor.
const USUALLY_ON: [u16; 2] = [7, 25];
const ALTERNATE_SCREENS: [u16; 3] = [47, 1047, 1049];
const ORIGIN: u16 = 6;
/// Maximum length of the parameters of a sequence. Longer ones are ignored.
const MAX_PARAMETERS: usize = 64;
/// Maximum length of what says how text looks. Longer than a program needs.
const MAX_STYLE: usize = 256;
/// Maximum number of key protocols in use at the same time.
const MAX_KEY_PROTOCOLS: usize = 9;

/// Follows what a terminal is shown.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    place: Place,
    /// Parameters and intermediate characters of the sequence that has begun.
    parameters: Vec<u8>,
    changed: Changed,
}

/// Where in a sequence the output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    /// After an escape character.
    Escape,
    /// After `ESC [`.
    Control,
    /// In a title or another string.
    Title,
}

/// What differs from the usual.
#[derive(Debug, Default)]
struct Changed {
    /// Private modes.
    modes: BTreeSet<u16>,
    inserts: bool,
    has_keypad: bool,
    /// Parameters of the sequence that sets the rows that scroll.
    region: Option<String>,
    /// The character set, as the last character of the sequence that chooses it.
    character_set: Option<char>,
    /// The other character set is in use.
    is_shifted: bool,
    /// Parameters of the sequences that say how text looks.
    style: String,
    cursor_shape: u16,
    modified_keys: u16,
    /// The flags of each use of the key protocol, from the outermost.
    key_protocols: Vec<u16>,
}

impl Modes {
    /// Takes what the terminal is shown next.
    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.place = match (self.place, *byte) {
                (_, 0x1b) => {
                    self.parameters.clear();
                    Place::Escape
                }
                (_, 0x18 | 0x1a) | (Place::Title, 0x07) => Place::Text,
                (Place::Escape, b'[') if self.parameters.is_empty() => Place::Control,
                (Place::Escape, b']' | b'P' | b'X' | b'^' | b'_') if self.parameters.is_empty() => {
                    Place::Title
                }
                (Place::Escape, 0x20..=0x2f) | (Place::Control, 0x20..=0x3f) => {
                    // One more than is allowed shows that it is too long.
                    if self.parameters.len() <= MAX_PARAMETERS {
                        self.parameters.push(*byte);
                    }
                    self.place
                }
                (Place::Escape, 0x30..=0x7e) => {
                    self.changed.escape(&self.parameters, *byte);
                    Place::Text
                }
                (Place::Control, 0x40..=0x7e) => {
                    if self.parameters.len() <= MAX_PARAMETERS {
                        self.changed.control(&String::from_utf8_lossy(&self.parameters), *byte);
                    }
                    Place::Text
                }
                (Place::Text, 0x0e | 0x0f) => {
                    self.changed.is_shifted = *byte == 0x0e;
                    Place::Text
                }
                (place, _) => place,
            };
        }
    }

    /// Returns what puts the terminal back. Empty: nothing is changed.
    pub(crate) fn put_back(&self) -> String {
        let changed = &self.changed;
        // Ends a sequence that was cut off.
        let mut text = if self.place == Place::Text { String::new() } else { "\x1b\\".to_owned() };
        for mode in self.changed.modes_in_order() {
            text.push_str(&format!("\x1b[?{mode}{}", if is_usual(mode) { 'h' } else { 'l' }));
        }
        // Both move the cursor to the first row.
        if changed.modes.contains(&ORIGIN) {
            text.push_str("\x1b[r\x1b[999;1H");
        } else if changed.region.is_some() {
            text.push_str("\x1b7\x1b[r\x1b8");
        }
        for (is_changed, sequence) in [
            (changed.inserts, "\x1b[4l"),
            (changed.has_keypad, "\x1b>"),
            (changed.is_shifted || changed.character_set.is_some(), "\x0f\x1b(B"),
            (changed.cursor_shape > 0, "\x1b[0 q"),
            (changed.modified_keys > 0, "\x1b[>4;0m"),
            (!changed.key_protocols.is_empty(), "\x1b[<9u\x1b[=0u"),
            (!changed.style.is_empty(), "\x1b[0m"),
        ] {
            if is_changed {
                text.push_str(sequence);
            }
        }
        text
    }

    /// Returns what changes everything again after [`Self::put_back`], except for what is drawn.
    pub(crate) fn take_up(&self) -> String {
        let changed = &self.changed;
        let mut text = String::new();
        for mode in changed.modes_in_order() {
            text.push_str(&format!("\x1b[?{mode}{}", if is_usual(mode) { 'l' } else { 'h' }));
        }
        if let Some(region) = &changed.region {
            text.push_str(&format!("\x1b7\x1b[{region}r\x1b8"));
        }
        if let Some(set) = changed.character_set {
            text.push_str(&format!("\x1b({set}"));
        }
        for (is_changed, sequence) in
            [(changed.inserts, "\x1b[4h"), (changed.has_keypad, "\x1b="), (changed.is_shifted, "\x0e")]
        {
            if is_changed {
                text.push_str(sequence);
            }
        }
        if changed.cursor_shape > 0 {
            text.push_str(&format!("\x1b[{} q", changed.cursor_shape));
        }
        if changed.modified_keys > 0 {
            text.push_str(&format!("\x1b[>4;{}m", changed.modified_keys));
        }
        for flags in &changed.key_protocols {
            text.push_str(&format!("\x1b[>{flags}u"));
        }
        if !changed.style.is_empty() {
            text.push_str(&format!("\x1b[{}m", changed.style));
        }
        text
    }
}

/// Whether a private mode is on unless a program resets it.
fn is_usual(mode: u16) -> bool {
    USUALLY_ON.contains(&mode)
}

/// Whether text has colours or another style after these parameters of a sequence.
fn has_style_after(before: bool, numbers: &[u16]) -> bool {
    let mut numbers = numbers.iter();
    let mut has_style = before;
    while let Some(number) = numbers.next() {
        match number {
            0 => has_style = false,
            38 | 48 | 58 => {
                has_style = true;
                // The parameters of a colour.
                let more = match numbers.next() {
                    Some(2) => 3,
                    Some(5) => 1,
                    _ => 0,
                };
                numbers.by_ref().take(more).for_each(drop);
            }
            // Each ends one kind of style.
            21..=29 | 39 | 49 | 59 => {}
            _ => has_style = true,
        }
    }
    has_style
}

impl Changed {
    /// The private modes: the alternate screen first, since the others are for the usual one.
    fn modes_in_order(&self) -> impl Iterator<Item = u16> {
        let of_kind = |is_alternate: bool| {
            self.modes.iter().copied().filter(move |mode| ALTERNATE_SCREENS.contains(mode) == is_alternate)
        };
        of_kind(true).chain(of_kind(false))
    }

    fn escape(&mut self, intermediates: &[u8], action: u8) {
        match (intermediates, action) {
            ([], b'=') => self.has_keypad = true,
            ([], b'>') => self.has_keypad = false,
            ([], b'c') => *self = Self::default(),
            ([b'('], set) => self.character_set = (set != b'B').then_some(set.into()),
            _ => {}
        }
    }

    fn control(&mut self, parameters: &str, action: u8) {
        let (kind, numbers) = match parameters.split_at_checked(1) {
            Some((kind @ ("?" | ">" | "<" | "="), numbers)) => (kind, numbers),
            _ => ("", parameters),
        };
        let numbers: Vec<u16> = numbers
            .split(|c: char| !c.is_ascii_digit())
            .map(|number| number.parse().unwrap_or_default())
            .collect();
        match (kind, action) {
            ("?", b'h' | b'l') => numbers.into_iter().for_each(|mode| self.set(mode, action == b'h')),
            ("", b'h' | b'l') if numbers.contains(&4) => self.inserts = action == b'h',
            ("", b'r') => self.region = numbers.iter().any(|row| *row > 0).then(|| parameters.to_owned()),
            ("", b'q') if parameters.ends_with(' ') => self.cursor_shape = numbers[0],
            ("", b'm') => self.set_style(parameters, &numbers),
            (">", b'm') if numbers[0] == 4 => {
                self.modified_keys = numbers.get(1).copied().unwrap_or_default()
            }
            (">", b'u') if self.key_protocols.len() < MAX_KEY_PROTOCOLS => {
                self.key_protocols.push(numbers[0])
            }
            ("=", b'u') => {
                self.key_protocols.pop();
                self.key_protocols.push(numbers[0]);
            }
            ("<", b'u') => {
                let left = self.key_protocols.len().saturating_sub(numbers[0].max(1).into());
                self.key_protocols.truncate(left);
            }
            _ => {}
        }
    }

    fn set_style(&mut self, parameters: &str, numbers: &[u16]) {
        let has_style = has_style_after(!self.style.is_empty(), numbers);
        if !has_style || numbers[0] == 0 || self.style.len() + parameters.len() >= MAX_STYLE {
            self.style.clear();
        }
        if has_style {
            let separator = if self.style.is_empty() { "" } else { ";" };
            self.style.push_str(separator);
            self.style.push_str(parameters);
        }
    }

    fn set(&mut self, mode: u16, is_on: bool) {
        let is_changed = match is_on {
            true => USUALLY_OFF.contains(&mode),
            false => USUALLY_ON.contains(&mode),
        };
        match is_changed {
            true => self.modes.insert(mode),
            false => self.modes.remove(&mode),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What puts a terminal back that was shown this, in pieces of any size.
    fn put_back(shown: &str) -> String {
        let mut whole = Modes::default();
        whole.follow(shown.as_bytes());
        let text = whole.put_back();
        let mut cut = Modes::default();
        shown.as_bytes().chunks(1).for_each(|piece| cut.follow(piece));
        assert_eq!(cut.put_back(), text, "{shown:?}");
        text
    }

    #[test]
    fn what_programs_put_back_themselves_is_left_alone() {
        for shown in [
            "$ ls\r\n\x1b[1;32mgreen\x1b[0m\r\n",
            "\x1b[?2004h$ \x1b[?2004l\r\n",
            "\x1b[?1049h\x1b[?25l\x1b[2;9r\x1b[?25h\x1b[r\x1b[?1049l",
            "\x1b[?1h\x1b=\x1b[>4;2m\x1b[>4;0m\x1b>\x1b[?1l\x1b(0\x1b(B\x1b[4 q\x1b[0 q",
            "\x1b]0;\x1b[title\x07\x1b[?7h\x1b[4l",
            "\x1b[?1049h\x1bc",
            "\x1b]0;[?1049h\x07",
            "\x1b[1;38;5;0;48;2;0;0;0mcolours\x1b[1;0m\x1b[31m\x1b[m",
            "\x1b[>1u\x1b[>5u\x1b[<u\x1b[<1u\x0e\x0f",
        ] {
            assert_eq!(put_back(shown), "", "{shown:?}");
        }
    }

    #[test]
    fn everything_that_is_left_changed_is_put_back() {
        let vim = "\x1b[?1049h\x1b[>4;2m\x1b[?1h\x1b=\x1b[?2004h\x1b[?1004h\x1b[1;33r\x1b[?25l\x1b[2 q";
        assert_eq!(
            put_back(vim),
            "\x1b[?1049l\x1b[?1l\x1b[?25h\x1b[?1004l\x1b[?2004l\x1b7\x1b[r\x1b8\x1b>\x1b[0 q\x1b[>4;0m"
        );
        for (shown, back) in [
            ("\x1b[?1000;1006h", "\x1b[?1000l\x1b[?1006l"),
            ("\x1b[?7l\x1b[4h", "\x1b[?7h\x1b[4l"),
            ("\x1b[?6h\x1b[2;3r", "\x1b[?6l\x1b[r\x1b[999;1H"),
            ("\x1b(0\x0e", "\x0f\x1b(B"),
            ("\x1b[>1u", "\x1b[<9u\x1b[=0u"),
            ("\x1b[0;38;5;0m", "\x1b[0m"),
            ("\x1b[1m\x1b[39m", "\x1b[0m"),
            ("\x1b[?1049", "\x1b\\"),
            // A control character in a sequence, and what does not end.
            ("\x1b[?10\r49h\x1b[?25l\x1b]0;endless", "\x1b\\\x1b[?1049l\x1b[?25h"),
        ] {
            assert_eq!(put_back(shown), back, "{shown:?}");
        }
        let long = format!("\x1b[?{}1049h", "0;".repeat(MAX_PARAMETERS));
        assert_eq!(put_back(&long), "");
    }

    #[test]
    fn what_was_put_back_for_a_while_is_changed_again() {
        let mut modes = Modes::default();
        modes.follow(b"\x1b[?1h\x1b=\x1b[?25l\x1b[?1049h\x1b[31m\x1b[1;38;5;9m\x1b[2;9r\x1b[4h\x1b[6 q");
        modes.follow(b"\x1b(0\x0e\x1b[>4;2m\x1b[>1u\x1b[>5u");
        let back = modes.put_back();
        assert_eq!(
            back,
            "\x1b[?1049l\x1b[?1l\x1b[?25h\x1b7\x1b[r\x1b8\x1b[4l\x1b>\x0f\x1b(B\x1b[0 q\x1b[>4;0m\
             \x1b[<9u\x1b[=0u\x1b[0m"
        );
        let again = modes.take_up();
        assert_eq!(
            again,
            "\x1b[?1049h\x1b[?1h\x1b[?25l\x1b7\x1b[2;9r\x1b8\x1b(0\x1b[4h\x1b=\x0e\x1b[6 q\x1b[>4;2m\
             \x1b[>1u\x1b[>5u\x1b[31;1;38;5;9m"
        );
        assert_eq!(modes.put_back(), back);
        // Following that leads to the same.
        let mut other = Modes::default();
        other.follow(again.as_bytes());
        assert_eq!((other.put_back(), other.take_up()), (back, again));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut modes = Modes::default();
        for _ in 0..10_000 {
            modes.follow(b"\x1b[1;38;5;9m\x1b[>1u\x1b[2;9r");
        }
        assert!(modes.take_up().len() < 2 * MAX_STYLE, "{:?}", modes.take_up());
    }
}
