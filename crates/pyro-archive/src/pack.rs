//! From a file or directory to a stream.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::name::{Name, printable};
use crate::output::{Attributes, Output};
use crate::sparse::{self, Extent, stored};
use crate::{ArchiveError, Limits, MAX_NAME, Report, kernel};

/// Without waiting for a fifo's other end or becoming a terminal's owner, should it be one by then.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Why something was left out that was there a moment earlier.
const REMOVED: &str = "removed while it was copied";

/// Maximum size of a file that claims to be empty, in bytes: it is kept in memory.
const MAX_UNSIZED_BYTES: u64 = 16 << 20;

/// Writes the file or directory at `source` as a stream.
///
/// A symlink at `source` itself is followed; those below it are stored as symlinks. The permission bits, without setuid,
/// setgid and sticky, and the modification time in seconds are kept; owners are not. Devices, fifos and sockets are left
/// out, and so are files that were removed before they were read, and directories in which the kernel makes up the files, such as
/// `/proc`. A file that grows is stored with the size that it had at first; holes are not stored. A file that claims to be empty
/// and is not, or that the kernel makes up, is stored if it is `source` itself, up to 16 MiB. `sink` gets large pieces and needs no buffer.
///
/// # Errors
/// [`ArchiveError`], also when a file may not be read or becomes shorter while it is read. The stream in `sink` then has
/// no end marker, so its receiver knows that it is truncated.
pub fn pack<W: Write>(source: &Path, sink: &mut W, limits: &Limits) -> Result<Report, ArchiveError> {
    let shown = printable(source.as_os_str().as_bytes());
    let not_an_item = || ArchiveError::NotAnItem { name: shown.clone() };
    // Opening a device can do something.
    let seen = rustix::fs::stat(source).map_err(ArchiveError::io("examine", &shown))?;
    if !matches!(file_type(&seen), FileType::RegularFile | FileType::Directory) {
        return Err(not_an_item());
    }
    let handle =
        rustix::fs::openat(CWD, source, OPEN, Mode::empty()).map_err(ArchiveError::io("open", &shown))?;
    let stat = rustix::fs::fstat(&handle).map_err(ArchiveError::io("examine", &shown))?;
    let is_of_kernel = kernel::owns(&handle).map_err(ArchiveError::io("examine", &shown))?;
    let mut packing = Packing::new(sink, limits);
    packing.count()?;
    match file_type(&stat) {
        FileType::RegularFile if stat.st_size == 0 || is_of_kernel => {
            let contents = contents_of_no_size(handle, &shown)?;
            packing.contents(&contents, &stat, &Name::item())?;
        }
        FileType::RegularFile => packing.file(&File::from(handle), &stat, &Name::item())?,
        FileType::Directory if is_of_kernel => return Err(ArchiveError::OfTheKernel { name: shown }),
        FileType::Directory => packing.tree(handle, &stat)?,
        _ => return Err(not_an_item()),
    }
    packing.output.end()?;
    Ok(packing.report)
}

/// Contents of a file whose size says nothing, as those of `/proc` and `/sys`.
fn contents_of_no_size(file: OwnedFd, shown: &str) -> Result<Vec<u8>, ArchiveError> {
    let mut contents = Vec::new();
    let file = File::from(file);
    file.take(MAX_UNSIZED_BYTES + 1).read_to_end(&mut contents).map_err(ArchiveError::io("read", shown))?;
    if contents.len() as u64 > MAX_UNSIZED_BYTES {
        return Err(ArchiveError::TooLarge { limit: MAX_UNSIZED_BYTES });
    }
    Ok(contents)
}

struct Packing<'a, W: Write> {
    output: Output<W>,
    limits: &'a Limits,
    /// How many names were found, including those that are still to be packed: they are in memory.
    found: u64,
    report: Report,
    buffer: Vec<u8>,
}

/// A directory that is being packed.
struct Level {
    handle: OwnedFd,
    name: Name,
    /// Its names that are still to be packed.
    names: std::vec::IntoIter<Vec<u8>>,
}

impl<'a, W: Write> Packing<'a, W> {
    fn new(sink: W, limits: &'a Limits) -> Self {
        let (output, buffer) = (Output::new(sink), vec![0; 64 * 1024]);
        Self { output, limits, found: 0, report: Report::default(), buffer }
    }

    fn tree(&mut self, handle: OwnedFd, stat: &Stat) -> Result<(), ArchiveError> {
        let mut open = vec![self.directory(handle, stat, Name::item())?];
        while let Some(level) = open.last_mut() {
            let Some(own_name) = level.names.next() else {
                open.pop();
                continue;
            };
            let name = level.name.child(&own_name)?;
            if let Some(level) = self.add(level.handle.as_fd(), &own_name, name)? {
                open.push(level);
            }
        }
        Ok(())
    }

    /// Stores the entry `own_name`; the contents of a directory follow later.
    fn add(
        &mut self,
        directory: BorrowedFd<'_>,
        own_name: &[u8],
        name: Name,
    ) -> Result<Option<Level>, ArchiveError> {
        let seen = match rustix::fs::statat(directory, own_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(seen) => seen,
            Err(Errno::NOENT) => return Ok(self.leave_out(&name, REMOVED)),
            Err(error) => return Err(ArchiveError::io("examine", &name)(error)),
        };
        match file_type(&seen) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => {
                self.symlink(directory, own_name, &seen, &name)?;
                return Ok(None);
            }
            FileType::Fifo => return Ok(self.leave_out(&name, "a fifo")),
            FileType::Socket => return Ok(self.leave_out(&name, "a socket")),
            _ => return Ok(self.leave_out(&name, "a device")),
        }
        let handle = match rustix::fs::openat(directory, own_name, OPEN | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(self.leave_out(&name, REMOVED)),
            Err(Errno::LOOP | Errno::NXIO) => return Err(replaced(&name)),
            Err(error) => return Err(ArchiveError::io("open", &name)(error)),
        };
        let stat = rustix::fs::fstat(&handle).map_err(ArchiveError::io("examine", &name))?;
        match file_type(&stat) {
            FileType::RegularFile => self.file(&File::from(handle), &stat, &name).map(|()| None),
            FileType::Directory => {
                if kernel::owns(&handle).map_err(ArchiveError::io("examine", &name))? {
                    return Ok(self.leave_out(&name, "belongs to the kernel"));
                }
                self.directory(handle, &stat, name).map(Some)
            }
            _ => Err(replaced(&name)),
        }
    }

    /// Stores a file without its holes.
    fn file(&mut self, file: &File, stat: &Stat, name: &Name) -> Result<(), ArchiveError> {
        let size = size(stat);
        let extents = sparse::extents(file, size).map_err(ArchiveError::io("examine", name))?;
        // The data that a shorter file has lost looks like a hole.
        let now = rustix::fs::fstat(file).map_err(ArchiveError::io("examine", name))?;
        if self::size(&now) < size {
            return Err(shortened(name));
        }
        self.begin(size, &extents, stat, name)?;
        for extent in &extents {
            self.extent(file, *extent, name)?;
        }
        self.output.pad(stored(&extents))
    }

    fn extent(&mut self, file: &File, extent: Extent, name: &Name) -> Result<(), ArchiveError> {
        let Extent { mut offset, length: mut remaining } = extent;
        while remaining > 0 {
            let wanted = usize::try_from(remaining).unwrap_or(usize::MAX).min(self.buffer.len());
            match file.read_at(&mut self.buffer[..wanted], offset) {
                Ok(0) => return Err(shortened(name)),
                Ok(count) => {
                    self.output.data(&self.buffer[..count])?;
                    offset += count as u64;
                    remaining -= count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::io("read", name)(error)),
            }
        }
        Ok(())
    }

    /// Stores a file with these contents.
    fn contents(&mut self, contents: &[u8], stat: &Stat, name: &Name) -> Result<(), ArchiveError> {
        let size = contents.len() as u64;
        self.begin(size, &Extent::whole(size), stat, name)?;
        self.output.data(contents)?;
        self.output.pad(size)
    }

    /// Starts the entry of a file, if it is within the limit. The limit is for the size with the holes: programs that read it later
    /// may not know of holes.
    fn begin(&mut self, size: u64, extents: &[Extent], stat: &Stat, name: &Name) -> Result<(), ArchiveError> {
        let limit = self.limits.max_bytes;
        if size > limit.saturating_sub(self.report.bytes) {
            return Err(ArchiveError::TooLarge { limit });
        }
        self.output.file(name, &attributes(stat), size, extents)?;
        self.report.entries += 1;
        self.report.bytes += size;
        Ok(())
    }

    fn directory(&mut self, handle: OwnedFd, stat: &Stat, name: Name) -> Result<Level, ArchiveError> {
        self.output.directory(&name, &attributes(stat))?;
        self.report.entries += 1;
        let mut names = Vec::new();
        for entry in Dir::read_from(&handle).map_err(ArchiveError::io("list", &name))? {
            let entry = entry.map_err(ArchiveError::io("list", &name))?;
            let own_name = entry.file_name().to_bytes();
            if !matches!(own_name, b"." | b"..") {
                self.count()?;
                names.push(own_name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(Level { handle, name, names: names.into_iter() })
    }

    fn symlink(
        &mut self,
        directory: BorrowedFd<'_>,
        own_name: &[u8],
        stat: &Stat,
        name: &Name,
    ) -> Result<(), ArchiveError> {
        let target = match rustix::fs::readlinkat(directory, own_name, Vec::new()) {
            Ok(target) => target,
            Err(Errno::NOENT) => {
                self.report.leave_out(name, REMOVED);
                return Ok(());
            }
            Err(Errno::INVAL) => return Err(replaced(name)),
            Err(error) => return Err(ArchiveError::io("read", name)(error)),
        };
        if target.as_bytes().len() > MAX_NAME {
            return Err(ArchiveError::NameTooLong { name: name.to_string() });
        }
        self.output.symlink(name, &attributes(stat), target.as_bytes())?;
        self.report.entries += 1;
        Ok(())
    }

    fn leave_out(&mut self, name: &Name, reason: &str) -> Option<Level> {
        self.report.leave_out(name, reason);
        None
    }

    fn count(&mut self) -> Result<(), ArchiveError> {
        self.found += 1;
        let limit = self.limits.max_entries;
        if self.found > limit { Err(ArchiveError::TooManyEntries { limit }) } else { Ok(()) }
    }
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn attributes(stat: &Stat) -> Attributes {
    // Times before 1970 are stored as 1970.
    Attributes { mode: stat.st_mode & 0o777, modified: u64::try_from(stat.st_mtime).unwrap_or(0) }
}

fn replaced(name: &Name) -> ArchiveError {
    ArchiveError::Changed { name: name.to_string(), how: "was replaced" }
}

fn shortened(name: &Name) -> ArchiveError {
    ArchiveError::Changed { name: name.to_string(), how: "became shorter" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_gone_is_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'x'; 200_000], 0).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        for length in [199_999, 100_000, 0] {
            file.set_len(length).unwrap();
            let limits = Limits { max_entries: 1, max_bytes: 1 << 20 };
            let mut stream = Vec::new();
            let packed = Packing::new(&mut stream, &limits).file(&file, &stat, &Name::item());
            assert!(matches!(packed, Err(ArchiveError::Changed { .. })), "{packed:?}");
            assert!(stream.is_empty(), "{length}");
        }
    }
}
