//! Directories of the host that a guest has mounted.

use std::convert::Infallible;
use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// Maximum number of mounted directories of one guest.
pub const MAX_MOUNTS: usize = 16;
/// Maximum length of a path in the guest, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Directories of the guest's kernel, on which nothing is mounted, nor below them.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A directory of this host that a guest has mounted.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DirectoryMount {
    /// Absolute path of the directory on this host.
    pub host: String,
    /// Absolute path in the guest. A directory that does not exist is made.
    pub guest: String,
    /// Let the guest change the directory.
    #[serde(default)]
    pub writable: bool,
    /// Number of the user and the group of the guest that own everything in it, as the guest sees it. What is made in it
    /// belongs to the user of this host.
    #[serde(default)]
    pub uid: u32,
}

/// A directory that a task has mounted.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct MountTarget {
    /// Absolute path in the guest.
    pub guest: String,
}

/// A directory of this host that clients may have mounted, as well as what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountRoot {
    /// Path of the directory on this host.
    pub host: String,
    /// Guests may change it, if the client asks for that.
    pub writable: bool,
}

/// Text that is not a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid mount: expected HOST:GUEST, HOST:GUEST:ro, or HOST:GUEST:rw, optionally with ,uid=NUMBER")]
pub struct InvalidMount;

impl FromStr for DirectoryMount {
    type Err = InvalidMount;

    fn from_str(text: &str) -> Result<Self, InvalidMount> {
        let (host, rest) = text.split_once(':').ok_or(InvalidMount)?;
        let (guest, options) = rest.split_once(':').unwrap_or((rest, "ro"));
        let mut mount = Self { host: host.to_owned(), guest: guest.to_owned(), writable: false, uid: 0 };
        for option in options.split(',') {
            match option.split_once('=') {
                None if option == "ro" => mount.writable = false,
                None if option == "rw" => mount.writable = true,
                Some(("uid", number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                    mount.uid = number.parse().map_err(|_| InvalidMount)?;
                }
                _ => return Err(InvalidMount),
            }
        }
        if host.is_empty() || guest.is_empty() { Err(InvalidMount) } else { Ok(mount) }
    }
}

impl fmt::Display for DirectoryMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, guest, writable, uid } = self;
        write!(f, "{host}:{guest}:{}", if *writable { "rw" } else { "ro" })?;
        if *uid == 0 { Ok(()) } else { write!(f, ",uid={uid}") }
    }
}

impl DirectoryMount {
    /// Checks the form of both paths. Whether the directory exists and may be mounted is for the engine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidInput, message).naming("mounts"));
        if !Path::new(&self.host).is_absolute() || self.host.contains('\0') {
            return invalid(format!("invalid mount: {} is not an absolute path", self.host));
        }
        if !is_plain(&self.guest) {
            let text = "expected an absolute path in the guest, without `.` and `..`, other than /";
            return invalid(format!("invalid mount point {}: {text}", self.guest));
        }
        if KERNEL_DIRECTORIES.iter().any(|directory| Path::new(&self.guest).starts_with(directory)) {
            let text = "/proc, /sys, and /dev belong to the guest's kernel";
            return invalid(format!("invalid mount point {}: {text}", self.guest));
        }
        Ok(())
    }
}

impl FromStr for MountRoot {
    type Err = Infallible;

    /// Reads `DIR`, `DIR:ro`, or `DIR:rw`.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (host, writable) = match text.strip_suffix(":rw") {
            Some(host) => (host, true),
            None => (text.strip_suffix(":ro").unwrap_or(text), false),
        };
        Ok(Self { host: host.to_owned(), writable })
    }
}

impl MountRoot {
    /// Returns whether a directory may be mounted, and in this way. Both paths must be without symbolic links.
    pub fn allows(&self, mount: &DirectoryMount) -> bool {
        Path::new(&mount.host).starts_with(&self.host) && (self.writable || !mount.writable)
    }
}

/// Checks the mounts of one guest.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_mounts(mounts: &[DirectoryMount]) -> Result<(), Error> {
    if mounts.len() > MAX_MOUNTS {
        let message = format!("too many mounts: the maximum is {MAX_MOUNTS}");
        return Err(Error::new(ErrorKind::InvalidInput, message).naming("mounts"));
    }
    for (index, mount) in mounts.iter().enumerate() {
        mount.check()?;
        check_apart(&mounts[..index], mount)?;
    }
    Ok(())
}

/// Checks that a mount point is neither that of another mount, nor in it, nor above it: what is mounted last would hide files of
/// the other, and the guest would write to a different directory than the path says.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
fn check_apart(others: &[DirectoryMount], mount: &DirectoryMount) -> Result<(), Error> {
    let Some(other) = others.iter().find(|other| overlap(&other.guest, &mount.guest)) else { return Ok(()) };
    let message = match other.guest == mount.guest {
        true => format!("two directories cannot be mounted on {}", mount.guest),
        false => {
            let (outer, inner) = if mount.guest.starts_with(&other.guest) {
                (&other.guest, &mount.guest)
            } else {
                (&mount.guest, &other.guest)
            };
            format!("mounts cannot be nested: {inner} is in {outer}")
        }
    };
    Err(Error::new(ErrorKind::InvalidInput, message).naming("mounts"))
}

/// Returns whether one of two mount points is the other one or in it.
fn overlap(one: &str, other: &str) -> bool {
    Path::new(one).starts_with(other) || Path::new(other).starts_with(one)
}

/// Returns whether the path is absolute, not the root, and written in the only way there is.
fn is_plain(path: &str) -> bool {
    let mut parts = path.split('/');
    path.len() <= MAX_PATH_BYTES
        && !path.contains('\0')
        && parts.next() == Some("")
        && parts.all(|part| !matches!(part, "" | "." | ".."))
        && Path::new(path).components().any(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> DirectoryMount {
        text.parse().unwrap()
    }

    #[test]
    fn mounts_are_read_only_unless_the_text_says_otherwise() {
        for (text, writable, uid, shown) in [
            ("/src:/workspace", false, 0, "/src:/workspace:ro"),
            ("/src:/workspace:ro", false, 0, "/src:/workspace:ro"),
            ("/src:/workspace:rw", true, 0, "/src:/workspace:rw"),
            ("/src:/workspace:rw,uid=1000", true, 1000, "/src:/workspace:rw,uid=1000"),
            ("src:/workspace:uid=7", false, 7, "src:/workspace:ro,uid=7"),
        ] {
            let read = mount(text);
            assert_eq!((read.writable, read.uid), (writable, uid), "{text}");
            assert_eq!(read.to_string(), shown);
        }
        for text in
            ["", "/src", ":/workspace", "/src:", "/a:/b:x", "/a:/b:rw:ro", "/a:/b:uid=", "/a:/b:uid=-1"]
        {
            assert_eq!(text.parse::<DirectoryMount>(), Err(InvalidMount), "{text}");
        }
    }

    #[test]
    fn mount_points_are_plain_paths_outside_the_kernels_directories() {
        for guest in ["/workspace", "/mnt/a b", "/home/user/.cache", "/devices"] {
            mount(&format!("/src:{guest}")).check().unwrap();
        }
        for guest in
            ["/", "//", "workspace", "/a/", "/a//b", "/a/./b", "/a/../b", "/proc", "/sys/fs", "/dev/shm"]
        {
            let error = mount(&format!("/src:{guest}")).check().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidInput, "{guest}");
        }
        assert!(mount("src:/workspace").check().is_err());
    }

    #[test]
    fn one_guest_has_few_mounts_and_each_in_a_place_of_its_own() {
        let many: Vec<_> = (0..=MAX_MOUNTS).map(|number| mount(&format!("/src:/m/{number}"))).collect();
        check_mounts(&many[1..]).unwrap();
        assert!(check_mounts(&many).is_err());
        assert!(check_mounts(&[many[0].clone(), many[0].clone()]).is_err());
    }

    #[test]
    fn mounts_are_not_nested() {
        let mounts = |guests: [&str; 2]| guests.map(|guest| mount(&format!("/src:{guest}")));
        for guests in [["/a", "/a/b"], ["/a/b/c", "/a"]] {
            let error = check_mounts(&mounts(guests)).unwrap_err();
            let inner = guests.iter().max_by_key(|guest| guest.len()).unwrap();
            assert_eq!(error.message, format!("mounts cannot be nested: {inner} is in /a"));
        }
        for guests in [["/a", "/ab"], ["/a/b", "/a/c"]] {
            check_mounts(&mounts(guests)).unwrap();
        }
    }
}
