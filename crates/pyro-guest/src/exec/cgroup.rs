//! Control groups: one for each command, which holds every process that it starts, whatever these do to their sessions and
//! process groups.
//!
//! Groups are made and removed between commands, because that takes longer than entering one. A command that ends by itself may
//! leave processes behind; its group is removed when it is empty after a later command.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::Interest;

use crate::watched::watch;

/// Where the groups of commands are in the hierarchy.
const PARENT: &str = "pyro";
/// Maximum number of left groups whose removal is tried after a command.
const REMOVALS: usize = 8;
/// Maximum number of names that are tried for a group.
const MAX_NAMES: usize = 1024;
/// Maximum depth of the groups that a command may have made in its own, and number of processes that are asked to end.
const MAX_DEPTH: usize = 8;
const MAX_PROCS_BYTES: u64 = 1 << 20;
/// How long killed processes may take to end before the command counts as ended.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The groups of a guest's commands.
#[derive(Debug, Default)]
pub(crate) struct ControlGroups(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    parent: Option<OwnedFd>,
    next: u64,
    /// The group of the next command. No process was ever in it.
    ready: Option<Made>,
    /// Groups of commands that have ended. Some have processes that outlived their command.
    left: VecDeque<String>,
}

/// A group in the hierarchy.
#[derive(Debug)]
struct Made {
    name: String,
    dir: OwnedFd,
    /// `cgroup.procs`, open for writing.
    entrance: OwnedFd,
}

impl ControlGroups {
    /// The groups in a mounted hierarchy of version 2. Commands may unmount it, or mount something over it.
    pub(crate) fn open(hierarchy: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, hierarchy, flags)?;
        match mkdirat(&root, PARENT, Mode::from(0o755)) {
            Err(Errno::EXIST) => {}
            made => made?,
        }
        let parent = open_dir(&root, PARENT)?;
        // Absent before Linux 5.14, and where this is not version 2.
        drop(openat(&parent, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?);
        let mut state = State::default();
        state.parent = Some(parent);
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// Returns the group of a new command. `None`: there are no control groups here.
    pub(super) fn create(&self) -> io::Result<Option<ControlGroup>> {
        let mut state = lock(&self.0);
        state.thaw();
        let made = match state.ready.take() {
            Some(ready) => Some(ready),
            None => state.make()?,
        };
        Ok(made.map(|made| ControlGroup { made, groups: Arc::clone(&self.0) }))
    }

    /// Makes the group of the next command, and removes groups that are empty now, while no command waits for it.
    pub(super) fn make_ready(&self) {
        let mut state = lock(&self.0);
        state.remove_left();
        if state.ready.is_none() {
            // The next command tries again, and reports it.
            state.ready = state.make().unwrap_or_default();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn make(&mut self) -> io::Result<Option<Made>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        for _ in 0..MAX_NAMES {
            let name = format!("command-{}", self.next);
            self.next += 1;
            match mkdirat(parent, &*name, Mode::from(0o755)) {
                Ok(()) => {
                    let dir = open_dir(parent, &name)?;
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    let entrance = openat(&dir, "cgroup.procs", flags, Mode::empty())?;
                    return Ok(Some(Made { name, dir, entrance }));
                }
                // Another program has made it.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Thaws the groups, which root may have frozen. A process that enters a frozen group never executes its program, and
    /// the agent waits for that.
    fn thaw(&self) {
        let Some(parent) = &self.parent else { return };
        // Fails before Linux 5.2 alone, and then nothing can freeze them.
        if let Ok(freeze) = openat(parent, "cgroup.freeze", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            let _ = rustix::io::write(freeze, b"0");
        }
    }

    fn remove_left(&mut self) {
        let Some(parent) = &self.parent else { return };
        for _ in 0..self.left.len().min(REMOVALS) {
            let Some(name) = self.left.pop_front() else { return };
            if remove(parent.as_fd(), &name, 0) == Err(Errno::BUSY) {
                self.left.push_back(name);
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let Some(parent) = &self.parent else { return };
        let ready = self.ready.take().map(|made| made.name);
        for name in self.left.drain(..).chain(ready) {
            // One that still has processes stays.
            let _ = remove(parent.as_fd(), &name, 0);
        }
    }
}

/// The group of a command.
#[derive(Debug)]
pub(super) struct ControlGroup {
    made: Made,
    groups: Arc<Mutex<State>>,
}

impl ControlGroup {
    /// Returns the file by which a process enters the group.
    pub(super) fn entrance(&self) -> BorrowedFd<'_> {
        self.made.entrance.as_fd()
    }

    /// Sends a signal to every process in the group.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        signal_below(self.made.dir.as_fd(), signal, 0)
    }

    /// Kills every process in the group, and waits until they have ended.
    pub(super) async fn kill(&self) -> io::Result<()> {
        let kill = openat(&self.made.dir, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(kill, b"1")?;
        tokio::time::timeout(END_LIMIT, self.emptied())
            .await
            .unwrap_or_else(|_| Err(io::Error::other("killed processes have not ended")))
    }

    /// Waits until no process is in the group.
    pub(super) async fn emptied(&self) -> io::Result<()> {
        let events =
            openat(&self.made.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let events = watch(events, Interest::PRIORITY)?;
        loop {
            let mut changed = None;
            if is_populated(events.get_ref())? {
                changed = Some(events.ready(Interest::PRIORITY).await?);
            }
            match &mut changed {
                None => return Ok(()),
                Some(changed) => changed.clear_ready(),
            }
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.made.name);
        lock(&self.groups).left.push_back(name);
    }
}

fn open_dir(parent: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Whether the group or one below it has a process.
fn is_populated(events: &OwnedFd) -> io::Result<bool> {
    let mut text = [0; 256];
    let length = rustix::io::pread(events, &mut text, 0)?;
    Ok(!text[..length].split(|&byte| byte == b'\n').any(|line| line == b"populated 0"))
}

/// The groups that a command has made in a group.
fn children(group: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let entries = Dir::read_from(group)?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type() == FileType::Directory)
        .filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()))
        .filter(|name| name != "." && name != "..")
        .collect())
}

fn signal_below(group: BorrowedFd<'_>, signal: Signal, depth: usize) -> io::Result<()> {
    let procs = openat(group, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(procs).take(MAX_PROCS_BYTES).read_to_string(&mut text)?;
    // A line that was cut off is the number of another process. Processes of other PID namespaces have the number zero.
    let (complete, _) = text.rsplit_once('\n').unwrap_or_default();
    for pid in complete.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // Fails if it has ended meanwhile.
        let _ = kill_process(pid, signal);
    }
    if depth < MAX_DEPTH {
        for name in children(group)? {
            if let Ok(child) = open_dir(group, &name) {
                let _ = signal_below(child.as_fd(), signal, depth + 1);
            }
        }
    }
    Ok(())
}

/// Removes a group with those below it.
fn remove(parent: BorrowedFd<'_>, name: &str, depth: usize) -> Result<(), Errno> {
    let removed = unlinkat(parent, name, AtFlags::REMOVEDIR);
    if removed != Err(Errno::BUSY) || depth == MAX_DEPTH {
        return removed;
    }
    let group = open_dir(parent, name)?;
    for child in children(group.as_fd()).map_err(|_| Errno::BUSY)? {
        remove(group.as_fd(), &child, depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
