//! Whose rights a program has on the host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Stat, Uid, chownat};
use rustix::io::Errno;

use crate::policy::Access;

/// The first of the users that programs run as when root starts them: a range that no distribution and no container
/// manager assigns to anyone.
const FIRST_UID: u32 = 0x7000_0000;
/// The user without rights of every system, where a container does not know the range.
const UNPRIVILEGED: u32 = 65534;

/// Whose rights a program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Those of the user who starts it.
    Caller,
    /// Those of a user who owns nothing but the files that are handed over. Only root can start such a program.
    Own {
        /// The user.
        user: u32,
        /// The group. It has the same number, unless a device needs another one.
        group: u32,
    },
}

impl Identity {
    /// Returns the identity for a program that this process starts: if it is root's, a user that no other living process
    /// hands out, because it is derived from the process ID. [`Identity::Caller`] if there is no other user.
    pub fn for_program() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Caller;
        }
        let own = FIRST_UID + rustix::process::getpid().as_raw_pid().cast_unsigned();
        let is_known = |id| is_mapped("/proc/self/uid_map", id) && is_mapped("/proc/self/gid_map", id);
        let known = [own, UNPRIVILEGED].into_iter().find(|id| is_known(*id));
        // In a user namespace with no other user, root is an ordinary user of the host.
        known.map_or(Self::Caller, |id| Self::Own { user: id, group: id })
    }

    /// Returns the identity for a program that works on files of this user: if this process is root's and the user exists, that
    /// user.
    pub fn of_owner(user: u32, group: u32) -> Self {
        let is_known = || is_mapped("/proc/self/uid_map", user) && is_mapped("/proc/self/gid_map", group);
        match rustix::process::geteuid().is_root() && user != 0 && is_known() {
            true => Self::Own { user, group },
            false => Self::Caller,
        }
    }

    /// Returns the identity with which a device can be opened: the same, if its mode lets it, or else with the device's group.
    /// `None`: only the device's owner can open it.
    pub fn for_device(self, device: &fs::Metadata) -> Option<Self> {
        let Self::Own { user, .. } = self else { return Some(self) };
        let group = device.gid();
        match device.mode() {
            mode if mode & 0o006 == 0o006 => Some(self),
            // Root's group opens more than devices.
            mode if mode & 0o060 == 0o060 && group != 0 && is_mapped("/proc/self/gid_map", group) => {
                Some(Self::Own { user, group })
            }
            _ => None,
        }
    }

    /// Returns the user on the host.
    pub(crate) fn uid(self) -> u32 {
        match self {
            Self::Caller => rustix::process::geteuid().as_raw(),
            Self::Own { user, .. } => user,
        }
    }

    /// Returns the group on the host.
    pub(crate) fn gid(self) -> u32 {
        match self {
            Self::Caller => rustix::process::getegid().as_raw(),
            Self::Own { group, .. } => group,
        }
    }

    /// Makes a file usable for the program: gives it a file that it writes to, and checks that it may read others.
    pub(crate) fn hand_over(
        self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        access: Access,
    ) -> Result<(), HandOverError> {
        if access == Access::Write {
            let (uid, gid) = (self.uid(), self.gid());
            if (stat.st_uid, stat.st_gid) == (uid, gid) || self == Self::Caller && stat.st_uid == uid {
                return Ok(());
            }
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            return chownat(file.as_fd(), c"", uid, gid, AtFlags::EMPTY_PATH).map_err(|errno| match self {
                // Root of a container may lack the capability, or the file system has no owners.
                Self::Own { .. } if OWNERSHIP_REFUSED.contains(&errno) => {
                    HandOverError::Identity(errno.into())
                }
                _ => HandOverError::File(errno.into()),
            });
        }
        if self == Self::Caller {
            return Ok(());
        }
        let others_need = if access == Access::Device { 0o6 } else { 0o4 };
        let group_needs = others_need << 3;
        if stat.st_mode & others_need == others_need
            || stat.st_gid == self.gid() && stat.st_mode & group_needs == group_needs
        {
            return Ok(());
        }
        Err(HandOverError::File(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "other users may not read it, and a program that root starts here does not run as root",
        )))
    }
}

/// What `chown` answers where no file can be given to another user.
const OWNERSHIP_REFUSED: [Errno; 4] = [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];

/// Why a file was not handed over.
#[derive(Debug)]
pub(crate) enum HandOverError {
    /// This process cannot give files to that user, so that no program can be started as that user.
    Identity(io::Error),
    /// The program cannot use this file.
    File(io::Error),
}

/// Returns whether a user or group exists in this user namespace.
fn is_mapped(map: impl AsRef<Path>, id: u32) -> bool {
    let text = fs::read_to_string(map).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        match (fields.next().flatten(), fields.next(), fields.next().flatten()) {
            (Some(first), Some(_), Some(count)) => (first..first + count).contains(&id.into()),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_says_which_users_exist() {
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("map");
        fs::write(&map, "         0       1000          1\n         1     100000      65536\n").unwrap();
        for (id, expected) in [(0, true), (1, true), (65536, true), (65537, false), (FIRST_UID, false)] {
            assert_eq!(is_mapped(&map, id), expected, "{id}");
        }
        assert!(!is_mapped(dir.path().join("none"), 0));
    }

    #[test]
    fn a_device_is_opened_by_its_mode_or_its_group_or_not_at_all() {
        let own = Identity::Own { user: 1000, group: 1000 };
        let null = fs::metadata("/dev/null").unwrap();
        assert_eq!(own.for_device(&null), Some(own), "everybody may open it");
        let file = tempfile::NamedTempFile::new().unwrap();
        let group = file.as_file().metadata().unwrap().gid();
        let with_mode = |mode| {
            file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            own.for_device(&file.as_file().metadata().unwrap())
        };
        assert_eq!(with_mode(0o600), None);
        let of_group = (group != 0).then_some(Identity::Own { user: 1000, group });
        assert_eq!(with_mode(0o660), of_group, "root's group is never used");
        assert_eq!(Identity::Caller.for_device(&file.as_file().metadata().unwrap()), Some(Identity::Caller));
    }

    #[test]
    fn a_program_never_runs_as_root() {
        assert_ne!(Identity::for_program().uid(), 0);
    }
}
