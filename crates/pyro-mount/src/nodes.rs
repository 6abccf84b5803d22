//! What the guest has looked up: each file or directory under a number.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::api::filesystem::ROOT_ID;
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, Stat, StatxFlags, fstat, makedev, openat, renameat_with, statx,
};
use rustix::io::Errno;

use crate::special::{Kind, is_of_kernel};

/// Maximum number of files and directories that a guest can have looked up without forgetting them. Each takes 300 bytes, or 600 if
/// its name has the maximum length and it was opened.
const MAX_NODES: usize = 1 << 19;
/// Maximum depth at which a directory that is not open is found again.
const MAX_DEPTH: usize = 1024;
/// Nanoseconds of a second.
const NANOSECONDS: i64 = 1_000_000_000;

/// A file or directory that the guest has looked up. What is open is the way to it, not its content.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) handle: Arc<OwnedFd>,
    pub(crate) kind: Kind,
}

/// The files and directories that the guest has looked up. At most a given number of them is open; the others are found again
/// by their names, and are the same if their numbers and times of creation on the host are.
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

/// What a file or directory is on the host. The host gives the number of a file that is gone to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    /// When it was created, in nanoseconds since the epoch; 0 if its file system does not say.
    born: i64,
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
    /// Returns the identity of what is open, and its kind.
    fn of(handle: impl AsFd) -> io::Result<(Self, Kind)> {
        Self::at(handle, c"", AtFlags::EMPTY_PATH)
    }

    /// Returns the same for what a directory holds.
    fn at(directory: impl AsFd, name: &CStr, flags: AtFlags) -> io::Result<(Self, Kind)> {
        let wanted = StatxFlags::INO | StatxFlags::TYPE | StatxFlags::BTIME;
        let stat = statx(directory, name, flags, wanted)?;
        let born = match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME) {
            true => {
                stat.stx_btime.tv_sec.wrapping_mul(NANOSECONDS).wrapping_add(stat.stx_btime.tv_nsec.into())
            }
            false => 0,
        };
        let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
        Ok((Self { device, inode: stat.stx_ino, born }, Kind::of(stat.stx_mode.into())))
    }
}

impl Nodes {
    /// Begins with the directory to serve, of which at most `max_open` files and directories are open at once.
    pub(crate) fn new(root: OwnedFd, max_open: usize) -> io::Result<Self> {
        let (identity, _) = Identity::of(&root)?;
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
        self.table().directory(number)
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
        let (identity, kind) = Identity::of(&handle)?;
        let number = self.table().add(parent, name, handle, identity, kind)?;
        Ok((number, stat))
    }

    /// The guest has forgotten this many look-ups.
    pub(crate) fn forget(&self, number: u64, count: u64) {
        self.table().forget(number, count);
    }

    /// Renames, replaces or exchanges. No other thread looks for what is moved meanwhile: it would be at neither place.
    pub(crate) fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: RenameFlags) -> io::Result<()> {
        let mut table = self.table();
        let (old, new) = (table.directory(from.0)?, table.directory(to.0)?);
        renameat_with(&old, from.1, &new, to.1, flags)?;
        table.moved(to, &new);
        if flags.contains(RenameFlags::EXCHANGE) {
            table.moved(from, &old);
        }
        Ok(())
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
        self.get_by(number, |directory, name| open_path(directory, name))
    }

    fn get_by(
        &mut self,
        number: u64,
        mut open: impl FnMut(&OwnedFd, &CStr) -> io::Result<OwnedFd>,
    ) -> io::Result<Opened> {
        match self.find(number, &mut open) {
            // The host may have moved a directory away and back between two steps.
            Err(error) if is_stale(&error) => self.find(number, &mut open),
            found => found,
        }
    }

    fn find(
        &mut self,
        number: u64,
        open: &mut impl FnMut(&OwnedFd, &CStr) -> io::Result<OwnedFd>,
    ) -> io::Result<Opened> {
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
            let found = open(&handle, &node.name).map_err(|_| Errno::STALE)?;
            if Identity::of(&found)? != (node.identity, node.kind) {
                return Err(Errno::STALE.into());
            }
            handle = Arc::new(found);
            self.keep_open(number, Arc::clone(&handle));
        }
        let kind = self.nodes.get(&number).ok_or(Errno::STALE)?.kind;
        Ok(Opened { handle, kind })
    }

    fn directory(&mut self, number: u64) -> io::Result<Arc<OwnedFd>> {
        match self.get(number)? {
            Opened { handle, kind: Kind::Directory } => Ok(handle),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// The guest has moved something to this name in a directory.
    fn moved(&mut self, (parent, name): (u64, &CStr), directory: &OwnedFd) {
        let Ok((identity, _)) = Identity::at(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let Some(number) = self.numbers.get(&identity).copied() else { return };
        if let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT_ID) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
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

    fn add(
        &mut self,
        parent: u64,
        name: &CStr,
        handle: OwnedFd,
        identity: Identity,
        kind: Kind,
    ) -> io::Result<u64> {
        let known = self.numbers.get(&identity).copied();
        // Where a file system does not say when a file was created, another one may have taken its number.
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

/// Whether what had a number is not there any more.
pub(crate) fn is_stale(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::STALE)
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

    /// A table of a directory with `dir/file`, both of which were looked up and are not open; `dir` has the number 2, the file 3.
    fn closed(root: &std::path::Path) -> Nodes {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "").unwrap();
        let nodes = Nodes::new(File::open(root).unwrap().into(), 0).unwrap();
        assert_eq!(nodes.look_up(ROOT_ID, c"dir").unwrap().0, 2);
        assert_eq!(nodes.look_up(2, c"file").unwrap().0, 3);
        assert_eq!(nodes.open_count(), 0);
        nodes
    }

    #[test]
    fn a_directory_that_is_moved_away_and_back_between_two_steps_is_found() {
        let root = tempfile::tempdir().unwrap();
        let nodes = closed(root.path());
        let mut steps = 0;
        let found = nodes.table().get_by(3, |directory, name| {
            steps += 1;
            // It is elsewhere at the second step, and back after that.
            if steps == 2 { Err(Errno::NOENT.into()) } else { open_path(directory, name) }
        });
        assert_eq!((found.unwrap().kind, steps), (Kind::File, 4));
        fs::rename(root.path().join("dir"), root.path().join("moved")).unwrap();
        assert!(is_stale(&nodes.get(3).unwrap_err()), "it stays elsewhere");
    }

    #[test]
    fn what_the_guest_moves_is_always_at_one_of_both_places() {
        let root = tempfile::tempdir().unwrap();
        let nodes = closed(root.path());
        std::thread::scope(|scope| {
            let moving = scope.spawn(|| {
                for _ in 0..500 {
                    nodes.rename((ROOT_ID, c"dir"), (ROOT_ID, c"moved"), RenameFlags::empty()).unwrap();
                    nodes.rename((ROOT_ID, c"moved"), (ROOT_ID, c"dir"), RenameFlags::empty()).unwrap();
                }
            });
            while !moving.is_finished() {
                nodes.get(3).unwrap();
            }
        });
    }

    #[test]
    fn a_file_with_the_number_of_one_that_is_gone_is_another_one() {
        let root = tempfile::tempdir().unwrap();
        let nodes = closed(root.path());
        let open = || open_path(File::open(root.path()).unwrap(), c"dir/file").unwrap();
        let (identity, kind) = Identity::of(open()).unwrap();
        assert_ne!(identity.born, 0, "the file system of this test says when files were created");
        let add = |identity| nodes.table().add(2, c"file", open(), identity, kind).unwrap();
        assert_eq!(add(identity), 3);
        assert_eq!(add(Identity { born: identity.born + 1, ..identity }), 4);
    }

    #[test]
    fn the_largest_table_is_within_the_memory_limit() {
        let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let nodes = Nodes::new(File::open(dir.path()).unwrap().into(), 2).unwrap();
        let stat = fstat(&file).unwrap();
        let (mut identity, kind) = Identity::of(&file).unwrap();
        let name = CString::new(vec![b'x'; 255]).unwrap();
        let before = kibibytes("VmSize");
        while nodes.count() < MAX_NODES {
            identity.inode += 1;
            let handle = file.try_clone().unwrap().into();
            let number = nodes.table().add(ROOT_ID, &name, handle, identity, kind).unwrap();
            nodes.is_unchanged(number, &stat);
        }
        identity.inode += 1;
        let refused = nodes.table().add(ROOT_ID, &name, file.into(), identity, kind).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::NFILE.raw_os_error()));
        // What the table took at its largest, while it grew.
        let taken = kibibytes("VmPeak") - before;
        let reserve = 16 << 10;
        assert!(taken + reserve < confine::MAX_DATA_BYTES >> 10, "{taken} KiB");
    }
}
