//! Streams by hand, also such as `pack` never writes.

use pyro_archive::{ArchiveError, Limits, Links, Report};
use tar::{EntryType, Header};

use crate::trees::Outside;

pub(crate) const LIMITS: Limits = Limits { max_entries: 1000, max_bytes: 1 << 20 };

/// The largest header field that holds a name.
const FIELD: usize = 100;

#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
}

impl Stream {
    /// A stream whose item is a directory; what follows is in it.
    pub(crate) fn directory() -> Self {
        Self::default().dir("item")
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name.as_bytes(), b"", b"")
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), b"", data)
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"")
    }

    /// `name` and `target` fit into a header, or are cut.
    pub(crate) fn entry(self, kind: EntryType, name: &[u8], target: &[u8], data: &[u8]) -> Self {
        let mut header = header(kind, name, data.len() as u64);
        let target = &target[..target.len().min(FIELD)];
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        self.header(header).data(data)
    }

    /// With its checksum made right.
    pub(crate) fn header(mut self, mut header: Header) -> Self {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn end(mut self) -> Self {
        self.bytes.extend_from_slice(&[0; 1024]);
        self
    }

    /// With its end, unpacked to `outside.place()`, as a host does it.
    pub(crate) fn unpack(self, outside: &Outside) -> Result<Report, ArchiveError> {
        self.unpack_with(outside, &LIMITS, Links::Inside)
    }

    pub(crate) fn unpack_with(
        self,
        outside: &Outside,
        limits: &Limits,
        links: Links,
    ) -> Result<Report, ArchiveError> {
        outside.unpack(&self.end().bytes, limits, links)
    }
}

pub(crate) fn header(kind: EntryType, name: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    let name = &name[..name.len().min(FIELD)];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header
}
