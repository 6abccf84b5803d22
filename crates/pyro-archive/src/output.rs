//! The writing end of a stream: headers and padded data.

use std::io::{self, BufWriter, Write};

use tar::{EntryType, Header};

use crate::ArchiveError;
use crate::name::Name;
use crate::sparse::{self, Extent, number, stored};

pub(crate) const BLOCK: usize = 512;
/// GNU tar's type of an entry that continues a file.
pub(crate) const CONTINUATION: u8 = b'M';

/// Metadata of an entry, other than its name.
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    /// Seconds since 1970.
    pub(crate) modified: u64,
}

pub(crate) struct Output<W: Write> {
    sink: BufWriter<W>,
}

impl<W: Write> Output<W> {
    pub(crate) fn new(sink: W) -> Self {
        Self { sink: BufWriter::with_capacity(64 * 1024, sink) }
    }

    /// Starts a file of `size` bytes. Its data, that of all extents, follows with [`Self::data`], then [`Self::pad`].
    pub(crate) fn file(
        &mut self,
        name: &Name,
        attributes: &Attributes,
        size: u64,
        extents: &[Extent],
    ) -> Result<(), ArchiveError> {
        if stored(extents) == size {
            return self.header(blank(EntryType::Regular, size), name.as_bytes(), b"", attributes);
        }
        let mut header = blank(EntryType::GNUSparse, stored(extents));
        let blocks = sparse::write(&mut header, extents, size);
        self.header(header, name.as_bytes(), b"", attributes)?;
        blocks.iter().try_for_each(|block| self.data(block.as_bytes()))
    }

    /// Starts the next `size` bytes of a file whose first `position` bytes came before: the sender may not have known its
    /// size at first.
    pub(crate) fn more(
        &mut self,
        name: &Name,
        attributes: &Attributes,
        position: u64,
        size: u64,
    ) -> Result<(), ArchiveError> {
        let mut header = blank(EntryType::new(CONTINUATION), size);
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.offset = number(position);
        }
        self.header(header, name.as_bytes(), b"", attributes)
    }

    pub(crate) fn directory(&mut self, name: &Name, attributes: &Attributes) -> Result<(), ArchiveError> {
        let name = [name.as_bytes(), b"/"].concat();
        self.header(blank(EntryType::Directory, 0), &name, b"", attributes)
    }

    pub(crate) fn symlink(
        &mut self,
        name: &Name,
        attributes: &Attributes,
        target: &[u8],
    ) -> Result<(), ArchiveError> {
        self.header(blank(EntryType::Symlink, 0), name.as_bytes(), target, attributes)
    }

    pub(crate) fn data(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.sink.write_all(bytes).map_err(write_error)
    }

    /// Fills the last block of `stored` bytes of data.
    pub(crate) fn pad(&mut self, stored: u64) -> Result<(), ArchiveError> {
        self.data(&[0; BLOCK][..padding(stored)])
    }

    /// Passes everything on to the sink.
    pub(crate) fn flush(&mut self) -> Result<(), ArchiveError> {
        self.sink.flush().map_err(write_error)
    }

    /// Writes the end marker, without which a stream counts as truncated.
    pub(crate) fn end(mut self) -> Result<(), ArchiveError> {
        self.data(&[0; 2 * BLOCK])?;
        self.sink.flush().map_err(write_error)
    }

    /// Completes a header and writes it, after entries for a name or target that is too long for it.
    fn header(
        &mut self,
        mut header: Header,
        name: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), ArchiveError> {
        header.set_mode(attributes.mode);
        header.set_mtime(attributes.modified);
        let fields = header.as_old_mut();
        if !fits(&mut fields.linkname, target) {
            self.long(EntryType::GNULongLink, target)?;
        }
        if !fits(&mut fields.name, name) {
            self.long(EntryType::GNULongName, name)?;
        }
        header.set_cksum();
        self.data(header.as_bytes())
    }

    /// Writes an entry that holds the name or target of the next one, whose header is too small for it.
    fn long(&mut self, kind: EntryType, text: &[u8]) -> Result<(), ArchiveError> {
        let size = text.len() as u64 + 1;
        let mut header = blank(kind, size);
        fits(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_cksum();
        self.data(header.as_bytes())?;
        self.data(text)?;
        self.data(&[0])?;
        self.pad(size)
    }
}

fn blank(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Writes as much of `text` as fits into a header's field, and returns whether that was all of it.
fn fits(field: &mut [u8; 100], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    length == text.len()
}

/// How many bytes lie between the end of `size` bytes of data and the next header.
pub(crate) fn padding(size: u64) -> usize {
    // Less than a block.
    (size.wrapping_neg() % BLOCK as u64) as usize
}

fn write_error(source: io::Error) -> ArchiveError {
    ArchiveError::Stream { action: "write", source }
}
