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
    let (size, extents) = match input.next()? {
        Some(Entry { kind: Kind::File { size, extents }, .. }) => (size, extents),
        Some(_) => return Err(ArchiveError::NotAFile),
        None => return Err(ArchiveError::Malformed { what: "it is empty" }),
    };
    if size > limit {
        return Err(ArchiveError::TooLarge { limit });
    }
    let mut contents = Vec::with_capacity(usize::try_from(size.min(MAX_RESERVED)).unwrap_or(0));
    input.data(&extents, |position, piece| {
        fill_hole(&mut contents, position);
        contents.extend_from_slice(piece);
        Ok(())
    })?;
    fill_hole(&mut contents, size);
    match input.next()? {
        None => Ok(contents),
        Some(next) => Err(ArchiveError::OutOfOrder { name: next.name.to_string() }),
    }
}

/// Appends zeros until `contents` has `size` bytes, which is at most the size of the file.
fn fill_hole(contents: &mut Vec<u8>, size: u64) {
    contents.resize(usize::try_from(size).unwrap_or(usize::MAX).max(contents.len()), 0);
}

/// Writes a stream with one regular file with these contents and permission bits, modified now.
///
/// # Errors
/// [`ArchiveError::Stream`].
pub fn write_contents<W: Write>(contents: &[u8], mode: u32, sink: &mut W) -> Result<(), ArchiveError> {
    let modified = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let size = contents.len() as u64;
    let mut output = Output::new(sink);
    output.file(&Name::item(), &Attributes { mode, modified }, size, &Extent::whole(size))?;
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
