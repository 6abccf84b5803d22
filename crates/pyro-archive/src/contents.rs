//! A stream that holds one regular file, from and to memory, without a file on this side.

use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ArchiveError;
use crate::input::{Entry, Input, Kind};
use crate::name::Name;
use crate::output::{Attributes, Output};
use crate::sparse::Extent;

/// Maximum memory that is reserved because of a declared size alone, in bytes.
const MAX_RESERVED: u64 = 1 << 20;

/// Reads the contents of the one regular file, of at most `limit` bytes, in a stream of [`pack`](crate::pack()).
///
/// # Errors
/// [`ArchiveError`]; [`ArchiveError::NotAFile`] if it is something else.
pub fn read_contents<R: Read>(source: &mut R, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut input = Input::new(source);
    let (size, extents) = file(&mut input, limit)?;
    let mut contents = Vec::with_capacity(usize::try_from(size.min(MAX_RESERVED)).unwrap_or(0));
    input.data(&extents, |position, piece| {
        fill_hole(&mut contents, position);
        contents.extend_from_slice(piece);
        Ok(())
    })?;
    fill_hole(&mut contents, size);
    end(&mut input)?;
    Ok(contents)
}

/// Writes the contents of the one regular file in a stream of [`pack`](crate::pack()), at most `limit` bytes, to `sink`, with zeros
/// for its holes. Returns how many bytes there were.
///
/// # Errors
/// [`ArchiveError`]; [`ArchiveError::NotAFile`] if it is something else. Part of the contents may have been written.
pub fn write_contents_to<R: Read, W: Write>(
    source: &mut R,
    limit: u64,
    sink: &mut W,
) -> Result<u64, ArchiveError> {
    let mut input = Input::new(source);
    let (size, extents) = file(&mut input, limit)?;
    let mut written = 0;
    input.data(&extents, |position, piece| {
        zeros(sink, position - written)?;
        sink.write_all(piece).map_err(write_error)?;
        written = position + piece.len() as u64;
        Ok(())
    })?;
    end(&mut input)?;
    zeros(sink, size - written)?;
    sink.flush().map_err(write_error)?;
    Ok(size)
}

/// The one regular file in a stream: its size and where its data belongs.
fn file<R: Read>(input: &mut Input<'_, R>, limit: u64) -> Result<(u64, Vec<Extent>), ArchiveError> {
    match input.next()? {
        Some(Entry { kind: Kind::File { size, .. }, .. }) if size > limit => {
            Err(ArchiveError::TooLarge { limit })
        }
        Some(Entry { kind: Kind::File { size, extents }, .. }) => Ok((size, extents)),
        Some(_) => Err(ArchiveError::NotAFile),
        None => Err(ArchiveError::Malformed { what: "it is empty" }),
    }
}

/// Checks that nothing follows the file.
fn end<R: Read>(input: &mut Input<'_, R>) -> Result<(), ArchiveError> {
    match input.next()? {
        None => Ok(()),
        Some(next) => Err(ArchiveError::OutOfOrder { name: next.name.to_string() }),
    }
}

fn zeros(sink: &mut impl Write, count: u64) -> Result<(), ArchiveError> {
    std::io::copy(&mut std::io::repeat(0).take(count), sink).map(drop).map_err(write_error)
}

fn write_error(source: std::io::Error) -> ArchiveError {
    ArchiveError::Io { action: "write", name: "the output".to_owned(), source }
}

/// Appends zeros until `contents` has `size` bytes, which is at most the size of the file.
fn fill_hole(contents: &mut Vec<u8>, size: u64) {
    contents.resize(usize::try_from(size).unwrap_or(usize::MAX).max(contents.len()), 0);
}

/// The stream with one regular file in parts, for contents whose size is not known at first.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// How many bytes of contents there were so far.
    size: u64,
    has_begun: bool,
}

impl Parts {
    /// The part of the stream for the next bytes of the contents, within the limit.
    pub(crate) fn part(&mut self, contents: &[u8], mode: u32, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let size = contents.len() as u64;
        if size > limit.saturating_sub(self.size) {
            return Err(ArchiveError::TooLarge { limit });
        }
        let mut stream = Vec::with_capacity(contents.len() + 2048);
        let mut output = Output::new(&mut stream);
        let (name, attributes) = (Name::item(), attributes(mode));
        match self.has_begun {
            false => output.file(&name, &attributes, size, &Extent::whole(size))?,
            true => output.more(&name, &attributes, self.size, size)?,
        }
        output.data(contents)?;
        output.pad(size)?;
        output.flush()?;
        drop(output);
        self.size += size;
        self.has_begun = true;
        Ok(stream)
    }

    /// The end of the stream.
    pub(crate) fn end(mut self, mode: u32) -> Result<(Vec<u8>, u64), ArchiveError> {
        let mut stream = match self.has_begun {
            true => Vec::new(),
            false => self.part(&[], mode, 0)?,
        };
        Output::new(&mut stream).end()?;
        Ok((stream, self.size))
    }
}

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, modified: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() }
}

/// Writes a stream with one regular file with these contents and permission bits, modified now.
///
/// # Errors
/// [`ArchiveError::Stream`].
pub fn write_contents<W: Write>(contents: &[u8], mode: u32, sink: &mut W) -> Result<(), ArchiveError> {
    let size = contents.len() as u64;
    let mut output = Output::new(sink);
    output.file(&Name::item(), &attributes(mode), size, &Extent::whole(size))?;
    output.data(contents)?;
    output.pad(size)?;
    output.end()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{Limits, Links, Report, pack, unpack};

    const LIMITS: Limits = Limits { max_entries: 10, max_bytes: 1 << 20 };

    #[test]
    fn what_is_written_is_unpacked_and_what_is_packed_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, 512, 100_000] {
            let contents = vec![b'x'; size];
            let mut stream = Vec::new();
            write_contents(&contents, 0o755, &mut stream).unwrap();
            assert_eq!(read_contents(&mut stream.as_slice(), 100_000).unwrap(), contents);
            unpack(&mut stream.as_slice(), dir.path(), "f".as_ref(), &LIMITS, Links::Any).unwrap();
            let file = dir.path().join("f");
            assert_eq!(fs::read(&file).unwrap(), contents);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755);
            let mut packed = Vec::new();
            let Report { bytes, .. } = pack(&file, &mut packed, &LIMITS).unwrap();
            assert_eq!(bytes, size as u64);
            assert_eq!(read_contents(&mut packed.as_slice(), 100_000).unwrap(), contents);
        }
    }

    #[test]
    fn contents_of_unknown_size_are_a_file_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        for parts in [&[][..], &[&b"one"[..]], &[b"one", &[2; 1000], b"three"]] {
            let (mut whole, mut stream) = (Parts::default(), Vec::new());
            for part in parts {
                stream.extend(whole.part(part, 0o644, 2000).unwrap());
            }
            let (rest, size) = whole.end(0o644).unwrap();
            stream.extend(rest);
            let expected = parts.concat();
            let limits = Limits { max_entries: 1, max_bytes: size };
            assert_eq!(
                unpack(&mut stream.as_slice(), dir.path(), "f".as_ref(), &limits, Links::Any).unwrap().bytes,
                size
            );
            assert_eq!(fs::read(&file).unwrap(), expected);
            if size > 0 {
                let limits = Limits { max_bytes: size - 1, ..limits };
                let refused = unpack(&mut stream.as_slice(), dir.path(), "f".as_ref(), &limits, Links::Any);
                assert!(matches!(refused, Err(ArchiveError::TooLarge { .. })), "{refused:?}");
            }
            // Cut short, it changes nothing.
            let cut = unpack(&mut &stream[..stream.len() - 1], dir.path(), "f".as_ref(), &limits, Links::Any);
            assert!(matches!(cut, Err(ArchiveError::Truncated)), "{cut:?}");
            assert_eq!(fs::read(&file).unwrap(), expected);
        }
        assert!(matches!(Parts::default().part(b"four", 0o644, 3), Err(ArchiveError::TooLarge { limit: 3 })));
    }

    #[test]
    fn contents_are_written_with_zeros_for_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = fs::File::create(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 18).unwrap();
        file.set_len(1 << 19).unwrap();
        let mut packed = Vec::new();
        pack(&path, &mut packed, &LIMITS).unwrap();
        let mut written = Vec::new();
        assert_eq!(write_contents_to(&mut packed.as_slice(), 1 << 19, &mut written).unwrap(), 1 << 19);
        assert!(written == fs::read(&path).unwrap());
        let refused = write_contents_to(&mut packed.as_slice(), (1 << 19) - 1, &mut written);
        assert!(matches!(refused, Err(ArchiveError::TooLarge { .. })), "{refused:?}");
    }

    #[test]
    fn what_is_not_a_file_or_too_large_or_cut_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut packed = Vec::new();
        pack(dir.path(), &mut packed, &LIMITS).unwrap();
        assert!(matches!(read_contents(&mut packed.as_slice(), 100), Err(ArchiveError::NotAFile)));
        let mut stream = Vec::new();
        write_contents(&[0; 1000], 0o644, &mut stream).unwrap();
        assert!(matches!(
            read_contents(&mut stream.as_slice(), 999),
            Err(ArchiveError::TooLarge { limit: 999 })
        ));
        for end in 0..stream.len() {
            assert!(
                matches!(read_contents(&mut &stream[..end], 1000), Err(ArchiveError::Truncated)),
                "{end}"
            );
        }
        // A second file.
        let second = [&stream[..stream.len() - 1024], &stream].concat();
        assert!(matches!(read_contents(&mut second.as_slice(), 1000), Err(ArchiveError::OutOfOrder { .. })));
    }
}
