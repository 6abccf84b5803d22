//! Kept output that comes in pieces, as text for a terminal, which it does not control.

use bytes::Bytes;
use pyro_engine::OutputStream;

use crate::text::printable;

/// The beginning of a character at the end of each stream.
#[derive(Debug, Default)]
pub(super) struct KeptText {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl KeptText {
    /// Returns the text of the next piece, without a character that is not complete yet.
    pub(super) fn next(&mut self, stream: OutputStream, bytes: &[u8]) -> Bytes {
        let begun = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let mut all = std::mem::take(begun);
        all.extend_from_slice(bytes);
        let end = all.utf8_chunks().last().map(|last| last.invalid().to_vec()).unwrap_or_default();
        if is_beginning(&end) {
            all.truncate(all.len() - end.len());
            *begun = end;
        }
        text(&all)
    }

    /// Returns what was held back.
    pub(super) fn rest(self) -> impl Iterator<Item = (OutputStream, Bytes)> {
        let all = [(OutputStream::Stdout, self.stdout), (OutputStream::Stderr, self.stderr)];
        all.into_iter().filter(|(_, begun)| !begun.is_empty()).map(|(stream, begun)| (stream, text(&begun)))
    }
}

fn text(bytes: &[u8]) -> Bytes {
    printable(&String::from_utf8_lossy(bytes)).into_owned().into()
}

/// Returns whether more bytes can make this a character.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_whole_wherever_the_pieces_end() {
        let written = "a\u{20ac}\x1b[2J\u{1f600}\n".as_bytes();
        for size in 1..=written.len() {
            let mut kept = KeptText::default();
            let shown: Vec<u8> =
                written.chunks(size).flat_map(|piece| kept.next(OutputStream::Stdout, piece)).collect();
            assert_eq!(shown, "a\u{20ac}\\u{1b}[2J\u{1f600}\n".as_bytes(), "{size}");
            assert_eq!(kept.rest().count(), 0);
        }
    }

    #[test]
    fn what_is_no_character_is_marked_on_each_stream() {
        let mut kept = KeptText::default();
        assert_eq!(kept.next(OutputStream::Stdout, b"a\xff\xe2\x82"), "a\u{fffd}".as_bytes());
        assert_eq!(kept.next(OutputStream::Stderr, b"\xacb\xf0"), "\u{fffd}b".as_bytes());
        assert_eq!(kept.next(OutputStream::Stdout, b"c"), "\u{fffd}c".as_bytes());
        let rest: Vec<_> = kept.rest().collect();
        assert_eq!(rest, [(OutputStream::Stderr, "\u{fffd}".as_bytes().into())]);
    }
}
