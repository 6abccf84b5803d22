//! Reads and writes lines.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufWriter};
use tokio::sync::mpsc;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Decoder};

use crate::limits::REQUEST_BYTES;

/// A line of a client.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// The line without its end.
    Whole(Bytes),
    /// The line was too long and was skipped.
    TooLong,
}

/// Splits a client's input into lines. A line that is too long is skipped, and reading continues with the next one.
pub(crate) struct Lines(AnyDelimiterCodec);

impl Lines {
    pub(crate) fn new() -> Self {
        Self::up_to(REQUEST_BYTES)
    }

    fn up_to(bytes: usize) -> Self {
        Self(AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), bytes))
    }
}

impl Decoder for Lines {
    type Item = Line;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Line>> {
        line(self.0.decode(bytes))
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Line>> {
        line(self.0.decode_eof(bytes))
    }
}

fn line(decoded: Result<Option<Bytes>, AnyDelimiterCodecError>) -> io::Result<Option<Line>> {
    match decoded {
        Ok(line) => Ok(line.map(Line::Whole)),
        Err(AnyDelimiterCodecError::MaxChunkLengthExceeded) => Ok(Some(Line::TooLong)),
        Err(AnyDelimiterCodecError::Io(error)) => Err(error),
    }
}

/// Writes lines, each with its end, until all senders are gone.
pub(crate) async fn write(
    output: impl AsyncWrite + Unpin,
    mut lines: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut output = BufWriter::new(output);
    while let Some(line) = lines.recv().await {
        output.write_all(&line).await?;
        if lines.is_empty() {
            output.flush().await?;
        }
    }
    output.flush().await
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio_util::codec::FramedRead;

    use super::*;

    async fn lines_of(input: &[u8], most: usize) -> Vec<Line> {
        FramedRead::new(input, Lines::up_to(most)).map(Result::unwrap).collect().await
    }

    fn whole(text: &'static str) -> Line {
        Line::Whole(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        let lines = lines_of(b"12345\n123456\nafter\nlast", 5).await;
        assert_eq!(lines, [whole("12345"), Line::TooLong, whole("after"), whole("last")]);
        let long = [b"x".repeat(100_000), b"\nafter\n".to_vec()].concat();
        assert_eq!(lines_of(&long, 5).await, [Line::TooLong, whole("after")]);
        assert_eq!(lines_of(&b"x".repeat(100_000), 5).await, [Line::TooLong]);
    }
}
