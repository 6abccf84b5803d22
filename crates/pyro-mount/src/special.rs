//! What is served and what is only listed.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::FileType;

/// Kinds of what a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    /// A device, a FIFO or a socket. It is never opened: that could block, or reach another program of the host.
    Special,
}

impl Kind {
    pub(crate) fn of(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            _ => Self::Special,
        }
    }
}

/// File systems whose files are made by the kernel when they are read, from `linux/magic.h`. They say much about the host, and
/// reading some of their files never ends.
const KERNEL: [u32; 22] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0xf97c_ff8c, // selinux
    0x4341_5d53, // smack
    0x5a3c_69f0, // apparmor
    0x6573_5543, // fusectl
    0x6759_6969, // rpc_pipefs
    0x0765_5821, // resctrl
    0x6e66_7364, // nfsd
];

/// Returns whether a file or directory is in a file system whose files are made by the kernel when they are read, such as `proc`.
/// Their directories are never served.
///
/// # Errors
/// The file system cannot be asked.
pub fn is_of_kernel(file: impl AsFd) -> io::Result<bool> {
    let number = rustix::fs::fstatfs(file)?.f_type;
    // As wide as the kernel's type for it, which has a sign on some systems.
    Ok(KERNEL.contains(&(number as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_recognised() {
        assert!(is_of_kernel(std::fs::File::open("/proc").unwrap()).unwrap());
        assert!(!is_of_kernel(tempfile::tempfile().unwrap()).unwrap());
    }
}
