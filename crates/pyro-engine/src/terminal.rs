//! What a terminal wrote, as text: hostile bytes of a guest, in memory that their number and the size of the terminal bound.

mod plain;

use std::num::NonZeroU16;

use pyro_api::TerminalSize;

pub(crate) use self::plain::plain;

/// Maximum length of an escape sequence that may be incomplete, in bytes.
const MAX_SEQUENCE_BYTES: usize = 4096;
/// Maximum number of cells that the emulator writes for a screen: well below a second of work.
const MAX_CELL_WRITES: usize = 1 << 27;

/// Returns how many of the last bytes are the beginning of a character of UTF-8.
pub(crate) fn incomplete_character(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let needed = match bytes[bytes.len() - length] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 0,
        };
        return if needed > length { length } else { 0 };
    }
    0
}

/// Returns how many of the last bytes are the beginning of an escape sequence. Those that are longer than any in use do not count.
pub(crate) fn incomplete_sequence(bytes: &[u8]) -> usize {
    const ESCAPE: u8 = 0x1b;
    const BELL: u8 = 0x07;
    let from = bytes.len().saturating_sub(MAX_SEQUENCE_BYTES);
    let Some(at) = bytes[from..].iter().rposition(|byte| *byte == ESCAPE) else { return 0 };
    let sequence = &bytes[from + at..];
    let is_complete = match sequence.get(1) {
        None => false,
        Some(b'[') => sequence[2..].iter().any(|byte| !(0x20..=0x3f).contains(byte)),
        // A string ends with a bell, or with another escape, which would be the last one.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => sequence.contains(&BELL),
        Some(0x20..=0x2f) => sequence[1..].iter().any(|byte| !(0x20..=0x2f).contains(byte)),
        Some(_) => true,
    };
    if is_complete { 0 } else { sequence.len() }
}

/// Returns the rows of the screen after a terminal of this size has written `bytes`.
pub(crate) fn screen(bytes: &[u8], size: TerminalSize) -> String {
    let parser = emulated(bytes, size);
    let mut text = String::new();
    for row in parser.screen().rows(0, size.columns) {
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}

/// Returns what brings another terminal of this size into the state of one that has written `bytes`.
pub(crate) fn state(bytes: &[u8], size: TerminalSize) -> String {
    emulated(bytes, size).screen().state_formatted()
}

fn emulated(bytes: &[u8], TerminalSize { columns, rows }: TerminalSize) -> vt100::Parser {
    let side = |side| NonZeroU16::new(side).unwrap_or(NonZeroU16::MIN);
    let mut parser = vt100::Parser::new(side(rows), side(columns), 0);
    parser.process(affordable(bytes, TerminalSize { columns, rows }));
    parser
}

/// Returns the last of the bytes that the emulator can process within [`MAX_CELL_WRITES`]. Only a program that erases or scrolls
/// the screen all the time reaches that.
fn affordable(bytes: &[u8], TerminalSize { columns, rows }: TerminalSize) -> &[u8] {
    let (row, screen) = (usize::from(columns), usize::from(columns) * usize::from(rows));
    let mut left = MAX_CELL_WRITES;
    for (at, byte) in bytes.iter().enumerate().rev() {
        let cost = match byte {
            b'\n' | 0x0b | 0x0c => row + usize::from(rows),
            0x1b => match sequence_cost(&bytes[at + 1..]) {
                Cost::Cell => 1,
                Cost::Row => row + usize::from(rows),
                Cost::Screen => screen,
                Cost::Repeated => usize::from(u16::MAX) + screen,
            },
            _ => 1,
        };
        match left.checked_sub(cost) {
            Some(rest) => left = rest,
            None => return &bytes[at + 1..],
        }
    }
    bytes
}

/// How many cells an escape sequence writes, at most.
enum Cost {
    Cell,
    Row,
    Screen,
    /// As many as its parameter says.
    Repeated,
}

fn sequence_cost(after_escape: &[u8]) -> Cost {
    match after_escape {
        [b'[', rest @ ..] => {
            let end = rest.iter().take(MAX_SEQUENCE_BYTES).position(|byte| (0x40..=0x7e).contains(byte));
            let Some(end) = end else { return Cost::Repeated };
            match rest[end] {
                b'm' | b'A'..=b'H' | b'd' | b'f' | b'n' | b'c' | b'q' | b'u' => Cost::Cell,
                b'K' | b'X' | b'P' | b'@' => Cost::Row,
                // Of the modes, only the alternate screen has cells.
                b'h' | b'l' if !rest[..end].contains(&b'4') => Cost::Cell,
                b'b' => Cost::Repeated,
                _ => Cost::Screen,
            }
        }
        [b'c', ..] => Cost::Screen,
        [b'D' | b'E' | b'M', ..] => Cost::Row,
        _ => Cost::Cell,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: TerminalSize = TerminalSize { columns: 20, rows: 4 };

    #[test]
    fn a_character_that_is_not_complete_is_found() {
        for (bytes, held) in [
            ("a€".as_bytes(), 0),
            (&"a€".as_bytes()[..3], 2),
            (&"😀".as_bytes()[..3], 3),
            (b"a\xc3", 1),
            (b"\x80\x80\x80\x80", 0),
            (b"\xff", 0),
            (b"", 0),
        ] {
            assert_eq!(incomplete_character(bytes), held, "{bytes:?}");
        }
    }

    #[test]
    fn a_sequence_that_is_not_complete_is_found() {
        for (bytes, held) in [
            ("text", 0),
            ("a\x1b", 1),
            ("a\x1b[31", 4),
            ("a\x1b[31mb", 0),
            ("\x1b]0;title", 9),
            ("\x1b]0;title\x07", 0),
            ("\x1b]0;title\x1b\\", 0),
            ("\x1b(", 2),
            ("\x1b(B", 0),
            ("\x1bM", 0),
        ] {
            assert_eq!(incomplete_sequence(bytes.as_bytes()), held, "{bytes:?}");
        }
        let endless = format!("\x1b]{}", "x".repeat(2 * MAX_SEQUENCE_BYTES));
        assert_eq!(incomplete_sequence(endless.as_bytes()), 0);
    }

    #[test]
    fn a_screen_has_its_rows_as_they_are_now() {
        let bytes = b"one\r\ntwo\r\n\x1b[1;1HONE\x1b[4;5Hlast\x1b[31m!";
        assert_eq!(screen(bytes, SIZE), "ONE\ntwo\n\n    last!");
        let copy = state(bytes, SIZE);
        assert_eq!(screen(copy.as_bytes(), SIZE), screen(bytes, SIZE));
    }

    /// What costs the emulator much, as often as a scrollback has space for it, on the largest terminal.
    #[test]
    fn a_screen_costs_little_whatever_a_guest_writes() {
        let size = TerminalSize { columns: 1000, rows: 1000 };
        let cells = 1_000_000;
        for (sequence, cost) in [
            ("\x1b[2J", cells),
            ("\x1b[65535b", cells),
            ("\x1b[?1049h", cells),
            ("\x1b[999;1;1;1;1;1L", cells),
            ("\x1bc", cells),
            ("\x1bM", 1000),
            ("\n", 1000),
        ] {
            let bytes = sequence.repeat((1 << 20) / sequence.len());
            let count = affordable(bytes.as_bytes(), size).len() / sequence.len();
            assert!((1..=MAX_CELL_WRITES / cost).contains(&count), "{sequence:?}: {count}");
        }
        let typical = "\x1b[1;32mname\x1b[0m\x1b[K\r\n\x1b[?25l".repeat(20_000);
        let all = affordable(typical.as_bytes(), TerminalSize::default());
        assert_eq!(all.len(), typical.len());
    }

    /// What costs much in a line without end.
    #[test]
    fn a_line_costs_little_whatever_a_guest_writes() {
        for sequence in ["\x1b[P", "\x1b[@", "\x1b[1K", "\x1b[X", "\x08\u{301}"] {
            let bytes = "x".repeat(500_000) + "\x1b[65535A" + &sequence.repeat(100_000);
            let began = std::time::Instant::now();
            plain(&[], bytes.as_bytes(), 1000);
            let took = began.elapsed();
            assert!(took.as_secs() < 20, "{sequence:?}: {took:?}");
        }
    }

    /// Pieces of terminal output, cut and combined at random.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            ("\u{1b}\\[[?>]?[0-9;:]{0,12}[@-~]").prop_map(String::into_bytes),
            ("\u{1b}[ -/]{0,2}[0-~]").prop_map(String::into_bytes),
            ("\u{1b}[\\]PX^_][0-9;a-z]{0,20}\u{7}?").prop_map(String::into_bytes),
            ("[ -~世界é\u{301}\u{200d}😀\n\r\t\u{8}\u{b}\u{c}]{0,30}").prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
        /// The program ends at a panic.
        #[test]
        fn nothing_that_a_guest_writes_makes_the_emulator_panic(
            bytes in hostile(), columns in 1..12_u16, rows in 1..6_u16,
        ) {
            let size = TerminalSize { columns, rows };
            let shown = screen(&bytes, size);
            prop_assert!(shown.lines().count() <= usize::from(rows));
            state(&bytes, size);
        }

        #[test]
        fn plain_text_has_no_controls_and_is_bounded(bytes in hostile(), columns in 1..12_u16) {
            let text = plain(&[], &bytes, columns);
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{:?}", text);
            prop_assert!(text.len() <= 3 * bytes.len() + plain::MAX_PADDING, "{}", text.len());
            prop_assert!(incomplete_sequence(&bytes) <= bytes.len());
            prop_assert!(incomplete_character(&bytes) <= 3);
        }
    }
}
