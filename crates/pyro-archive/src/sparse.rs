//! Where the data of a file lies. The rest of it are holes, which take neither time nor space, here as on disk.
//!
//! A file with holes is an entry of GNU tar's type `S`: the header and the blocks behind it list the extents of the data, which
//! follow without the holes.

use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::ArchiveError;

/// Maximum number of extents of one file: both ends keep them in memory. A file with more is stored with fewer holes.
pub(crate) const MAX_EXTENTS: usize = 1 << 16;

/// A hole that is smaller is stored as data, in bytes.
const MIN_HOLE: u64 = 64 << 10;

/// Consecutive bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Extent {
    fn end(self) -> u64 {
        self.offset + self.length
    }

    /// The whole of a file without holes.
    pub(crate) fn whole(size: u64) -> Vec<Self> {
        vec![Self { offset: 0, length: size }]
    }
}

/// How many bytes of data there are in all.
pub(crate) fn stored(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

/// Returns where the first `size` bytes of a file have data. The position in the file is then undefined.
pub(crate) fn extents(file: impl AsFd, size: u64) -> Result<Vec<Extent>, Errno> {
    let mut found: Vec<Extent> = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
            Ok(start) => start.min(size),
            // The rest is a hole.
            Err(Errno::NXIO) => size,
            // This file system does not say.
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error),
        };
        let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO | Errno::INVAL) => size,
            Err(error) => return Err(error),
        };
        // The last one is for what is beyond the maximum.
        let is_last = found.len() == MAX_EXTENTS - 1;
        match found.last_mut() {
            Some(last) if start - last.end() < MIN_HOLE => last.length = end - last.offset,
            _ if start == size => {}
            _ if is_last => {
                found.push(Extent { offset: start, length: size - start });
                break;
            }
            // A small hole at the beginning.
            None if start < MIN_HOLE => found.push(Extent { offset: 0, length: end }),
            _ => found.push(Extent { offset: start, length: end - start }),
        }
        position = end.max(start);
    }
    if let Some(last) = found.last_mut()
        && size - last.end() < MIN_HOLE
    {
        last.length = size - last.offset;
    }
    // A file that is small as a whole.
    if found.is_empty() && size < MIN_HOLE {
        found = Extent::whole(size);
    }
    Ok(found)
}

/// Writes the list of a file's extents into its header, and returns the blocks that follow it.
pub(crate) fn write(header: &mut Header, extents: &[Extent], size: u64) -> Vec<GnuExtSparseHeader> {
    // As GNU tar has it, the last one marks the end of the file.
    let mut fields =
        extents.iter().copied().chain([Extent { offset: size, length: 0 }]).map(field).peekable();
    let mut blocks = Vec::new();
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.realsize = number(size);
        for (place, field) in gnu.sparse.iter_mut().zip(&mut fields) {
            *place = field;
        }
        gnu.isextended = [u8::from(fields.peek().is_some())];
    }
    while fields.peek().is_some() {
        let mut block = GnuExtSparseHeader::new();
        for (place, field) in block.sparse.iter_mut().zip(&mut fields) {
            *place = field;
        }
        block.isextended = [u8::from(fields.peek().is_some())];
        blocks.push(block);
    }
    blocks
}

fn field(extent: Extent) -> GnuSparseHeader {
    GnuSparseHeader { offset: number(extent.offset), numbytes: number(extent.length) }
}

/// A number as headers have it, also one beyond what their octal digits can say.
pub(crate) fn number(value: u64) -> [u8; 12] {
    let mut header = Header::new_gnu();
    header.set_size(value);
    header.as_old().size
}

/// Reads a list of extents, a block at a time, and checks it.
#[derive(Debug)]
pub(crate) struct Reader {
    size: u64,
    extents: Vec<Extent>,
    end: u64,
}

impl Reader {
    /// For a file of this size.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, extents: Vec::new(), end: 0 }
    }

    /// Takes the fields of a header or block. They end with the first empty one.
    pub(crate) fn take(&mut self, fields: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
        let malformed = |what| ArchiveError::Malformed { what };
        for field in fields.iter().take_while(|field| !field.is_empty()) {
            let number = |value: std::io::Result<u64>| {
                value.map_err(|_| malformed("a position in a sparse file is not a number"))
            };
            let extent = Extent { offset: number(field.offset())?, length: number(field.length())? };
            let end = extent.offset.checked_add(extent.length);
            if extent.offset < self.end || end.is_none_or(|end| end > self.size) {
                return Err(malformed("the data of a sparse file is out of order or beyond its end"));
            }
            self.end = extent.end();
            if extent.length > 0 {
                if self.extents.len() == MAX_EXTENTS {
                    return Err(malformed("a sparse file has too many pieces"));
                }
                self.extents.push(extent);
            }
        }
        Ok(())
    }

    /// The extents of a file that has `stored` bytes of data.
    pub(crate) fn finish(self, stored: u64) -> Result<Vec<Extent>, ArchiveError> {
        // Each is within the size, and they do not overlap, so the sum cannot overflow.
        match self::stored(&self.extents) == stored {
            true => Ok(self.extents),
            false => Err(ArchiveError::Malformed { what: "a sparse file has another size than its pieces" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    fn read(
        header: &Header,
        blocks: &[GnuExtSparseHeader],
        stored: u64,
    ) -> Result<Vec<Extent>, ArchiveError> {
        let gnu = header.as_gnu().unwrap();
        let mut reader = Reader::new(gnu.real_size().unwrap());
        reader.take(&gnu.sparse)?;
        assert_eq!(gnu.is_extended(), !blocks.is_empty());
        for block in blocks {
            reader.take(block.sparse())?;
        }
        reader.finish(stored)
    }

    #[test]
    fn holes_of_a_file_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(extents(&file, 8 << 20).unwrap(), []);
        for offset in [0, 1 << 20, (1 << 20) + 8192, (8 << 20) - 1] {
            file.write_all_at(b"x", offset).unwrap();
        }
        let found = extents(&file, 8 << 20).unwrap();
        // The hole between two that are near each other is stored.
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((found[0].offset, found[1].offset, found[2].end()), (0, 1 << 20, 8 << 20));
        assert!(stored(&found) < 1 << 20, "{found:?}");
        // What is beyond the size is not looked at.
        assert_eq!(extents(&file, 10).unwrap(), Extent::whole(10));
        assert_eq!(extents(&file, 0).unwrap(), Extent::whole(0));
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused() {
        let fields = |extents: &[(u64, u64)]| {
            extents
                .iter()
                .map(|(offset, length)| field(Extent { offset: *offset, length: *length }))
                .collect::<Vec<_>>()
        };
        for bad in
            [&[(0, 101)][..], &[(90, 11)], &[(10, 5), (14, 1)], &[(10, 5), (0, 5)], &[(u64::MAX >> 1, 1)]]
        {
            assert!(
                matches!(Reader::new(100).take(&fields(bad)), Err(ArchiveError::Malformed { .. })),
                "{bad:?}"
            );
        }
        let mut reader = Reader::new(100);
        reader.take(&fields(&[(0, 10), (50, 50), (100, 0)])).unwrap();
        assert!(matches!(reader.finish(61), Err(ArchiveError::Malformed { .. })));
        let mut reader = Reader::new(u64::MAX >> 1);
        let many: Vec<_> = (0..=MAX_EXTENTS as u64).map(|number| (2 * number, 1)).collect();
        assert!(matches!(reader.take(&fields(&many)), Err(ArchiveError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pieces in prop::collection::vec((0u64..1 << 50, 1u64..1 << 45), 0..60), rest in 0u64..1 << 50) {
            let mut end = 0;
            let extents: Vec<_> = pieces
                .into_iter()
                .map(|(hole, length)| {
                    let extent = Extent { offset: end + hole, length };
                    end = extent.end();
                    extent
                })
                .collect();
            let mut header = Header::new_gnu();
            let blocks = write(&mut header, &extents, end + rest);
            prop_assert_eq!(read(&header, &blocks, stored(&extents)).unwrap(), extents);
        }
    }
}
