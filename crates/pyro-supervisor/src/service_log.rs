//! The output of a service's runs on disk: its latest few MiB.
//!
//! A log is a directory of segments, each named after the offset of its first byte in everything that the service ever
//! wrote. Its last segment grows; older ones but one are removed. So an offset means the same bytes for as long as they
//! are kept, and readers need no lock: a reader whose segment is gone goes on with the oldest one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pyro_wire::MAX_COUNT;
use tokio::sync::watch;

/// Size at which a segment is followed by another one, in bytes.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Number of segments that are kept.
const SEGMENTS: usize = 2;
/// Bytes that are searched for lines at a time.
const TAIL_BYTES: u64 = 64 << 10;
/// Maximum number of attempts to read a log whose segments are removed meanwhile.
const MAX_ATTEMPTS: usize = 100;
/// Ends the name of a segment.
const EXTENSION: &str = "log";

/// Part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPiece {
    /// Offset of its first byte: the one that was asked for, or later if that is not kept any more.
    pub offset: u64,
    /// The bytes; none at the end of the log.
    pub bytes: Bytes,
}

/// Reads at most `max_bytes` from this offset on. It may return fewer before the end of the log, but at least one.
///
/// # Errors
/// The log cannot be read. A service that has written nothing has an empty one.
pub fn read_service_log(dir: &Path, offset: u64, max_bytes: usize) -> io::Result<LogPiece> {
    let mut offset = offset;
    for _ in 0..MAX_ATTEMPTS {
        let segments = segments(dir)?;
        let Some(oldest) = segments.first() else { return Ok(LogPiece { offset, bytes: Bytes::new() }) };
        let at = offset.max(*oldest);
        let mut bytes = Vec::new();
        let is_last_before = |segment: &&u64| **segment <= at;
        let Some(start) = segments.iter().rev().find(is_last_before) else { continue };
        match read_segment(&dir.join(name(*start)), at - start, max_bytes, &mut bytes) {
            // It was removed meanwhile, or what the disk did not take was.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {}
            Err(error) => return Err(error),
            Ok(()) => match segments.iter().find(|segment| **segment > at) {
                // What was between them is lost.
                Some(next) if bytes.is_empty() => offset = *next,
                _ => return Ok(LogPiece { offset: at, bytes: bytes.into() }),
            },
        }
    }
    Err(changes_too_fast())
}

fn changes_too_fast() -> io::Error {
    io::Error::other("its files are removed faster than they are read")
}

fn read_segment(path: &Path, position: u64, max_bytes: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    let file = File::open(path)?;
    let left = file.metadata()?.len().saturating_sub(position);
    // At most the maximum, which is a usize.
    bytes.resize(left.min(max_bytes as u64) as usize, 0);
    file.read_exact_at(bytes, position)
}

/// Returns the offset behind the last byte.
///
/// # Errors
/// The log cannot be read.
pub fn service_log_end(dir: &Path) -> io::Result<u64> {
    for _ in 0..MAX_ATTEMPTS {
        let segments = segments(dir)?;
        let Some(last) = segments.last() else { return Ok(0) };
        match fs::metadata(dir.join(name(*last))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            metadata => return Ok(last + metadata?.len()),
        }
    }
    Err(changes_too_fast())
}

/// Returns the offset at which the last `lines` lines begin. A last line without its end counts.
///
/// # Errors
/// The log cannot be read.
pub fn service_log_tail(dir: &Path, lines: u64) -> io::Result<u64> {
    let end = service_log_end(dir)?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut begin, mut seen) = (end, 0);
    let mut piece = Vec::new();
    for start in segments(dir)?.into_iter().rev() {
        let file = match File::open(dir.join(name(start))) {
            // It was removed meanwhile, and so were those before it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            file => file?,
        };
        let mut until = file.metadata()?.len().min(end.saturating_sub(start));
        while until > 0 {
            let from = until.saturating_sub(TAIL_BYTES);
            piece.resize((until - from) as usize, 0);
            file.read_exact_at(&mut piece, from)?;
            for (at, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let line = start + from + at as u64 + 1;
                // The end of the last line begins no other one.
                if line < end {
                    seen += 1;
                    if seen == lines {
                        return Ok(line);
                    }
                }
            }
            until = from;
        }
        begin = start;
    }
    Ok(begin)
}

fn name(start: u64) -> String {
    format!("{start:020}.{EXTENSION}")
}

/// Returns where the segments begin, in order.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut starts = Vec::new();
    for entry in entries {
        let path = PathBuf::from(entry?.file_name());
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let start = stem.and_then(|stem| stem.parse::<u64>().ok());
        starts.extend(start.filter(|start| *start <= MAX_COUNT && path.as_os_str() == name(*start).as_str()));
    }
    starts.sort_unstable();
    Ok(starts)
}

/// The log that a service writes.
#[derive(Debug)]
pub(crate) struct ServiceLog {
    dir: PathBuf,
    segment: Option<Segment>,
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    length: u64,
}

impl ServiceLog {
    /// Goes on with the log in `dir`, which is created when the service writes something.
    pub(crate) fn new(dir: PathBuf) -> Self {
        let end = service_log_end(&dir).unwrap_or_else(|error| {
            tracing::error!(%error, dir = %dir.display(), "the earlier output of a service cannot be read");
            0
        });
        Self { dir, segment: None, end: watch::Sender::new(end) }
    }

    /// Returns the offset behind the last byte, now and when it changes.
    pub(crate) fn end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Appends bytes. What the disk does not take is dropped.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.try_append(bytes) {
            Ok(()) => self.end.send_modify(|end| *end += bytes.len() as u64),
            Err(error) => {
                crate::dir::bound_log();
                tracing::error!(%error, dir = %self.dir.display(), "output of a service is not kept");
                // Part of it may have been written.
                if let Some(Segment { file, length }) = &self.segment {
                    let _ = file.set_len(*length);
                }
            }
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.segment.as_ref().is_none_or(|segment| segment.length >= SEGMENT_BYTES) {
            self.segment = Some(self.next_segment()?);
        }
        if let Some(segment) = &mut self.segment {
            segment.file.write_all(bytes)?;
            segment.length += bytes.len() as u64;
        }
        Ok(())
    }

    /// Opens the last segment, or begins one if that is full, and removes the oldest ones.
    fn next_segment(&self) -> io::Result<Segment> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut starts = segments(&self.dir)?;
        let end = *self.end.borrow();
        let start = match starts.last() {
            Some(last) if end.saturating_sub(*last) < SEGMENT_BYTES => *last,
            _ => {
                starts.push(end);
                end
            }
        };
        let path = self.dir.join(name(start));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        for old in starts.iter().take(starts.len().saturating_sub(SEGMENTS)) {
            fs::remove_file(self.dir.join(name(*old)))?;
        }
        Ok(Segment { file, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dir: &Path, from: u64) -> (u64, Vec<u8>) {
        let (mut next, mut first, mut bytes) = (from, None, Vec::new());
        loop {
            let piece = read_service_log(dir, next, 1000).unwrap();
            if piece.bytes.is_empty() {
                return (first.unwrap_or(from), bytes);
            }
            first.get_or_insert(piece.offset);
            next = piece.offset + piece.bytes.len() as u64;
            bytes.extend_from_slice(&piece.bytes);
        }
    }

    #[test]
    fn a_log_goes_on_after_its_service_was_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("web");
        assert_eq!((all(&dir, 0), service_log_end(&dir).unwrap()), ((0, vec![]), 0));
        ServiceLog::new(dir.clone()).append(b"one\n");
        let mut log = ServiceLog::new(dir.clone());
        let end = log.end();
        log.append(b"");
        log.append(b"two\n");
        assert_eq!((all(&dir, 0), all(&dir, 4)), ((0, b"one\ntwo\n".to_vec()), (4, b"two\n".to_vec())));
        assert_eq!((*end.borrow(), service_log_end(&dir).unwrap()), (8, 8));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn the_latest_output_is_kept_and_the_oldest_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ServiceLog::new(dir.path().to_owned());
        let piece = 100_000;
        for number in 0..200_u8 {
            log.append(&vec![number; piece]);
        }
        let end = 200 * piece as u64;
        let (first, kept) = all(dir.path(), 0);
        assert!(
            kept.len() as u64 >= SEGMENT_BYTES && kept.len() as u64 <= 2 * SEGMENT_BYTES + 2 * piece as u64
        );
        assert_eq!(first + kept.len() as u64, end);
        for (at, byte) in kept.iter().enumerate().step_by(997) {
            assert_eq!(u64::from(*byte), (first + at as u64) / piece as u64);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), SEGMENTS);
        // A reader that was slow goes on with what is kept.
        assert_eq!(read_service_log(dir.path(), 5, 10).unwrap().offset, first);
    }

    #[test]
    fn a_tail_begins_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(service_log_tail(dir.path(), 3).unwrap(), 0);
        ServiceLog::new(dir.path().to_owned()).append(b"a\nbb\n\nccc");
        let tail = |lines| service_log_tail(dir.path(), lines).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5, u64::MAX].map(tail), [9, 6, 5, 2, 0, 0, 0]);
        ServiceLog::new(dir.path().to_owned()).append(b"\n");
        assert_eq!([1, 2].map(tail), [6, 5]);
    }

    #[test]
    fn other_files_are_no_segments() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.log"), "x").unwrap();
        for name in ["5", "5.log", "+5.log", "18446744073709551615.log"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!((all(dir.path(), 0), service_log_end(dir.path()).unwrap()), ((0, vec![]), 0));
        assert_eq!(service_log_tail(dir.path(), 1).unwrap(), 0);
    }

    #[test]
    fn a_reader_goes_on_behind_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name(10)), "one\n").unwrap();
        fs::write(dir.path().join(name(20)), "two\n").unwrap();
        assert_eq!(read_service_log(dir.path(), 0, 100).unwrap().offset, 10);
        for offset in [14, 17, 20] {
            let piece = read_service_log(dir.path(), offset, 100).unwrap();
            assert_eq!((piece.offset, &piece.bytes[..]), (20, &b"two\n"[..]));
        }
        assert_eq!(all(dir.path(), 24), (24, vec![]));
        assert_eq!([1, 2, 3].map(|lines| service_log_tail(dir.path(), lines).unwrap()), [14, 10, 10]);
    }

    #[test]
    fn a_tail_may_have_long_lines() {
        let dir = tempfile::tempdir().unwrap();
        let line = [vec![b'x'; 100_000], vec![b'\n']].concat();
        let mut log = ServiceLog::new(dir.path().to_owned());
        (0..60).for_each(|_| log.append(&line));
        let tail = |lines| service_log_tail(dir.path(), lines).unwrap();
        assert_eq!([1, 2, 50].map(tail), [59, 58, 10].map(|line| line * 100_001));
    }
}
