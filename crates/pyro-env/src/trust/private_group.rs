//! Whether a user is alone in its group, as on hosts that give each user a group of its own and files group write
//! permission.

use std::collections::BTreeSet;
use std::path::Path;

use crate::fsio;

/// Maximum length of the files of users and groups that are read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Returns the group of this process if its user is the only member. `None` if others are or may be members.
pub(crate) fn of_this_process() -> Option<u32> {
    let read = |path: &str| {
        let content = fsio::read_bounded(Path::new(path), MAX_FILE_BYTES).ok()??;
        String::from_utf8(content).ok()
    };
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    is_private(&read("/etc/passwd")?, &read("/etc/group")?, user, group).then_some(group)
}

/// Whether `group` is the primary group of `user`, has the user's name, and has no other member. Those who are only known to a
/// directory service are not in the files, but no such service adds members to a group that is named after a local user.
fn is_private(passwd: &str, groups: &str, user: u32, group: u32) -> bool {
    let mut names = BTreeSet::new();
    for line in passwd.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { continue };
        let (uid, gid) = (uid.parse() == Ok(user), gid.parse() == Ok(group));
        match (uid, gid) {
            (true, true) => drop(names.insert(name)),
            // Another member, or a user whose group is another one.
            (true, false) | (false, true) => return false,
            (false, false) => {}
        }
    }
    let mut has_name_of_user = false;
    for line in groups.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else { continue };
        if gid.parse() != Ok(group) {
            continue;
        }
        has_name_of_user |= names.contains(name);
        let mut members = members.split(',').map(str::trim).filter(|member| !member.is_empty());
        if members.any(|member| !names.contains(member)) {
            return false;
        }
    }
    has_name_of_user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_if_its_user_is_the_only_member() {
        const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        const GROUPS: &str = "root:x:0:\nann:x:1000:\n";
        assert!(is_private(PASSWD, GROUPS, 1000, 1000));
        assert!(is_private(PASSWD, "ann:x:1000:ann\n", 1000, 1000), "a member twice");
        for (passwd, groups, why) in [
            (PASSWD, "ann:x:1000:ann,bob\n", "another member"),
            (PASSWD, "ann:x:1000:\nalias:x:1000:bob\n", "another member under another name"),
            (PASSWD, "users:x:1000:\n", "a group of several users"),
            (PASSWD, "root:x:0:\n", "a group that is not in the file"),
            ("root:x:0:0::/:/bin/sh\n", GROUPS, "a user who is not in the file"),
            ("ann:x:1000:100::/:/bin/sh\n", GROUPS, "another primary group"),
            ("ann:x:1000:1000::/:\nbob:x:1001:1000::/:\n", GROUPS, "the primary group of another user"),
            ("", "", "nothing is known"),
        ] {
            assert!(!is_private(passwd, groups, 1000, 1000), "{why}");
        }
    }
}
