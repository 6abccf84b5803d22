//! Users and groups of the guest, as `/etc/passwd` and `/etc/group` have them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use pyro_wire::{Failure, FailureKind};
use rustix::fs::{CWD, Gid, Mode, OFlags, openat};
use rustix::process::Uid;

use super::spawn::Credentials;
use crate::failure::{During, refused};

/// Maximum size of a file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Maximum number of supplementary groups, the kernel's.
const MAX_GROUPS: usize = 65_536;
/// Maximum length of the name of a user, its group included, in bytes.
const MAX_SPECIFICATION_BYTES: usize = 256;
/// The shell of users that have none.
const DEFAULT_SHELL: &str = "/bin/sh";
/// The better shell of interactive sessions.
const BASH: &str = "/bin/bash";

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// Absent: the agent's own, root's.
    pub(super) credentials: Option<Credentials>,
    pub(super) name: String,
    pub(super) home: String,
    pub(super) shell: String,
}

impl User {
    /// Root, as `/etc/passwd` has it. Root needs no entry.
    pub(super) fn root(etc: &Path) -> Self {
        // Root must be able to repair a file that cannot be read.
        let passwd = read(&etc.join("passwd")).unwrap_or_default();
        let entry = lines(&passwd).filter_map(Entry::parse).find(|entry| entry.uid == 0);
        let (name, home, shell) =
            entry.map_or(("root", "/root", ""), |entry| (entry.name, entry.home, entry.shell));
        Self {
            credentials: None,
            name: name.to_owned(),
            home: or_default(home, "/root"),
            shell: or_default(shell, DEFAULT_SHELL),
        }
    }

    /// Returns the shell of an interactive session: the user's, or bash where that is the default and bash exists.
    pub(super) fn login_shell(&self) -> &str {
        match &*self.shell {
            DEFAULT_SHELL if Path::new(BASH).exists() => BASH,
            shell => shell,
        }
    }

    /// Its number; root's is zero.
    pub(super) fn uid(&self) -> Uid {
        self.credentials.as_ref().map_or(Uid::ROOT, |credentials| credentials.uid)
    }

    /// Finds the user of a command: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. A number needs no entry; its group is then
    /// root's unless one is given. An explicit group is the only one, as with containers.
    pub(super) fn find(specification: &str, etc: &Path) -> Result<Self, Failure> {
        let step = || format!("looking up the user {specification:?}");
        let fail = |kind, cause: &str| Failure { kind, ..refused(step(), cause) };
        let invalid = || {
            let cause = "invalid user: expected NAME, UID, NAME:GROUP or UID:GID";
            Failure { kind: FailureKind::InvalidUser, ..refused("looking up the user of the command", cause) }
        };
        if specification.len() > MAX_SPECIFICATION_BYTES || specification.chars().any(char::is_control) {
            return Err(invalid());
        }
        let (user, group) = match specification.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (specification, None),
        };
        let user = Identifier::parse(user).ok_or_else(invalid)?;
        let group = group.map(|group| Identifier::parse(group).ok_or_else(invalid)).transpose()?;

        let passwd = read(&etc.join("passwd")).during(format!("reading {}/passwd", etc.display()))?;
        let entry = lines(&passwd).filter_map(Entry::parse).find(|entry| match user {
            Identifier::Number(uid) => entry.uid == uid,
            Identifier::Name(name) => entry.name == name,
        });
        let (uid, primary) = match (&entry, user) {
            (Some(entry), _) => (entry.uid, entry.gid),
            (None, Identifier::Number(uid)) => (uid, 0),
            (None, Identifier::Name(_)) => return Err(fail(FailureKind::UserNotFound, "user not found")),
        };
        let groups_file = || read(&etc.join("group")).during(format!("reading {}/group", etc.display()));
        let (gid, groups) = match group {
            Some(Identifier::Number(gid)) => (gid, vec![gid]),
            Some(Identifier::Name(name)) => {
                let file = groups_file()?;
                let found = lines(&file).filter_map(Group::parse).find(|group| group.name == name.as_bytes());
                let gid = found
                    .map(|group| group.gid)
                    .ok_or_else(|| fail(FailureKind::GroupNotFound, "group not found"))?;
                (gid, vec![gid])
            }
            None => {
                let mut groups = vec![primary];
                if let Some(entry) = &entry {
                    let file = groups_file()?;
                    let others = lines(&file)
                        .filter_map(Group::parse)
                        .filter(|group| group.has_member(entry.name))
                        .map(|group| group.gid);
                    groups.extend(others.filter(|&gid| gid != primary).take(MAX_GROUPS - 1));
                }
                (primary, groups)
            }
        };
        Ok(Self {
            credentials: Some(Credentials {
                uid: Uid::from_raw(uid),
                gid: Gid::from_raw(gid),
                groups: groups.into_iter().map(Gid::from_raw).collect(),
            }),
            name: entry.as_ref().map_or_else(|| uid.to_string(), |entry| entry.name.to_owned()),
            home: entry.as_ref().map_or_else(|| "/".to_owned(), |entry| or_default(entry.home, "/")),
            shell: or_default(entry.as_ref().map_or("", |entry| entry.shell), DEFAULT_SHELL),
        })
    }
}

fn or_default(text: &str, default: &str) -> String {
    if text.is_empty() { default } else { text }.to_owned()
}

#[derive(Clone, Copy)]
enum Identifier<'a> {
    Number(u32),
    Name(&'a str),
}

impl<'a> Identifier<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.is_empty() {
            None
        } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
            number(text).map(Self::Number)
        } else {
            Some(Self::Name(text))
        }
    }
}

/// A number of a user or a group. The highest stands for none.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number| number != u32::MAX)
}

/// A line of `/etc/passwd`. Only the fields that are used must be text.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = fields(line);
        let (name, _password) = (text(fields.next()?)?, fields.next()?);
        let (uid, gid) = (number(text(fields.next()?)?)?, number(text(fields.next()?)?)?);
        let (_comment, home) = (fields.next()?, text(fields.next()?)?);
        let shell = text(fields.next().unwrap_or_default())?;
        (!name.is_empty()).then_some(Self { name, uid, gid, home, shell })
    }
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = fields(line);
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = number(text(fields.next()?)?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn has_member(&self, name: &str) -> bool {
        self.members.split(|&byte| byte == b',').any(|member| member == name.as_bytes())
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
}

fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b':')
}

/// Returns a field that is text without NUL.
fn text(field: &[u8]) -> Option<&str> {
    str::from_utf8(field).ok().filter(|text| !text.contains('\0'))
}

/// Reads a regular file that may be hostile. A file that does not exist is empty.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        opened => File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("file is too large: the maximum is {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1001:J\xfcrgen,,:/home/agent:/bin/zsh\n\
        nohome:x:7:7:::\nbroken\n:x:1:1::/:\n\xff\xfe:x:3:3::/:\nbig:x:99999999999:1::/:\nnone:x:4294967295:1::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nagent:x:1001:\ndocker:x:44:b\xf6b,agent\nsudo:x:27:agent\nbad:x:y:agent\n";

    fn etc() -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), PASSWD).unwrap();
        fs::write(etc.path().join("group"), GROUP).unwrap();
        etc
    }

    fn ids(user: &User) -> (u32, u32, Vec<u32>) {
        let credentials = user.credentials.as_ref().unwrap();
        let groups = credentials.groups.iter().map(|gid| gid.as_raw()).collect();
        (credentials.uid.as_raw(), credentials.gid.as_raw(), groups)
    }

    #[test]
    fn users_are_found_in_every_form() {
        let etc = etc();
        for (specification, uid, gid, groups, name, home) in [
            ("agent", 1000, 1001, vec![1001, 44, 27], "agent", "/home/agent"),
            ("1000", 1000, 1001, vec![1001, 44, 27], "agent", "/home/agent"),
            ("agent:sudo", 1000, 27, vec![27], "agent", "/home/agent"),
            ("agent:5", 1000, 5, vec![5], "agent", "/home/agent"),
            ("4242", 4242, 0, vec![0], "4242", "/"),
            ("4242:4343", 4242, 4343, vec![4343], "4242", "/"),
            ("nohome", 7, 7, vec![7], "nohome", "/"),
            ("root", 0, 0, vec![0], "root", "/root"),
        ] {
            let user = User::find(specification, etc.path()).unwrap();
            assert_eq!(ids(&user), (uid, gid, groups), "{specification}");
            assert_eq!((user.name.as_str(), user.home.as_str()), (name, home));
        }
        assert_eq!(User::find("agent", etc.path()).unwrap().shell, "/bin/zsh");
        assert_eq!(User::find("nohome", etc.path()).unwrap().shell, "/bin/sh");
    }

    #[test]
    fn root_has_the_home_and_the_shell_of_its_entry_and_needs_none() {
        let etc = etc();
        let root = User::root(etc.path());
        assert_eq!((&*root.name, &*root.home, &*root.shell), ("root", "/root", "/bin/bash"));
        assert_eq!((root.credentials.as_ref(), root.login_shell()), (None, "/bin/bash"));
        fs::write(etc.path().join("passwd"), "boss:x:0:0::/home/boss:/bin/zsh\n").unwrap();
        let root = User::root(etc.path());
        assert_eq!((&*root.name, &*root.home, root.login_shell()), ("boss", "/home/boss", "/bin/zsh"));
        fs::remove_file(etc.path().join("passwd")).unwrap();
        let root = User::root(etc.path());
        assert_eq!((&*root.name, &*root.home, &*root.shell), ("root", "/root", "/bin/sh"));
    }

    #[test]
    fn what_is_not_found_or_not_a_user_is_a_failure_with_its_kind() {
        let etc = etc();
        for (specification, kind) in [
            ("missing-user", FailureKind::UserNotFound),
            ("big", FailureKind::UserNotFound),
            ("none", FailureKind::UserNotFound),
            ("agent:nogroup", FailureKind::GroupNotFound),
            ("agent:bad", FailureKind::GroupNotFound),
            ("", FailureKind::InvalidUser),
            (":", FailureKind::InvalidUser),
            ("agent:", FailureKind::InvalidUser),
            (":0", FailureKind::InvalidUser),
            ("4294967295", FailureKind::InvalidUser),
            ("99999999999", FailureKind::InvalidUser),
            ("a\nb", FailureKind::InvalidUser),
            ("a\0", FailureKind::InvalidUser),
        ] {
            assert_eq!(User::find(specification, etc.path()).unwrap_err().kind, kind, "{specification:?}");
        }
        assert_eq!(User::find(&"x".repeat(257), etc.path()).unwrap_err().kind, FailureKind::InvalidUser);
    }

    #[test]
    fn numbers_need_no_files_and_hostile_files_are_refused() {
        let etc = tempfile::tempdir().unwrap();
        assert_eq!(ids(&User::find("5:6", etc.path()).unwrap()), (5, 6, vec![6]));
        assert_eq!(User::find("root", etc.path()).unwrap_err().kind, FailureKind::UserNotFound);
        let passwd = etc.path().join("passwd");
        rustix::fs::mknodat(CWD, &passwd, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(User::find("root", etc.path()).unwrap_err().cause.contains("regular file"));
        fs::remove_file(&passwd).unwrap();
        File::create(&passwd).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(User::find("root", etc.path()).unwrap_err().cause.contains("too large"));
    }
}
