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

/// Returns the text that a terminal with this number of columns has written.
pub(crate) fn plain(bytes: &[u8], columns: u16) -> String {
    let mut lines = Lines {
        done: String::new(),
        line: Vec::new(),
        row: 0,
        column: 0,
        columns: usize::from(columns).max(1),
        padding: MAX_PADDING,
    };
    Parser::new().advance(&mut lines, bytes);
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
}

impl Cell {
    fn of(character: char) -> Self {
        Self { character: Some(character), marks: String::new() }
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
        for Cell { character, marks } in self.line.drain(..) {
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

    fn erase(&mut self, from: usize, to: usize) {
        let length = self.line.len();
        self.line[from.min(length)..to.min(length)].fill(Cell::of(' '));
    }
}

impl Perform for Lines {
    fn print(&mut self, character: char) {
        let width = match character.width() {
            // A soft hyphen or another invisible character without a cell of its own.
            None => return,
            Some(0) => {
                let before = self.position().checked_sub(1).and_then(|at| self.line.get_mut(at));
                if let Some(cell) = before {
                    cell.marks.push(character);
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
            self.put(Cell { character: None, marks: String::new() });
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
                let end = (at + count).min(self.line.len());
                self.line.drain(at.min(end)..end);
            }
            'X' => self.erase(at, at + count),
            '@' if at < self.line.len() => {
                let added = count.min(self.columns).min(self.padding);
                self.padding -= added;
                self.line.splice(at..at, std::iter::repeat_n(Cell::of(' '), added));
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
            assert_eq!(plain(written.as_bytes(), 80), text, "{written:?}");
        }
    }

    /// What Bash's line editor writes for a line of 14 characters on a terminal with 10 columns.
    #[test]
    fn a_wrapped_line_is_one_line() {
        assert_eq!(plain(b"$ 34567890 \r1234\r\nout\r\n", 10), "$ 345678901234\nout\n");
        let edited = b"$ 34567890 \r1234\x1b[A\x1b[2DX\r\n\r\nout";
        assert_eq!(plain(edited, 10).lines().last(), Some("out"));
    }
}
