//! The output of a terminal as lines of text.
//!
//! What a program does within a line is carried out: carriage returns, backspaces, and erasing, as progress bars and line
//! editors use them, also where the line is wrapped. Movements between lines are not; for programs that draw on the whole screen,
//! the screen is what makes sense.

use unicode_width::UnicodeWidthChar as _;
use vte::{Params, Parser, Perform};

/// Maximum number of spaces that movements of the cursor add to a text.
pub(super) const MAX_PADDING: usize = 64 * 1024;
/// Distance of tab stops.
const TAB: usize = 8;

/// Returns the text that a terminal with this number of columns has written since `before`, which was written immediately before
/// it. What is left of the line from then is not part of the text, but `bytes` may continue it.
pub(crate) fn plain(before: &[u8], bytes: &[u8], columns: u16) -> String {
    let mut lines = Lines {
        done: String::new(),
        line: Vec::new(),
        row: 0,
        column: 0,
        columns: usize::from(columns).max(1),
        padding: MAX_PADDING,
    };
    let mut parser = Parser::new();
    parser.advance(&mut lines, before);
    lines.forget();
    parser.advance(&mut lines, bytes);
    // A prompt keeps its space.
    lines.take_line();
    lines.done
}

/// One column of a line.
#[derive(Clone)]
struct Cell {
    /// `None`: the second column of the character before.
    character: Option<char>,
    /// Combining characters.
    marks: String,
    /// It was written before the text that is wanted.
    is_old: bool,
}

impl Cell {
    fn of(character: char) -> Self {
        Self { character: Some(character), marks: String::new(), is_old: false }
    }
}

struct Lines {
    done: String,
    /// The line with the cursor, which may take several rows of the screen.
    line: Vec<Cell>,
    /// Where the row with the cursor begins in it.
    row: usize,
    /// Column of the cursor. All columns: the next character begins a row.
    column: usize,
    columns: usize,
    /// Number of spaces that may still be added.
    padding: usize,
}

impl Lines {
    fn position(&self) -> usize {
        self.row + self.column
    }

    /// Leaves everything so far out of the text.
    fn forget(&mut self) {
        self.done.clear();
        self.line.iter_mut().for_each(|cell| cell.is_old = true);
        self.padding = MAX_PADDING;
    }

    /// Ends the line, without the spaces at its end.
    fn end_line(&mut self) {
        let start = self.done.len();
        self.take_line();
        let length = self.done[start..].trim_end_matches(' ').len();
        self.done.truncate(start + length);
        self.done.push('\n');
    }

    /// Moves the text of the line out.
    fn take_line(&mut self) {
        for Cell { character, marks, .. } in self.line.drain(..).filter(|cell| !cell.is_old) {
            self.done.extend(character);
            self.done.push_str(&marks);
        }
        (self.row, self.column) = (0, 0);
    }

    fn new_line(&mut self) {
        if self.row + self.columns < self.line.len() {
            self.row += self.columns;
        } else {
            self.end_line();
        }
    }

    /// Extends the line to the cursor, or takes the cursor back if it is too far.
    fn reach(&mut self) {
        let missing = self.position().saturating_sub(self.line.len());
        let added = missing.min(self.padding);
        self.padding -= added;
        self.line.extend(std::iter::repeat_n(Cell::of(' '), added));
        if added < missing {
            self.column = self.line.len().saturating_sub(self.row);
        }
    }

    /// Writes one cell at the cursor, which it moves.
    fn put(&mut self, cell: Cell) {
        self.reach();
        let at = self.position();
        match self.line.get_mut(at) {
            Some(old) => *old = cell,
            None => self.line.push(cell),
        }
        self.column += 1;
    }

    /// The end of the row with the cursor, as far as there are cells.
    fn row_end(&self) -> usize {
        (self.row + self.columns).min(self.line.len())
    }

    fn erase(&mut self, from: usize, to: usize) {
        let to = to.min(self.line.len());
        // A wide character on a terminal with one column leaves the cursor beyond the end of the row.
        for cell in &mut self.line[from.min(to)..to] {
            *cell = Cell { is_old: cell.is_old, ..Cell::of(' ') };
        }
    }
}

impl Perform for Lines {
    fn print(&mut self, character: char) {
        let width = match character.width() {
            // A soft hyphen or another invisible character without a cell of its own.
            None => return,
            Some(0) => {
                let before = self.position().checked_sub(1).and_then(|at| self.line.get_mut(at));
                match before {
                    // The character itself is not in the text.
                    Some(cell) if cell.is_old => {
                        *cell = Cell { character: None, marks: character.into(), is_old: false };
                    }
                    Some(cell) => cell.marks.push(character),
                    None => {}
                }
                return;
            }
            Some(width) => width,
        };
        if self.column + width > self.columns && self.column > 0 {
            self.row += self.columns;
            self.column = 0;
        }
        self.put(Cell::of(character));
        for _ in 1..width {
            self.put(Cell { character: None, marks: String::new(), is_old: false });
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' | 0x0b | 0x0c => self.new_line(),
            b'\r' => self.column = 0,
            0x08 => self.column = self.column.min(self.columns - 1).saturating_sub(1),
            b'\t' => self.column = ((self.column / TAB + 1) * TAB).min(self.columns - 1).max(self.column),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        if ignore || !intermediates.is_empty() {
            return;
        }
        let first = params.iter().next().and_then(|values| values.first()).copied().unwrap_or(0);
        let (count, at) = (usize::from(first.max(1)), self.position());
        match action {
            'C' => self.column = (self.column + count).min(self.columns - 1).max(self.column),
            'D' => self.column = self.column.saturating_sub(count),
            'G' | '`' => self.column = (count - 1).min(self.columns - 1),
            'A' => self.row = self.row.saturating_sub(count.saturating_mul(self.columns)),
            'B' if self.row + self.columns < self.line.len() => self.row += self.columns,
            'K' if first == 0 => self.line.truncate(self.line.len().min(at.max(self.row))),
            'K' if first == 1 => self.erase(self.row, at + 1),
            'K' => self.erase(self.row, self.row + self.columns),
            'J' if first == 0 => self.line.truncate(at),
            'P' => {
                // The rows that follow stay where they are.
                let end = self.row_end();
                let (first, last) = (at.min(end), (at + count).min(end));
                self.line[first..end].rotate_left(last - first);
                match end == self.line.len() {
                    true => self.line.truncate(end - (last - first)),
                    false => self.erase(end - (last - first), end),
                }
            }
            'X' => self.erase(at, (at + count).min(self.row_end())),
            '@' if at < self.line.len() => {
                // What does not fit in the row is lost.
                let end = (self.row + self.columns).min(self.line.len() + count).max(at);
                let added = count.min(end - at).min(self.padding);
                self.padding -= added;
                let end = end.min(self.line.len() + added);
                self.line.resize(self.line.len().max(end), Cell::of(' '));
                self.line[at..end].rotate_right(added);
                self.line[at..at + added].fill(Cell::of(' '));
            }
            'H' | 'f' | 'd' | 'J' if !self.line.is_empty() => self.end_line(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_line_is_what_the_program_left_of_it() {
        for (written, text) in [
            ("\x1b[1;32mgreen\x1b[0m\r\nplain  \r\n", "green\nplain\n"),
            ("10%\r50%\r100%\r\ndone", "100%\ndone"),
            ("passwort\x08d\r\n", "password\n"),
            ("abc\r\x1b[Kx", "x"),
            ("abcdef\x1b[3DX\x1b[K", "abcX"),
            ("\x1b]0;a title\x07# ls\r\n", "# ls\n"),
            ("a\tb", "a       b"),
            ("e\u{301}\r\n界x\x08y", "e\u{301}\n界y"),
            ("one\x1b[5;1Htwo", "one\ntwo"),
            ("\x1b[?2004h$ \x1b[?2004l\r\r\n", "$\n"),
            ("bell\x07\0", "bell"),
            ("out  \r\n# ", "out\n# "),
            ("abc\x1b[2D\x1b[P", "ac"),
        ] {
            assert_eq!(plain(b"", written.as_bytes(), 80), text, "{written:?}");
        }
    }

    /// What Bash's line editor writes for a line of 14 characters on a terminal with 10 columns.
    #[test]
    fn a_wrapped_line_is_one_line() {
        assert_eq!(plain(b"", b"$ 34567890 \r1234\r\nout\r\n", 10), "$ 345678901234\nout\n");
        let edited = b"$ 34567890 \r1234\x1b[A\x1b[2DX\r\n\r\nout";
        assert_eq!(plain(b"", edited, 10).lines().last(), Some("out"));
    }

    #[test]
    fn a_wide_character_on_a_narrow_terminal_can_be_erased() {
        assert_eq!(plain(b"", "界\x1b[X".as_bytes(), 1), "界");
    }

    #[test]
    fn a_text_continues_the_line_before_it() {
        for (before, written, text) in [
            ("$ ", "34567890 \r1234\r\n", "345678901234\n"),
            ("10%", "\r50%\r\x1b[Kdone\r\n", "done\n"),
            ("earlier\r\n# ", "\x1b[2K\r> x", "> x"),
            ("e", "\u{301}!", "\u{301}!"),
            ("abcdef\x1b[4D", "\x1b[2PX\r\n", "X\n"),
            ("\x1b[1;31", "mred", "red"),
        ] {
            assert_eq!(plain(before.as_bytes(), written.as_bytes(), 10), text, "{before:?} {written:?}");
        }
    }

    /// A shell session read in two parts, whatever the place where it is cut.
    #[test]
    fn what_is_read_in_parts_is_the_same_text() {
        const WRITTEN: &str = "one two\r\n\x1b[1m$ \x1b[0m34567890 \r1234567890 \rX\r\n\
                               wrapped by the terminal at ten\r\ntab\tt\r\n\x1b]0;title\x07$ \x1b[?2004hls\x1b[?2004l\r\r\n\
                               \x1b[32ma\x1b[0m  b\r\n";
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        let all = lines(&plain(b"", WRITTEN.as_bytes(), 10));
        assert_eq!(all[1], "$ 345678901234567890X");
        for at in 0..=WRITTEN.len() {
            let (before, after) = WRITTEN.as_bytes().split_at(at);
            // The space with which Bash begins a row is shown if nothing has replaced it yet.
            let is_in_space =
                before.ends_with(b" \r") || (before.ends_with(b" ") && after.starts_with(b"\r"));
            let parts = plain(b"", before, 10) + &plain(before, after, 10);
            match is_in_space {
                true => {
                    assert_eq!(parts.replace(' ', ""), plain(b"", WRITTEN.as_bytes(), 10).replace(' ', ""))
                }
                false => assert_eq!(lines(&parts), all, "cut at {at}: {after:?}"),
            }
        }
    }

    #[test]
    fn a_row_that_is_edited_leaves_the_next_one() {
        assert_eq!(plain(b"", b"abcdefghijKLM\x1b[A\r\x1b[2Px", 10), "xdefghij  KLM");
        assert_eq!(plain(b"", b"abcdefghijKLM\x1b[A\r\x1b[2@x", 10), "x abcdefghKLM");
        assert_eq!(plain(b"", b"abc\r\x1b[2@x", 10), "x abc");
        assert_eq!(plain(b"", b"abc\r\x1b[60000@x", 10).trim_end(), "x");
    }
}
