//! Control groups: one for each command, which holds every process that it starts, whatever these do to their sessions and
//! process groups.
//!
//! Making and removing a group takes longer than entering one. So a group in which nothing is left is used again, unless a program
//! has opened or changed any of its files: it could have frozen or limited the group. Other groups are removed between commands. A
//! command that ends by itself may leave processes behind; its group is removed when it is empty after a later command.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::Interest;

use crate::watched::watch;

/// Where the groups of commands are in the hierarchy.
const PARENT: &str = "pyro";
/// Maximum number of empty groups that are kept for the next commands.
const READY: usize = 4;
/// What shows that a program may have changed a group: it has opened or changed a file of it, or made a group below it.
const TOUCHED: WatchFlags =
    WatchFlags::OPEN.union(WatchFlags::ATTRIB).union(WatchFlags::CREATE).union(WatchFlags::ONLYDIR);
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
    /// `cgroup.freeze` of the parent. Absent before Linux 5.2, where nothing can freeze it.
    freeze: Option<OwnedFd>,
    next: u64,
    /// Groups of the next commands, without a process.
    ready: Vec<Arc<Made>>,
    /// Groups of commands that have just ended.
    ended: Vec<Arc<Made>>,
    /// Groups that are not used again. Some have processes that outlived their command.
    left: VecDeque<String>,
    /// The latest command that needed a group did not get one.
    is_failing: bool,
}

/// A group in the hierarchy.
#[derive(Debug)]
struct Made {
    name: String,
    dir: OwnedFd,
    /// `cgroup.procs`, open for writing.
    entrance: OwnedFd,
    /// `cgroup.events`.
    events: OwnedFd,
    /// Reports when a program touches it. Absent where that cannot be watched.
    touched: Option<OwnedFd>,
}

impl Made {
    fn is_untouched(&self) -> bool {
        let Some(touched) = &self.touched else { return false };
        let mut buffer = [MaybeUninit::uninit(); 512];
        inotify::Reader::new(touched, &mut buffer).next().err() == Some(Errno::AGAIN)
    }

    fn is_empty(&self) -> bool {
        is_populated(&self.events).is_ok_and(|is_populated| !is_populated)
    }
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
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        state.freeze = openat(&parent, "cgroup.freeze", flags, Mode::empty()).ok();
        state.parent = Some(parent);
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// Returns the group of a new command. `None`: there are no control groups here.
    pub(super) fn create(&self) -> io::Result<Option<ControlGroup>> {
        let mut state = lock(&self.0);
        state.thaw();
        let made = match state.take_ready() {
            Some(ready) => Some(ready),
            None => state.make()?,
        };
        state.is_failing &= made.is_none();
        Ok(made.map(|made| ControlGroup { made, groups: Arc::clone(&self.0) }))
    }

    /// Chooses or makes the group of the next command, and removes groups that are empty now, while no command waits for it.
    pub(super) fn make_ready(&self) {
        let mut state = lock(&self.0);
        for made in std::mem::take(&mut state.ended) {
            if state.ready.len() < READY && made.is_empty() && made.is_untouched() {
                state.ready.push(made);
            } else {
                state.left.push_back(made.name.clone());
            }
        }
        state.remove_left();
        if state.ready.is_empty() {
            // The next command tries again, and reports it.
            let made = state.make().unwrap_or_default();
            state.ready.extend(made);
        }
    }

    /// Says on the console why a command runs without a group, unless the one before did as well.
    pub(super) fn report(&self, error: &dyn Display) {
        if !std::mem::replace(&mut lock(&self.0).is_failing, true) {
            eprintln!("pyro-guest: commands run without a control group: {error}");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn make(&mut self) -> io::Result<Option<Arc<Made>>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        for _ in 0..MAX_NAMES {
            let name = format!("command-{}", self.next);
            self.next += 1;
            match mkdirat(parent, &*name, Mode::from(0o755)) {
                Ok(()) => {
                    let dir = open_dir(parent, &name)?;
                    let open = |file, access| openat(&dir, file, access | OFlags::CLOEXEC, Mode::empty());
                    let entrance = open("cgroup.procs", OFlags::WRONLY)?;
                    let events = open("cgroup.events", OFlags::RDONLY)?;
                    // After the last file was opened.
                    let touched = watch_touches(&dir).ok();
                    return Ok(Some(Arc::new(Made { name, dir, entrance, events, touched })));
                }
                // Another program has made it.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Returns an empty group that no program has touched.
    fn take_ready(&mut self) -> Option<Arc<Made>> {
        while let Some(ready) = self.ready.pop() {
            if ready.is_untouched() {
                return Some(ready);
            }
            self.left.push_back(ready.name.clone());
        }
        None
    }

    /// Thaws the groups, which root may have frozen. A process that enters a frozen group never executes its program, and
    /// the agent waits for that.
    fn thaw(&self) {
        if let Some(freeze) = &self.freeze {
            let _ = rustix::io::pwrite(freeze, b"0", 0);
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
        let made = self.ready.drain(..).chain(self.ended.drain(..)).map(|made| made.name.clone());
        for name in self.left.drain(..).chain(made) {
            // One that still has processes stays.
            let _ = remove(parent.as_fd(), &name, 0);
        }
    }
}

/// The group of a command.
#[derive(Debug)]
pub(super) struct ControlGroup {
    made: Arc<Made>,
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
        lock(&self.groups).ended.push(Arc::clone(&self.made));
    }
}

fn open_dir(parent: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Returns where touches of a group are reported. Only a path can be watched.
fn watch_touches(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let touched = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&touched, format!("/proc/self/fd/{}", dir.as_raw_fd()), TOUCHED)?;
    Ok(touched)
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
