//! Reports what changes in a directory or in a tree, as the kernel sees it (`inotify(7)`).
//!
//! The kernel watches single directories. A new directory is watched when its event arrives; what was made in it before that is
//! found then and reported as made.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{FileChange, Frame, MAX_WATCHED_DIRS, OutputStream, Watch, WatchReply, append_line};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{Abandoned, Lines, PIECES_AHEAD, because};
use crate::blocking::blocking;
use crate::stream::{CallStream, finish};
use crate::watched;

/// Bytes of events that are read at a time.
const BUFFER_BYTES: usize = 16 << 10;
/// Time within which something that has left its directory arrives in another one. The kernel reports the two one after the
/// other, and a processor may do something else in between.
const ARRIVAL_LIMIT: Duration = Duration::from_millis(100);
/// Changes of what a path leads to that are reported.
const CONTENTS: WatchFlags =
    WatchFlags::MODIFY.union(WatchFlags::ATTRIB).union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);
/// Changes of what is in a directory that are reported.
const ENTRIES: WatchFlags =
    WatchFlags::CREATE.union(WatchFlags::DELETE).union(WatchFlags::MOVED_FROM).union(WatchFlags::MOVED_TO);

/// Reports changes until the host closes the stream, or what is watched is gone.
pub(crate) async fn serve<S>(request: Watch, workspace: &Path, mut stream: CallStream<S, Watch>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = workspace.join(&request.path);
    let begin = move || {
        Watcher::new(&path, request.recursive).map_err(|error| because("watching", &request.path, error))
    };
    let watcher = match blocking(begin).await {
        Ok(watcher) => watcher,
        Err(failure) => return finish(stream, WatchReply::Failed(failure)).await,
    };
    if let Ok(()) = report(watcher, &mut stream).await {
        finish(stream, WatchReply::Gone).await;
    }
}

/// Returns when what is watched is gone. An error: the host is, or the kernel does not go on.
async fn report<S>(mut watcher: Watcher, stream: &mut CallStream<S, Watch>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let events = watched::watch(watcher.inotify.try_clone()?, Interest::READABLE)?;
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut watching = Vec::new();
    append_line(&mut watching, &FileChange::Watching);
    send(stream, watching.into()).await?;
    while !watcher.is_gone {
        let gone_for_good = async {
            match watcher.left {
                Some(_) => sleep(ARRIVAL_LIMIT).await,
                None => pending().await,
            }
        };
        let batch = tokio::select! {
            biased;
            ready = events.readable() => match ready?.try_io(|events| read(events.get_ref(), &mut buffer)) {
                Ok(batch) => batch?,
                Err(_would_block) => continue,
            },
            // The host sends nothing, so this is its end.
            _ = stream.next() => return Err(io::ErrorKind::ConnectionAborted.into()),
            // What has left a directory has left the tree.
            () = gone_for_good => Vec::new(),
        };
        watcher = handle(watcher, batch, stream).await?;
    }
    Ok(())
}

/// Sends what a batch of events means, in pieces while it is found: a directory that has come into the tree may be large.
async fn handle<S>(
    mut watcher: Watcher,
    batch: Vec<Seen>,
    stream: &mut CallStream<S, Watch>,
) -> io::Result<Watcher>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let handled = tokio::task::spawn_blocking(move || {
        let mut changes = Changes { lines: Lines::new(sender), last: None };
        let taken = watcher.take(batch, &mut changes);
        taken.and_then(|()| changes.lines.flush()).map(|()| watcher)
    });
    while let Some(piece) = pieces.recv().await {
        send(stream, piece).await?;
    }
    let handled = handled.await.map_err(io::Error::other)?;
    handled.map_err(|Abandoned| io::ErrorKind::ConnectionAborted.into())
}

async fn send<S>(stream: &mut CallStream<S, Watch>, piece: Bytes) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.send(Frame::Output(OutputStream::Stdout, piece)).await.map_err(io::Error::other)
}

/// Changes on their way to the host, without what is equal to the one before.
struct Changes {
    lines: Lines,
    last: Option<FileChange>,
}

impl Changes {
    fn push(&mut self, change: FileChange) -> Result<(), Abandoned> {
        if self.last.as_ref() == Some(&change) {
            return Ok(());
        }
        self.lines.push(&change)?;
        self.last = Some(change);
        Ok(())
    }
}

/// An event of the kernel.
struct Seen {
    /// Number of the watched directory or file.
    watch: i32,
    flags: ReadFlags,
    /// Equal for the two events of a move.
    cookie: u32,
    /// Name in the directory; empty for the directory or file itself.
    name: OsString,
}

/// Reads events as long as they come without waiting and fit into the buffer, at least one.
fn read(inotify: impl AsFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<Vec<Seen>> {
    let mut reader = inotify::Reader::new(inotify, buffer);
    let mut batch = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
        batch.push(Seen {
            watch: event.wd(),
            flags: event.events(),
            cookie: event.cookie(),
            name: OsString::from_vec(name),
        });
        if reader.is_buffer_empty() {
            return Ok(batch);
        }
    }
}

/// Something that has left its directory. The next event says whether it has arrived in another one.
struct Left {
    cookie: u32,
    path: PathBuf,
    is_directory: bool,
}

struct Watcher {
    inotify: Arc<OwnedFd>,
    /// The watched directory, or the one of the watched file.
    top: PathBuf,
    /// Name of the watched file. It is looked for by name, because programs replace files to save them.
    only: Option<OsString>,
    /// Also watch directories below the top.
    recursive: bool,
    /// File system of the top. What is mounted below it is another tree, such as `/proc`.
    device: u64,
    /// Paths of what is watched, below the top, by the kernel's number.
    paths: HashMap<i32, PathBuf>,
    left: Option<Left>,
    /// The top is gone.
    is_gone: bool,
}

/// Why directories below a directory are not watched.
enum Stop {
    Abandoned,
    Failed(io::Error),
}

impl From<Abandoned> for Stop {
    fn from(Abandoned: Abandoned) -> Self {
        Self::Abandoned
    }
}

impl Watcher {
    fn new(path: &Path, recursive: bool) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let mut top = path.to_owned();
        let mut metadata = fs::metadata(&top)?;
        let mut only = None;
        if !metadata.is_dir() {
            let file = fs::canonicalize(path)?;
            if let (Some(directory), Some(name)) = (file.parent(), file.file_name()) {
                only = Some(name.to_owned());
                top = directory.to_owned();
                metadata = fs::metadata(&top)?;
            }
        }
        let recursive = recursive && only.is_none();
        let (device, paths) = (metadata.dev(), HashMap::new());
        let mut watcher = Self { inotify, top, only, recursive, device, paths, left: None, is_gone: false };
        watcher.begin()?;
        Ok(watcher)
    }

    /// Watches the tree from its top, and reports nothing.
    fn begin(&mut self) -> io::Result<()> {
        self.watch(PathBuf::new())?;
        if !self.recursive {
            return Ok(());
        }
        match self.enter(Path::new(""), |_| Ok(())) {
            Ok(()) | Err(Stop::Abandoned) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Watches a directory, which may have been watched with another path. Returns whether it was not with this one.
    fn watch(&mut self, below: PathBuf) -> io::Result<bool> {
        let mut flags = CONTENTS | ENTRIES | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
        if below != Path::new("") {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let number = inotify::add_watch(&*self.inotify, self.top.join(&below), flags)?;
        match self.paths.get(&number) {
            Some(known) if *known == below => return Ok(false),
            None if self.paths.len() >= MAX_WATCHED_DIRS => {
                let _ = inotify::remove_watch(&*self.inotify, number);
                let text = format!("there are more than {MAX_WATCHED_DIRS} directories");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
            }
            Some(_) | None => {}
        }
        self.paths.insert(number, below);
        Ok(true)
    }

    /// Watches the directories in a directory, and reports what is in it.
    fn enter(
        &mut self,
        directory: &Path,
        mut found: impl FnMut(&Path) -> Result<(), Abandoned>,
    ) -> Result<(), Stop> {
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            // A directory that is gone again has its own event.
            let Ok(entries) = fs::read_dir(self.top.join(&directory)) else { continue };
            for entry in entries.flatten() {
                let below = directory.join(entry.file_name());
                found(&below)?;
                let is_tree = entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && entry.metadata().is_ok_and(|directory| directory.dev() == self.device);
                if !is_tree {
                    continue;
                }
                match self.watch(below.clone()) {
                    Ok(_) => directories.push(below),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(Stop::Failed(error)),
                }
            }
        }
        Ok(())
    }

    /// Reports what a batch of events means. An empty one: there are no more for now.
    fn take(&mut self, batch: Vec<Seen>, changes: &mut Changes) -> Result<(), Abandoned> {
        if batch.is_empty() {
            return self.settle(changes);
        }
        for seen in batch {
            let arrives = self
                .left
                .as_ref()
                .is_some_and(|left| seen.flags.contains(ReadFlags::MOVED_TO) && seen.cookie == left.cookie);
            if !arrives {
                self.settle(changes)?;
            }
            self.take_one(seen, changes)?;
        }
        Ok(())
    }

    /// Reports what has left and not arrived.
    fn settle(&mut self, changes: &mut Changes) -> Result<(), Abandoned> {
        match self.left.take() {
            Some(left) => {
                self.forget(&left);
                changes.push(FileChange::Removed(text(&left.path)))
            }
            None => Ok(()),
        }
    }

    fn take_one(&mut self, seen: Seen, changes: &mut Changes) -> Result<(), Abandoned> {
        let Seen { watch, flags, cookie, name } = seen;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.begin_again(changes);
        }
        let Some(directory) = self.paths.get(&watch) else { return Ok(()) };
        if flags.contains(ReadFlags::IGNORED) {
            self.paths.remove(&watch);
            return Ok(());
        }
        let is_top = directory.as_os_str().is_empty();
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            // The event of the directory that it was in says so for all others.
            return if is_top { self.end(changes) } else { Ok(()) };
        }
        if let Some(only) = &self.only {
            return if *only == name { take_file(flags, changes) } else { Ok(()) };
        }
        // A change of a directory's own attributes is reported by the directory that it is in, too.
        if name.is_empty() && !is_top {
            return Ok(());
        }
        let path = directory.join(&name);
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if flags.contains(ReadFlags::CREATE) {
            changes.push(FileChange::Created(text(&path)))?;
            return self.follow(path, is_directory, changes);
        }
        if flags.contains(ReadFlags::MODIFY) {
            return changes.push(FileChange::Modified(text(&path)));
        }
        if flags.contains(ReadFlags::ATTRIB) {
            return changes.push(FileChange::Attributes(text(&path)));
        }
        if flags.contains(ReadFlags::DELETE) {
            return changes.push(FileChange::Removed(text(&path)));
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.left = Some(Left { cookie, path, is_directory });
        } else if flags.contains(ReadFlags::MOVED_TO) {
            match self.left.take() {
                Some(left) => {
                    changes.push(FileChange::Moved { from: text(&left.path), to: text(&path) })?;
                    for below in self.paths.values_mut() {
                        if let Ok(rest) = below.strip_prefix(&left.path) {
                            *below = path.join(rest);
                        }
                    }
                }
                None => changes.push(FileChange::Created(text(&path)))?,
            }
            // It may have moved before it could be watched.
            return self.follow(path, is_directory, changes);
        }
        Ok(())
    }

    /// Watches a directory that is new in the tree.
    fn follow(&mut self, path: PathBuf, is_directory: bool, changes: &mut Changes) -> Result<(), Abandoned> {
        if !self.recursive || !is_directory {
            return Ok(());
        }
        let entered = match self.watch(path.clone()) {
            Ok(true) => self.enter(&path, |below| changes.push(FileChange::Created(text(below)))),
            Ok(false) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(Stop::Failed(error)),
        };
        match entered {
            Ok(()) => Ok(()),
            Err(Stop::Abandoned) => Err(Abandoned),
            Err(Stop::Failed(_)) => changes.push(FileChange::Lost),
        }
    }

    /// Watches everything again after events were lost, among them perhaps those of directories.
    fn begin_again(&mut self, changes: &mut Changes) -> Result<(), Abandoned> {
        self.left = None;
        for (number, _) in self.paths.drain() {
            // It has gone by itself if the directory was removed meanwhile.
            let _ = inotify::remove_watch(&*self.inotify, number);
        }
        match self.begin() {
            Err(error) if is_gone(&error) => self.end(changes),
            // Its reader lists the tree then; what changes after that is reported again.
            Ok(()) | Err(_) => changes.push(FileChange::Lost),
        }
    }

    /// The top is gone.
    fn end(&mut self, changes: &mut Changes) -> Result<(), Abandoned> {
        if self.is_gone {
            return Ok(());
        }
        self.is_gone = true;
        changes.push(FileChange::Removed(String::new()))
    }

    /// Forgets what has left the tree.
    fn forget(&mut self, left: &Left) {
        if left.is_directory {
            let numbers = self.paths.extract_if(|_, below| below.starts_with(&left.path));
            for (number, _) in numbers {
                // It has gone by itself if the directory was removed meanwhile.
                let _ = inotify::remove_watch(&*self.inotify, number);
            }
        }
    }
}

/// What an event says of the watched file, which has no path in reports.
fn take_file(flags: ReadFlags, changes: &mut Changes) -> Result<(), Abandoned> {
    let path = String::new();
    if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
        changes.push(FileChange::Created(path))
    } else if flags.contains(ReadFlags::MODIFY) {
        changes.push(FileChange::Modified(path))
    } else if flags.contains(ReadFlags::ATTRIB) {
        changes.push(FileChange::Attributes(path))
    } else if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
        changes.push(FileChange::Removed(path))
    } else {
        Ok(())
    }
}

/// What is gone again is not lost.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
