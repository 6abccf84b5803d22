//! What changes the directory. Each of these begins with the check whether the guest may do that.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64};
use fuse_backend_rs::api::filesystem::{Entry, SetattrValid};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::nodes::Opened;
use crate::special::Kind;

/// The bits of a mode that a guest can set: neither set-user-ID nor set-group-ID, which would mean users of the host.
const MODE_BITS: u32 = 0o777;

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & MODE_BITS)
}

impl Directory {
    fn parent(&self, number: u64) -> io::Result<Arc<OwnedFd>> {
        self.check_writable()?;
        self.nodes.directory(number)
    }

    /// Opens a file, and truncates it if that is what the guest wants.
    pub(crate) fn open_existing(&self, inode: u64, flags: u32) -> io::Result<File> {
        let opening = self.open_flags(flags)?;
        let file = self.reopen(&self.node(inode)?, Kind::File, opening)?;
        if OFlags::from_bits_retain(flags).contains(OFlags::TRUNC) {
            rustix::fs::ftruncate(&file, 0)?;
        }
        Ok(file)
    }

    /// Creates a file and opens it, or opens the one that is there.
    pub(crate) fn make_file(
        &self,
        parent: u64,
        name: &CStr,
        arguments: &CreateIn,
    ) -> io::Result<(Entry, File)> {
        let directory = self.parent(parent)?;
        let opening = self.open_flags(arguments.flags)?;
        let exclusive = OFlags::from_bits_retain(arguments.flags).contains(OFlags::EXCL);
        let flags = opening | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = rustix::fs::openat(&directory, name, flags, mode(arguments.mode & !arguments.umask));
        let created = match created {
            Ok(file) => Some(File::from(file)),
            Err(Errno::EXIST) if !exclusive => None,
            Err(error) => return Err(error.into()),
        };
        let entry = self.find(parent, name)?;
        let file = match created {
            Some(file) => Ok(file),
            None => self.open_existing(entry.inode, arguments.flags),
        };
        let file = file.inspect_err(|_| self.nodes.forget(entry.inode, 1))?;
        Ok((entry, file))
    }

    /// Creates an empty file. Devices, FIFOs and sockets are for programs of the host.
    pub(crate) fn make_node(&self, parent: u64, name: &CStr, bits: u32, umask: u32) -> io::Result<Entry> {
        let directory = self.parent(parent)?;
        if FileType::from_raw_mode(bits) != FileType::RegularFile {
            return Err(Errno::PERM.into());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&directory, name, flags, mode(bits & !umask))?;
        self.find(parent, name)
    }

    pub(crate) fn make_directory(&self, parent: u64, name: &CStr, bits: u32) -> io::Result<Entry> {
        rustix::fs::mkdirat(self.parent(parent)?, name, mode(bits))?;
        self.find(parent, name)
    }

    /// Creates a symbolic link. It may lead anywhere: it is followed in the guest, and never here.
    pub(crate) fn make_symlink(&self, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        rustix::fs::symlinkat(target, self.parent(parent)?, name)?;
        self.find(parent, name)
    }

    /// Gives a file another name.
    pub(crate) fn make_link(&self, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let directory = self.parent(parent)?;
        let Opened { handle, kind: Kind::File } = self.nodes.get(inode)? else {
            return Err(Errno::PERM.into());
        };
        let path = handle.as_raw_fd().to_string();
        rustix::fs::linkat(&self.descriptors, path, &directory, name, AtFlags::SYMLINK_FOLLOW)?;
        self.find(parent, name)
    }

    pub(crate) fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.parent(parent)?, name, flags)?)
    }

    /// Renames, replaces or exchanges.
    pub(crate) fn move_to(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> io::Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        // The third one would create a device.
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL.into());
        }
        self.check_writable()?;
        self.nodes.rename(from, to, flags)
    }

    /// Changes mode, size and times. A change of the owner has no effect: everything belongs to one owner. A symbolic link has no mode
    /// and no size that can be changed.
    pub(crate) fn set_attributes(
        &self,
        inode: u64,
        attributes: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<()> {
        self.check_writable()?;
        let opened = self.node(inode)?;
        let path = opened.handle.as_raw_fd().to_string();
        let is_served = match opened.kind {
            Kind::Directory | Kind::File => true,
            Kind::Symlink => !valid.intersects(SetattrValid::MODE | SetattrValid::SIZE),
            // Nothing of it is the guest's.
            Kind::Special => false,
        };
        if !is_served {
            return Err(Errno::OPNOTSUPP.into());
        }
        if valid.contains(SetattrValid::MODE) {
            rustix::fs::chmodat(
                &self.descriptors,
                path.as_str(),
                mode(attributes.st_mode),
                AtFlags::empty(),
            )?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(attributes.st_size).map_err(|_| Errno::INVAL)?;
            match handle {
                Some(handle) => rustix::fs::ftruncate(&self.handles.get(handle, inode)?.file, size)?,
                None => rustix::fs::ftruncate(self.reopen(&opened, Kind::File, OFlags::WRONLY)?, size)?,
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |set, now, seconds, nanoseconds| match () {
                () if valid.contains(now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                () if valid.contains(set) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
                () => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            let times = Timestamps {
                last_access: time(
                    SetattrValid::ATIME,
                    SetattrValid::ATIME_NOW,
                    attributes.st_atime,
                    attributes.st_atime_nsec,
                ),
                last_modification: time(
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    attributes.st_mtime,
                    attributes.st_mtime_nsec,
                ),
            };
            match opened.kind {
                // Of the link itself, wherever it leads.
                Kind::Symlink => rustix::fs::utimensat(&opened.handle, c"", &times, AtFlags::EMPTY_PATH)?,
                _ => rustix::fs::utimensat(&self.descriptors, path.as_str(), &times, AtFlags::empty())?,
            }
        }
        Ok(())
    }

    /// Reserves space, or makes a hole.
    pub(crate) fn allocate(
        &self,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_writable()?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(rustix::fs::fallocate(&self.handles.get(handle, inode)?.file, mode, offset, length)?)
    }
}
