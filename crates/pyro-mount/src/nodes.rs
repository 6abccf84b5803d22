//! What the guest has looked up: each file or directory under a number.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::api::filesystem::ROOT_ID;
use rustix::fs::{Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use crate::special::{Kind, is_of_kernel};

/// Maximum number of files and directories that a guest can have looked up without forgetting them. Each takes 300 bytes, or 600 if
/// its name has the maximum length and it was opened.
const MAX_NODES: usize = 1 << 19;
/// Maximum depth at which a directory that is not open is found again.
const MAX_DEPTH: usize = 1024;

/// A file or directory that the guest has looked up. What is open is the way to it, not its content.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) handle: Arc<OwnedFd>,
    pub(crate) kind: Kind,
}

/// The files and directories that the guest has looked up. At most a given number of them is open; the others are found again
/// by their names, and are the same if their numbers on the host are.
#[derive(Debug)]
pub(crate) struct Nodes {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Identity, u64>,
    next: u64,
    /// Those that are open, the oldest first, and some that were forgotten meanwhile. The root is not among them.
    open: VecDeque<u64>,
    max_open: usize,
}

/// What a file or directory is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    kind: Kind,
    /// Where it was found last.
    parent: u64,
    name: CString,
    /// How often the guest has to forget it.
    lookups: u64,
    handle: Option<Arc<OwnedFd>>,
    /// What it was when the guest opened it last.
    version: Option<Box<Version>>,
}

/// Changes with a file's content, as far as the host's clock shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

impl Nodes {
    /// Begins with the directory to serve, of which at most `max_open` files and directories are open at once.
    pub(crate) fn new(root: OwnedFd, max_open: usize) -> io::Result<Self> {
        let identity = Identity::of(&fstat(&root)?);
        let root = Node {
            identity,
            kind: Kind::Directory,
            parent: ROOT_ID,
            name: CString::default(),
            lookups: 1,
            handle: Some(Arc::new(root)),
            version: None,
        };
        Ok(Self {
            table: Mutex::new(Table {
                nodes: [(ROOT_ID, root)].into(),
                numbers: [(identity, ROOT_ID)].into(),
                next: ROOT_ID + 1,
                open: VecDeque::new(),
                max_open,
            }),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what has this number.
    ///
    /// # Errors
    /// `ESTALE` if it is not there any more.
    pub(crate) fn get(&self, number: u64) -> io::Result<Opened> {
        self.table().get(number)
    }

    /// Returns a directory.
    ///
    /// # Errors
    /// As [`Self::get`], or `ENOTDIR`.
    pub(crate) fn directory(&self, number: u64) -> io::Result<Arc<OwnedFd>> {
        match self.get(number)? {
            Opened { handle, kind: Kind::Directory } => Ok(handle),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// Looks a name up in a directory. The guest has to forget what is found.
    pub(crate) fn look_up(&self, parent: u64, name: &CStr) -> io::Result<(u64, Stat)> {
        let directory = self.directory(parent)?;
        let handle = open_path(&directory, name)?;
        let stat = fstat(&handle)?;
        let crosses = fstat(&directory)?.st_dev != stat.st_dev;
        if crosses && is_of_kernel(&handle)? {
            return Err(Errno::ACCESS.into());
        }
        let number = self.table().add(parent, name, handle, &stat)?;
        Ok((number, stat))
    }

    /// The guest has forgotten this many look-ups.
    pub(crate) fn forget(&self, number: u64, count: u64) {
        self.table().forget(number, count);
    }

    /// What is now called `name` in `parent` was moved there by the guest.
    pub(crate) fn moved(&self, parent: u64, name: &CStr) {
        let mut table = self.table();
        let Ok(Opened { handle: directory, .. }) = table.get(parent) else { return };
        let Ok(stat) = rustix::fs::statat(&directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        let Some(number) = table.numbers.get(&Identity::of(&stat)).copied() else { return };
        if let Some(node) = table.nodes.get_mut(&number).filter(|_| number != ROOT_ID) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// Returns whether a file is unchanged since the guest opened it last.
    pub(crate) fn is_unchanged(&self, number: u64, stat: &Stat) -> bool {
        let version = Some(Box::new(Version {
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }));
        match self.table().nodes.get_mut(&number) {
            Some(node) => {
                let is_unchanged = node.version == version;
                node.version = version;
                is_unchanged
            }
            None => false,
        }
    }

    /// Number of files and directories that are open, without the root.
    #[cfg(test)]
    pub(crate) fn open_count(&self) -> usize {
        let table = self.table();
        table.nodes.values().filter(|node| node.handle.is_some()).count() - 1
    }

    /// Number of files and directories that the guest has to forget.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.table().nodes.len()
    }
}

impl Table {
    fn get(&mut self, number: u64) -> io::Result<Opened> {
        // From the node to the nearest directory above it that is open.
        let mut chain = Vec::new();
        let mut current = number;
        let mut handle = loop {
            let node = self.nodes.get(&current).ok_or(Errno::STALE)?;
            if let Some(handle) = &node.handle {
                break Arc::clone(handle);
            }
            if chain.len() >= MAX_DEPTH {
                return Err(Errno::STALE.into());
            }
            chain.push(current);
            current = node.parent;
        };
        for number in chain.into_iter().rev() {
            let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
            let found = open_path(&handle, &node.name).map_err(|_| Errno::STALE)?;
            let stat = fstat(&found)?;
            if (Identity::of(&stat), Kind::of(stat.st_mode)) != (node.identity, node.kind) {
                return Err(Errno::STALE.into());
            }
            handle = Arc::new(found);
            self.keep_open(number, Arc::clone(&handle));
        }
        let kind = self.nodes.get(&number).ok_or(Errno::STALE)?.kind;
        Ok(Opened { handle, kind })
    }

    /// Keeps a node open, and closes others if there are too many.
    fn keep_open(&mut self, number: u64, handle: Arc<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.handle.replace(handle).is_none() {
            self.open.push_back(number);
        }
        while self.open.len() > self.max_open {
            let oldest = self.open.pop_front();
            if let Some(node) = oldest.and_then(|number| self.nodes.get_mut(&number)) {
                node.handle = None;
            }
        }
    }

    fn add(&mut self, parent: u64, name: &CStr, handle: OwnedFd, stat: &Stat) -> io::Result<u64> {
        let (identity, kind) = (Identity::of(stat), Kind::of(stat.st_mode));
        let known = self.numbers.get(&identity).copied();
        // The host may have used the number of a file that is gone for another one.
        let known = known.filter(|number| self.nodes.get(number).is_some_and(|node| node.kind == kind));
        if let Some(number) = known
            && let Some(node) = self.nodes.get_mut(&number)
        {
            node.lookups = node.lookups.saturating_add(1);
            if number != ROOT_ID {
                (node.parent, node.name) = (parent, name.to_owned());
                self.keep_open(number, Arc::new(handle));
            }
            return Ok(number);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(Errno::NFILE.into());
        }
        let number = self.next;
        self.next += 1;
        let name = name.to_owned();
        let node = Node { identity, kind, parent, name, lookups: 1, handle: None, version: None };
        self.nodes.insert(number, node);
        self.numbers.insert(identity, number);
        self.keep_open(number, Arc::new(handle));
        Ok(number)
    }

    fn forget(&mut self, number: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT_ID) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return;
        }
        let identity = node.identity;
        self.nodes.remove(&number);
        if self.numbers.get(&identity) == Some(&number) {
            self.numbers.remove(&identity);
        }
    }
}

/// Opens the way to what a directory holds, which does not touch it.
fn open_path(directory: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::confine;

    /// Returns a number of kibibytes of `/proc/self/status`.
    fn kibibytes(name: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn the_largest_table_is_within_the_memory_limit() {
        let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let nodes = Nodes::new(File::open(dir.path()).unwrap().into(), 2).unwrap();
        let mut stat = fstat(&file).unwrap();
        let name = CString::new(vec![b'x'; 255]).unwrap();
        let before = kibibytes("VmSize");
        while nodes.count() < MAX_NODES {
            stat.st_ino += 1;
            let handle = file.try_clone().unwrap().into();
            let number = nodes.table().add(ROOT_ID, &name, handle, &stat).unwrap();
            nodes.is_unchanged(number, &stat);
        }
        stat.st_ino += 1;
        let refused = nodes.table().add(ROOT_ID, &name, file.into(), &stat).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::NFILE.raw_os_error()));
        // What the table took at its largest, while it grew.
        let taken = kibibytes("VmPeak") - before;
        let reserve = 16 << 10;
        assert!(taken + reserve < confine::MAX_DATA_BYTES >> 10, "{taken} KiB");
    }
}
