//! From a stream to a file or directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::input::{Entry, Input, Kind};
use crate::name::{Name, printable};
use crate::output::Attributes;
use crate::place::{Partial, Standing, finish, finish_as, make_directory};
use crate::sparse::Extent;
use crate::{ArchiveError, Limits, Report};

/// Which symlinks of a stream are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Those that lead to the item or something in it, provided that the symlinks that were there before do, and
    /// that have `..` only at their beginning. Others are left out.
    Inside,
    /// All of them, wherever they lead.
    Any,
}

/// What is made of the entries of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which symlinks are made.
    pub links: Links,
    /// Mode bits that no file or directory gets, as a umask has them.
    pub mask: u32,
    /// A file that replaces a file gets the owner and the permissions of that file, but no special bits. If it is executable, who
    /// may read it may execute it.
    pub keeps_owner: bool,
}

impl From<Links> for Rules {
    fn from(links: Links) -> Self {
        Self { links, mask: 0, keeps_owner: false }
    }
}

/// Makes `parent/name` from a stream of [`pack`](crate::pack()). Nothing after the end marker is read.
///
/// `parent` is an existing directory. A file replaces a file. An existing directory keeps its mode and its contents, and
/// files and symlinks replace files and symlinks in it. Nothing else is replaced, and an existing symlink called `name` is
/// an error. A file or symlink gets its name by a rename once it is complete: nothing is written to existing files.
///
/// After an error, a single file is unchanged; a directory holds what was made so far, with mode 0700 where it may be
/// incomplete. A process that is killed can also leave one file `.pyro-partial-…`. Nothing is synced to disk.
///
/// # Errors
/// [`ArchiveError`], also when the stream ends before its end marker. The position in `source` is then undefined.
pub fn unpack<R: Read>(
    source: &mut R,
    parent: &Path,
    name: &OsStr,
    limits: &Limits,
    rules: impl Into<Rules>,
) -> Result<Report, ArchiveError> {
    let own_name = name.as_bytes();
    if matches!(own_name, b"" | b"." | b"..") || own_name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(ArchiveError::NotOneName { name: printable(own_name) });
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty())
        .map_err(ArchiveError::io("open", printable(parent.as_os_str().as_bytes())))?;
    let input = Input::new(source);
    Unpacking { input, limits, rules: rules.into(), report: Report::default() }.item(parent.as_fd(), own_name)
}

/// The place of one entry.
struct Site<'d, 'n> {
    /// The open directory that it belongs in.
    directory: BorrowedFd<'d>,
    /// The last component of its path, as it is called in `directory`.
    own_name: &'n [u8],
    /// Its name in the stream.
    name: &'n Name,
}

struct Unpacking<'a, R> {
    input: Input<'a, R>,
    limits: &'a Limits,
    rules: Rules,
    report: Report,
}

/// A file that does not have its name yet.
struct Made<'d> {
    partial: Partial<'d>,
    file: File,
    /// How many bytes it has.
    size: u64,
    attributes: Attributes,
    /// The file whose owner and mode it gets.
    replaced: Option<Stat>,
}

/// A directory whose contents follow in the stream.
struct Level {
    handle: OwnedFd,
    name: Name,
    /// Set when it is complete; `None` for a directory that existed.
    attributes: Option<Attributes>,
    /// The name of the last entry in it, empty at first.
    last: Vec<u8>,
}

impl<R: Read> Unpacking<'_, R> {
    fn item(mut self, parent: BorrowedFd<'_>, own_name: &[u8]) -> Result<Report, ArchiveError> {
        let Some(Entry { name, kind, attributes }) = self.next()? else {
            return Err(ArchiveError::Malformed { what: "it is empty" });
        };
        if name != Name::item() {
            return Err(ArchiveError::OutOfOrder { name: name.to_string() });
        }
        let site = Site { directory: parent, own_name, name: &name };
        match kind {
            Kind::File { size, extents } => {
                let mut made = self.file(&site, attributes, size, &extents)?;
                // The stream is complete only at its end.
                while let Some(next) = self.input.next()? {
                    match next.kind {
                        Kind::More { position, size } if next.name == name && position == made.size => {
                            self.more(&mut made, &name, size)?;
                        }
                        _ => return Err(ArchiveError::OutOfOrder { name: next.name.to_string() }),
                    }
                }
                let partial = self.complete(made, &name)?;
                partial.rename(own_name).map_err(ArchiveError::io("rename to", &name))?;
            }
            Kind::Directory => {
                let item = self.directory(&site, attributes)?;
                self.contents(item)?;
            }
            Kind::Symlink { .. } => {
                return Err(ArchiveError::Malformed { what: "the item itself is a symlink" });
            }
            Kind::More { .. } => return Err(ArchiveError::OutOfOrder { name: name.to_string() }),
        }
        Ok(self.report)
    }

    /// The next entry, within the limit, with the mode that it gets.
    fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut entry = self.input.next()?;
        if let Some(entry) = &mut entry {
            entry.attributes.mode &= !self.rules.mask;
        }
        let limit = self.limits.max_entries;
        if entry.is_some() && self.report.entries + self.report.left_out >= limit {
            return Err(ArchiveError::TooManyEntries { limit });
        }
        Ok(entry)
    }

    /// Everything below the item. The directory of each entry must be open, and its names ascend.
    fn contents(&mut self, item: Level) -> Result<(), ArchiveError> {
        let mut open = vec![item];
        while let Some(Entry { name, kind, attributes }) = self.next()? {
            let out_of_order = || ArchiveError::OutOfOrder { name: name.to_string() };
            let (parent, own_name) = name.split().ok_or_else(out_of_order)?;
            while let Some(level) = open.pop_if(|level| level.name != parent) {
                complete(&level)?;
            }
            let level = open.last_mut().ok_or_else(out_of_order)?;
            if level.last.as_slice() >= own_name {
                return Err(out_of_order());
            }
            level.last = own_name.to_vec();
            let site = Site { directory: level.handle.as_fd(), own_name, name: &name };
            match kind {
                Kind::File { size, extents } => {
                    let made = self.file(&site, attributes, size, &extents)?;
                    let partial = self.complete(made, &name)?;
                    partial.rename(own_name).map_err(ArchiveError::io("rename to", &name))?;
                }
                Kind::Symlink { target } => self.symlink(&site, &target)?,
                Kind::Directory => {
                    let level = self.directory(&site, attributes)?;
                    open.push(level);
                }
                // Only the item itself can be so long that its size is not known at first.
                Kind::More { .. } => return Err(out_of_order()),
            }
        }
        open.iter().rev().try_for_each(complete)
    }

    /// Reads a file's data into a file that does not have its name yet.
    fn file<'d>(
        &mut self,
        site: &Site<'d, '_>,
        attributes: Attributes,
        size: u64,
        extents: &[Extent],
    ) -> Result<Made<'d>, ArchiveError> {
        self.count_bytes(size)?;
        let replaced = site.replaced()?;
        let name = site.name;
        let (partial, file) = Partial::file(site.directory).map_err(ArchiveError::io("make", name))?;
        self.input.data(extents, |position, piece| {
            file.write_all_at(piece, position).map_err(ArchiveError::io("write", name))
        })?;
        // A hole at the end.
        if extents.last().is_none_or(|last| last.offset + last.length < size) {
            file.set_len(size).map_err(ArchiveError::io("write", name))?;
        }
        let replaced = replaced.filter(|_| self.rules.keeps_owner);
        Ok(Made { partial, file, size, attributes, replaced })
    }

    /// Reads the next `size` bytes of a file.
    fn more(&mut self, made: &mut Made<'_>, name: &Name, size: u64) -> Result<(), ArchiveError> {
        self.count_bytes(size)?;
        let (file, start) = (&made.file, made.size);
        self.input.data(&Extent::whole(size), |position, piece| {
            file.write_all_at(piece, start + position).map_err(ArchiveError::io("write", name))
        })?;
        made.size += size;
        Ok(())
    }

    /// Counts bytes of a file that follow, if they are within the limit.
    fn count_bytes(&mut self, size: u64) -> Result<(), ArchiveError> {
        let limit = self.limits.max_bytes;
        if size > limit.saturating_sub(self.report.bytes) {
            return Err(ArchiveError::TooLarge { limit });
        }
        self.report.bytes += size;
        Ok(())
    }

    /// Gives a file its owner, mode and time. Nothing more is written to it.
    fn complete<'d>(&mut self, made: Made<'d>, name: &Name) -> Result<Partial<'d>, ArchiveError> {
        match &made.replaced {
            None => finish(&made.file, &made.attributes),
            Some(stat) => finish_as(&made.file, &made.attributes, stat),
        }
        .map_err(ArchiveError::io("set mode and time of", name))?;
        self.report.entries += 1;
        Ok(made.partial)
    }

    fn directory(&mut self, site: &Site<'_, '_>, attributes: Attributes) -> Result<Level, ArchiveError> {
        match make_directory(site.directory, site.own_name) {
            Ok((handle, is_new)) => {
                self.report.entries += 1;
                let attributes = is_new.then_some(attributes);
                Ok(Level { handle, name: site.name.clone(), attributes, last: Vec::new() })
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Err(match site.standing() {
                Ok(there) => site.in_the_way(&there),
                Err(error) => error,
            }),
            Err(error) => Err(ArchiveError::io("make", site.name)(error)),
        }
    }

    fn symlink(&mut self, site: &Site<'_, '_>, target: &[u8]) -> Result<(), ArchiveError> {
        if self.rules.links == Links::Inside && !site.name.keeps_inside(target) {
            self.report.leave_out(site.name, "a symlink that leads out of the copy");
            return Ok(());
        }
        site.replaced()?;
        Partial::symlink(site.directory, target)
            .and_then(|partial| partial.rename(site.own_name))
            .map_err(ArchiveError::io("make", site.name))?;
        self.report.entries += 1;
        Ok(())
    }
}

impl Site<'_, '_> {
    /// Checks what has the name before any data is read, and returns the file of that name, if there is one. If that changes
    /// before the rename, the rename still follows no symlink and replaces no directory.
    fn replaced(&self) -> Result<Option<Stat>, ArchiveError> {
        match self.standing()? {
            Standing::Nothing => Ok(None),
            Standing::File(stat) => Ok(Some(stat)),
            // A symlink in the item's own place may have been meant as its target.
            Standing::Symlink if *self.name != Name::item() => Ok(None),
            there => Err(self.in_the_way(&there)),
        }
    }

    fn standing(&self) -> Result<Standing, ArchiveError> {
        Standing::at(self.directory, self.own_name).map_err(ArchiveError::io("examine", self.name))
    }

    fn in_the_way(&self, there: &Standing) -> ArchiveError {
        ArchiveError::InTheWay { name: self.name.to_string(), there: there.description() }
    }
}

/// Gives a directory its final mode, which may forbid writing: no more entries follow in it.
fn complete(level: &Level) -> Result<(), ArchiveError> {
    match &level.attributes {
        Some(attributes) => {
            finish(&level.handle, attributes).map_err(ArchiveError::io("set mode and time of", &level.name))
        }
        None => Ok(()),
    }
}
