//! Attributes of files, in the form of the protocol.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::Stat;

/// How long a guest may rely on names and attributes: what changes on the host is seen in the guest after this time at the
/// latest.
pub(crate) const VALIDITY: Duration = Duration::from_secs(1);

/// Returns the attributes of a file, as one of `owner`.
pub(crate) fn attributes(stat: &Stat, owner: u32) -> stat64 {
    let mut shown = Entry::default().attr;
    shown.st_dev = stat.st_dev;
    shown.st_ino = stat.st_ino;
    shown.st_mode = stat.st_mode;
    shown.st_nlink = stat.st_nlink;
    (shown.st_uid, shown.st_gid) = (owner, owner);
    shown.st_size = stat.st_size;
    shown.st_blocks = stat.st_blocks;
    shown.st_blksize = stat.st_blksize;
    (shown.st_atime, shown.st_atime_nsec) = (stat.st_atime, nanoseconds(stat.st_atime_nsec));
    (shown.st_mtime, shown.st_mtime_nsec) = (stat.st_mtime, nanoseconds(stat.st_mtime_nsec));
    (shown.st_ctime, shown.st_ctime_nsec) = (stat.st_ctime, nanoseconds(stat.st_ctime_nsec));
    shown
}

fn nanoseconds(count: u64) -> i64 {
    i64::try_from(count).unwrap_or_default()
}

/// Returns the answer that a file exists, under a number.
pub(crate) fn entry(number: u64, stat: &Stat, owner: u32) -> Entry {
    Entry {
        inode: number,
        attr: attributes(stat, owner),
        attr_timeout: VALIDITY,
        entry_timeout: VALIDITY,
        ..Entry::default()
    }
}

/// Returns the answer that there is no file with a name.
pub(crate) fn no_entry() -> Entry {
    Entry { entry_timeout: VALIDITY, ..Entry::default() }
}

/// Returns the sizes of the file system that a file is in.
pub(crate) fn file_system(file: impl AsFd) -> io::Result<libc::statvfs64> {
    let stat = rustix::fs::fstatvfs(file)?;
    #[expect(unsafe_code, reason = "the type has fields of the C library's own")]
    // SAFETY: a structure of integers, for which zero is a value.
    let mut sizes: libc::statvfs64 = unsafe { std::mem::zeroed() };
    sizes.f_bsize = stat.f_bsize;
    sizes.f_frsize = stat.f_frsize;
    sizes.f_blocks = stat.f_blocks;
    sizes.f_bfree = stat.f_bfree;
    sizes.f_bavail = stat.f_bavail;
    sizes.f_files = stat.f_files;
    sizes.f_ffree = stat.f_ffree;
    sizes.f_favail = stat.f_favail;
    sizes.f_namemax = stat.f_namemax;
    Ok(sizes)
}
