//! The files that keep a command's output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pyro_wire::OutputStream;

use crate::conversation::OutputChunk;

/// Maximum number of bytes kept of one stream of one command.
pub const STREAM_LIMIT: u64 = 16 << 20;
/// Maximum number of bytes kept of all commands of one VM.
const JOURNAL_LIMIT: u64 = 1 << 30;

/// Returns the name of the file for one stream of a command.
pub fn file_name(sequence: u64, stream: OutputStream) -> String {
    let extension = match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    };
    format!("{sequence:06}.{extension}")
}

/// Returns how many more bytes of output may be kept in this directory.
pub fn room(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return JOURNAL_LIMIT };
    let used = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
    JOURNAL_LIMIT.saturating_sub(used)
}

/// Returns the space that is left when `room` was left earlier. Looks again only if one command could use all of it: the
/// oldest commands and their output have been removed meanwhile if a task has many.
pub(super) fn room_now(dir: &Path, earlier: u64) -> u64 {
    if earlier >= 2 * STREAM_LIMIT { earlier } else { room(dir) }
}

/// Reads part of a command's file.
pub(super) fn read_at(path: &Path, position: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    File::open(path)?.read_exact_at(&mut bytes, position)?;
    Ok(bytes.into())
}

/// The kept output of one command. A stream without output has no file.
#[derive(Debug)]
pub struct CommandLog {
    dir: PathBuf,
    sequence: u64,
    stdout: Part,
    stderr: Part,
}

#[derive(Debug, Default)]
struct Part {
    file: Option<File>,
    kept: u64,
    dropped: u64,
    /// The last byte written was not a newline.
    inside_line: bool,
}

impl CommandLog {
    /// Creates the log of command `sequence`, with its files in `dir`, which is created when needed.
    pub fn new(dir: PathBuf, sequence: u64) -> Self {
        // A power loss may have rolled back a command and left its files; they would be taken for those of this
        // command, which has the same sequence.
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let _ = fs::remove_file(dir.join(file_name(sequence, stream)));
        }
        Self { dir, sequence, stdout: Part::default(), stderr: Part::default() }
    }

    /// Keeps what fits into the stream's limit and into `room`, and counts the rest. Returns how much of the room it
    /// took.
    pub fn append(&mut self, chunk: &OutputChunk, room: u64) -> u64 {
        let part = match chunk.stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let length = chunk.bytes.len() as u64;
        let fits = length.min(STREAM_LIMIT.saturating_sub(part.kept)).min(room);
        // At most the length, which came from a usize. Once bytes have been dropped, no more are kept.
        let kept = match part.dropped {
            0 => part.write(&self.dir, self.sequence, chunk.stream, &chunk.bytes[..fits as usize]),
            _ => 0,
        };
        part.kept += kept;
        if let Some(last) = chunk.bytes.last() {
            part.inside_line = *last != b'\n';
        }
        part.dropped += length - kept;
        kept
    }

    /// Appends pyro's own line to stderr, on a line of its own and regardless of limits. Returns what was added.
    pub fn note(&mut self, line: &str) -> String {
        let begin = if self.stderr.inside_line { "\n" } else { "" };
        let note = format!("{begin}{line}");
        self.stderr.kept +=
            self.stderr.write(&self.dir, self.sequence, OutputStream::Stderr, note.as_bytes());
        note
    }

    /// Returns the bytes of stdout and stderr in the files.
    pub fn kept(&self) -> (u64, u64) {
        (self.stdout.kept, self.stderr.kept)
    }

    /// Returns the bytes of stdout and stderr that were dropped.
    pub fn dropped(&self) -> (u64, u64) {
        (self.stdout.dropped, self.stderr.dropped)
    }

    /// Waits until the files are on disk.
    pub fn sync(&self) {
        for file in [&self.stdout.file, &self.stderr.file].into_iter().flatten() {
            if let Err(error) = file.sync_data() {
                tracing::error!(%error, sequence = self.sequence, "output of a command may not be on the disk");
            }
        }
    }
}

impl Part {
    /// Returns how many bytes were written: all, or none if the disk does not take them.
    fn write(&mut self, dir: &Path, sequence: u64, stream: OutputStream, bytes: &[u8]) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let written = self.file(dir, sequence, stream).and_then(|file| file.write_all(bytes));
        match written {
            Ok(()) => bytes.len() as u64,
            Err(error) => {
                tracing::error!(%error, sequence, "output of a command is not kept");
                // Part of it may have been written.
                if let Some(file) = &self.file {
                    let _ = file.set_len(self.kept);
                }
                0
            }
        }
    }

    fn file(&mut self, dir: &Path, sequence: u64, stream: OutputStream) -> io::Result<&mut File> {
        if self.file.is_none() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let path = dir.join(file_name(sequence, stream));
            self.file = Some(OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_of_removed_output_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("000001.stdout");
        File::create(&old).unwrap().set_len(JOURNAL_LIMIT).unwrap();
        assert_eq!((room(dir.path()), room_now(dir.path(), 0)), (0, 0));
        fs::remove_file(old).unwrap();
        assert_eq!(room_now(dir.path(), 0), JOURNAL_LIMIT);
        assert_eq!(room_now(dir.path(), 2 * STREAM_LIMIT), 2 * STREAM_LIMIT, "there is enough");
    }

    fn chunk(stream: OutputStream, bytes: &[u8]) -> OutputChunk {
        OutputChunk { stream, bytes: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn each_stream_has_its_file_and_an_empty_one_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("commands");
        let mut room = room(&dir);
        let mut log = CommandLog::new(dir.clone(), 7);
        room -= log.append(&chunk(OutputStream::Stdout, b"one "), room);
        room -= log.append(&chunk(OutputStream::Stdout, b"two"), room);
        log.sync();
        assert_eq!(fs::read(dir.join("000007.stdout")).unwrap(), b"one two");
        assert!(!dir.join("000007.stderr").exists());
        assert_eq!((log.kept(), log.dropped()), ((7, 0), (0, 0)));
        assert_eq!(super::room(&dir), room);
        assert_eq!(read_at(&dir.join("000007.stdout"), 4, 3).unwrap(), "two");
    }

    #[test]
    fn what_is_beyond_a_limit_is_counted_and_nothing_follows_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = CommandLog::new(dir.path().to_owned(), 1);
        let kept = [(&b"abc"[..], 5), (b"defg", 2), (b"h", 100)]
            .map(|(bytes, room)| log.append(&chunk(OutputStream::Stderr, bytes), room));
        assert_eq!(kept, [3, 2, 0]);
        assert_eq!(fs::read(dir.path().join("000001.stderr")).unwrap(), b"abcde");
        assert_eq!(log.dropped(), (0, 3));

        let mut log = CommandLog::new(dir.path().to_owned(), 2);
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..17 {
            log.append(&chunk(OutputStream::Stdout, &piece), u64::MAX);
        }
        assert_eq!((log.kept().0, log.dropped().0), (STREAM_LIMIT, 1 << 20));
    }

    #[test]
    fn a_note_stands_on_its_own_line_even_beyond_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        for (sequence, before, added) in [(1, "", "note\n"), (2, "half", "\nnote\n"), (3, "one\n", "note\n")]
        {
            let mut log = CommandLog::new(dir.path().to_owned(), sequence);
            log.append(&chunk(OutputStream::Stderr, before.as_bytes()), before.len() as u64);
            assert_eq!(log.note("note\n"), added);
            let file = dir.path().join(file_name(sequence, OutputStream::Stderr));
            assert_eq!(fs::read_to_string(file).unwrap(), format!("{before}{added}"));
        }
    }

    #[test]
    fn nothing_is_left_of_a_command_that_had_the_number_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("000001.stdout");
        fs::write(&file, "old").unwrap();
        let mut log = CommandLog::new(dir.path().to_owned(), 1);
        assert!(!file.exists());
        log.append(&chunk(OutputStream::Stdout, b"new"), 100);
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_no_reason_to_fail() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("commands"), b"in the way").unwrap();
        let mut log = CommandLog::new(dir.path().join("commands"), 1);
        let taken = log.append(&chunk(OutputStream::Stdout, b"lost"), 10);
        assert_eq!((log.kept(), log.dropped(), taken), ((0, 0), (4, 0), 0));
    }
}
