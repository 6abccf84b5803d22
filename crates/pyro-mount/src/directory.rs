//! A directory of the host as a file system.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, SeekFrom, fstat, openat, readlinkat, seek};
use rustix::io::Errno;

use crate::attributes::{self, VALIDITY, attributes, entry, no_entry};
use crate::handles::Handles;
use crate::name;
use crate::nodes::{Nodes, Opened, is_stale};
use crate::server::MAX_DATA_BYTES;
use crate::special::{Kind, is_of_kernel};

/// Bytes of a directory that are read at a time.
const LISTING_BYTES: usize = 32 << 10;
/// What a guest may say about how a file is opened, besides the direction.
const OPEN_FLAGS: OFlags = OFlags::APPEND.union(OFlags::DSYNC).union(OFlags::SYNC);

/// What is served, and how.
#[derive(Debug)]
pub struct Export {
    /// The directory.
    pub directory: OwnedFd,
    /// The guest may change it.
    pub writable: bool,
    /// The user and the group of the guest that own everything, as the guest sees it.
    pub owner: u32,
    /// Maximum number of files and directories that are open for the guest, and again of those to which only the way is open.
    pub max_open: usize,
}

/// A directory as a file system. It does not tell the users of the guest apart: who may use the mount at all may do what this
/// process may do.
#[derive(Debug)]
pub struct Directory {
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    /// Names of this process's descriptors. Opening one opens the file again.
    pub(crate) descriptors: OwnedFd,
    pub(crate) owner: u32,
    writable: bool,
}

impl Directory {
    /// Serves `export`. Must be called before the process gives up `/proc`.
    ///
    /// # Errors
    /// The directory, or `/proc`, cannot be used. `EACCES` if the directory's files are made by the kernel.
    pub fn new(export: Export) -> io::Result<Self> {
        if is_of_kernel(&export.directory)? {
            return Err(Errno::ACCESS.into());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            nodes: Nodes::new(export.directory, export.max_open)?,
            handles: Handles::new(export.max_open),
            descriptors: openat(CWD, "/proc/self/fd", flags, Mode::empty())?,
            owner: export.owner,
            writable: export.writable,
        })
    }

    /// # Errors
    /// `EROFS` if the guest may not change anything.
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(Errno::ROFS.into()) }
    }

    /// Returns what has this number. What the guest has open is there even if the host has removed or replaced it.
    ///
    /// # Errors
    /// As [`Nodes::get`].
    pub(crate) fn node(&self, number: u64) -> io::Result<Opened> {
        match self.nodes.get(number) {
            Err(error) if is_stale(&error) => {
                let file = self.handles.of(number).ok_or(error)?.file.try_clone()?;
                let kind = Kind::of(fstat(&file)?.st_mode);
                Ok(Opened { handle: Arc::new(file.into()), kind })
            }
            found => found,
        }
    }

    /// Opens a file or directory that was looked up.
    pub(crate) fn reopen(&self, opened: &Opened, expected: Kind, flags: OFlags) -> io::Result<File> {
        match (opened.kind, expected) {
            (Kind::Special, _) => return Err(Errno::NXIO.into()),
            (Kind::Symlink, _) => return Err(Errno::LOOP.into()),
            (Kind::File, Kind::Directory) => return Err(Errno::NOTDIR.into()),
            (Kind::Directory, Kind::File) => return Err(Errno::ISDIR.into()),
            _ => {}
        }
        // NONBLOCK and NOCTTY have no effect on what is opened here; they are a second line of defence.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let path = opened.handle.as_raw_fd().to_string();
        Ok(openat(&self.descriptors, path, flags, Mode::empty())?.into())
    }

    /// Returns how a guest's flags open a file.
    pub(crate) fn open_flags(&self, flags: u32) -> io::Result<OFlags> {
        let wanted = OFlags::from_bits_retain(flags);
        let direction = wanted & OFlags::RWMODE;
        if direction != OFlags::RDONLY || wanted.contains(OFlags::TRUNC) {
            self.check_writable()?;
        }
        Ok(direction | wanted & OPEN_FLAGS)
    }

    /// Returns a number for an open file, and how the guest may cache it.
    pub(crate) fn opened(&self, inode: u64, file: File) -> io::Result<(u64, OpenOptions)> {
        let stat = fstat(&file)?;
        let handle = self.handles.add(inode, file)?;
        let keep = if self.nodes.is_unchanged(inode, &stat) {
            OpenOptions::KEEP_CACHE
        } else {
            OpenOptions::empty()
        };
        Ok((handle, keep))
    }

    pub(crate) fn stat(&self, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        let stat = match handle {
            Some(handle) => fstat(&self.handles.get(handle, inode)?.file)?,
            None => fstat(&self.node(inode)?.handle)?,
        };
        Ok((attributes(&stat, self.owner), VALIDITY))
    }

    /// Looks a name up; the guest has to forget what is returned.
    pub(crate) fn find(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (number, stat) = self.nodes.look_up(parent, name)?;
        Ok(entry(number, &stat, self.owner))
    }

    /// Calls `add` for each name of an open directory, from a position on, until it returns 0.
    fn list(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, &CStr) -> io::Result<usize>,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        let _position = handle.position.lock().unwrap_or_else(PoisonError::into_inner);
        seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
        let mut names = RawDir::new(&handle.file, &mut buffer);
        let mut added = false;
        while let Some(found) = names.next() {
            let found = found?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let shown = DirEntry {
                ino: found.ino(),
                offset: found.next_entry_cookie(),
                type_: kind_number(found.file_type()),
                name: name.to_bytes(),
            };
            match add(shown, name) {
                Ok(0) => break,
                Ok(_) => added = true,
                // What was added must reach the guest: it has to forget it.
                Err(_) if added => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self, inode: u64, handle: u64, data_only: bool) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        if data_only {
            rustix::fs::fdatasync(&handle.file)?;
        } else {
            rustix::fs::fsync(&handle.file)?;
        }
        Ok(())
    }
}

/// Returns the number of a kind of file in a directory, as `readdir(3)` has it.
fn kind_number(kind: FileType) -> u32 {
    let number = match kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    };
    number.into()
}

/// Locks are the guest's own, as are the checks of permissions; extended attributes do not exist. What is not here is answered
/// by `ENOSYS`, after which the guest's kernel does not ask again.
impl FileSystem for Directory {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::DO_READDIRPLUS
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::READDIRPLUS_AUTO;
        Ok(capable & wanted)
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.find(parent, name::check(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(no_entry()),
            found => found,
        }
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.nodes.forget(inode, count);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.nodes.forget(inode, count);
        }
    }

    fn getattr(&self, _: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.stat(inode, handle)
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.set_attributes(inode, &attr, handle, valid)?;
        self.stat(inode, handle)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let Opened { handle, kind } = self.nodes.get(inode)?;
        if kind != Kind::Symlink {
            return Err(Errno::INVAL.into());
        }
        Ok(readlinkat(&handle, c"", Vec::new())?.into_bytes())
    }

    fn symlink(&self, _: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_symlink(target, parent, name::check(name)?)
    }

    fn mknod(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make_node(parent, name::check(name)?, mode, umask)
    }

    fn mkdir(&self, _: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.make_directory(parent, name::check(name)?, mode & !umask)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name::check(name)?, rustix::fs::AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name::check(name)?, rustix::fs::AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.move_to((old_parent, name::check(old_name)?), (new_parent, name::check(new_name)?), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_link(inode, parent, name::check(name)?)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let file = self.open_existing(inode, flags)?;
        let (handle, options) = self.opened(inode, file)?;
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, file) = self.make_file(parent, name::check(name)?, &arguments)?;
        let opened = self.opened(entry.inode, file).inspect_err(|_| self.nodes.forget(entry.inode, 1));
        let (handle, options) = opened?;
        Ok((entry, Some(handle), options, None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        answer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, inode)?;
        let mut data = vec![0; (size as usize).min(MAX_DATA_BYTES).min(answer.available_bytes())];
        let mut length = 0;
        while length < data.len() {
            match rustix::io::pread(&handle.file, &mut data[length..], offset.saturating_add(length as u64)) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        answer.write_all(&data[..length])?;
        Ok(length)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        request: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        self.check_writable()?;
        let handle = self.handles.get(handle, inode)?;
        let size = size as usize;
        if size > MAX_DATA_BYTES {
            return Err(Errno::INVAL.into());
        }
        let mut data = vec![0; size];
        request.read_exact(&mut data)?;
        let mut length = 0;
        while length < size {
            match rustix::io::pwrite(&handle.file, &data[length..], offset.saturating_add(length as u64)) {
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(_) if length > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(length)
    }

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync(inode, handle, data_only)
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.allocate(inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        attributes::file_system(&self.node(inode)?.handle)
    }

    fn opendir(&self, _: &Context, inode: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let directory = self.reopen(&self.nodes.get(inode)?, Kind::Directory, OFlags::DIRECTORY)?;
        Ok((Some(self.handles.add(inode, directory)?), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, handle, offset, &mut |shown, _| add(shown))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, handle, offset, &mut |shown, name| {
            // What cannot be looked up is listed by name.
            let found = self.find(inode, name).unwrap_or_default();
            let added = add(shown, found);
            if found.inode != 0 && !matches!(added, Ok(1..)) {
                self.nodes.forget(found.inode, 1);
            }
            added
        })
    }

    fn fsyncdir(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.sync(inode, handle, data_only)
    }

    fn releasedir(&self, _: &Context, inode: u64, _: u32, handle: u64) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }

    fn lseek(&self, _: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let handle = self.handles.get(handle, inode)?;
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            // The guest's kernel knows everything else.
            _ => return Err(Errno::INVAL.into()),
        };
        let _position = handle.position.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seek(&handle.file, to)?)
    }
}

#[cfg(test)]
mod tests;
