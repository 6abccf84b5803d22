//! Lines of bounded length.

use std::io;

use rmcp::model::RequestId;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use super::message_id::IdFinder;

/// Maximum length of a line in bytes. A file of the maximum size fits, also as base64.
const MAX_LINE_BYTES: usize = 32 << 20;

/// Reads lines.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    /// Maximum length of a line in bytes.
    pub(super) max_bytes: usize,
    line: Vec<u8>,
    /// The line is too long; what follows of it is only looked through for its id.
    skipped: Option<IdFinder>,
}

/// What was read.
pub(super) enum Line {
    /// A line without its end.
    Whole(Vec<u8>),
    /// A line that is too long, and its id, if it has one.
    TooLong(Option<RequestId>),
    /// There are no more lines. One that was not ended is dropped.
    End,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::new(input), max_bytes: MAX_LINE_BYTES, line: Vec::new(), skipped: None }
    }

    /// Reads the next line. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Line> {
        loop {
            let available = self.input.fill_buf().await?;
            if available.is_empty() {
                return Ok(Line::End);
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let piece = &available[..end.unwrap_or(available.len())];
            match &mut self.skipped {
                Some(finder) => finder.feed(piece),
                None if self.line.len() + piece.len() <= self.max_bytes => self.line.extend_from_slice(piece),
                None => {
                    let mut finder = IdFinder::default();
                    finder.feed(&std::mem::take(&mut self.line));
                    finder.feed(piece);
                    self.skipped = Some(finder);
                }
            }
            let consumed = piece.len() + usize::from(end.is_some());
            self.input.consume(consumed);
            if end.is_some() {
                return Ok(match self.skipped.take() {
                    Some(finder) => Line::TooLong(finder.id()),
                    None => Line::Whole(std::mem::take(&mut self.line)),
                });
            }
        }
    }
}
