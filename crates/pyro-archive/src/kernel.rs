//! File systems whose files are made by the kernel when they are read: their sizes say nothing, and some never end.

use std::os::fd::AsFd;

use rustix::io::Result;

/// Their numbers, from `linux/magic.h`.
const KERNEL: [u32; 17] = [
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
];

/// Whether a file or directory is in a file system whose files the kernel makes when they are read, such as `/proc`.
///
/// # Errors
/// The file system cannot be examined.
pub fn owns(handle: impl AsFd) -> Result<bool> {
    let number = rustix::fs::fstatfs(handle)?.f_type;
    // As wide as the kernel's type for it, which has a sign on some systems.
    Ok(KERNEL.contains(&(number as u32)))
}
