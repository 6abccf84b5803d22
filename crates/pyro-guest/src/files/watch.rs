//! Reports what changes in a directory or in a tree, as the kernel sees it (`inotify(7)`).
//!
//! The kernel watches single directories. A new directory is watched when its event arrives; what was made in it before that is
//! found then and reported as made.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{FileChange, Frame, MAX_WATCHED_DIRS, OutputStream, Watch, WatchReply, append_line};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, Interest};

use super::because;
use crate::blocking::blocking;
use crate::stream::{CallStream, finish};
use crate::watched;

/// Bytes of events that are read at a time.
const BUFFER_BYTES: usize = 16 << 10;
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
    let top = workspace.join(&request.path);
    let begin = move || {
        Watcher::new(top, request.recursive).map_err(|error| because("watching", &request.path, error))
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
    send(stream, vec![FileChange::Watching]).await?;
    loop {
        let mut ready = tokio::select! {
            ready = events.readable() => ready?,
            // The host sends nothing, so this is its end.
            _ = stream.next() => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let changes = match ready.try_io(|events| read(events.get_ref(), &mut buffer)) {
            Ok(batch) => {
                let batch = batch?;
                let (next, changes) = tokio::task::spawn_blocking(move || {
                    let changes = watcher.take(batch);
                    (watcher, changes)
                })
                .await
                .map_err(io::Error::other)?;
                watcher = next;
                changes
            }
            // There are no more for now, so what has left a directory has left the tree.
            Err(_would_block) => watcher.left.take().map(|left| watcher.remove(left)).into_iter().collect(),
        };
        let is_gone = watcher.is_gone;
        send(stream, changes).await?;
        if is_gone {
            return Ok(());
        }
    }
}

async fn send<S>(stream: &mut CallStream<S, Watch>, mut changes: Vec<FileChange>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    changes.dedup();
    let mut lines = Vec::new();
    let mut changes = changes.iter().peekable();
    while let Some(change) = changes.next() {
        append_line(&mut lines, change);
        if lines.len() >= super::PIECE_BYTES || changes.peek().is_none() {
            let piece = Bytes::from(std::mem::take(&mut lines));
            stream.send(Frame::Output(OutputStream::Stdout, piece)).await.map_err(io::Error::other)?;
        }
    }
    Ok(())
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
    top: PathBuf,
    /// Also watch directories below the top.
    recursive: bool,
    /// Paths of what is watched, below the top, by the kernel's number.
    paths: HashMap<i32, PathBuf>,
    left: Option<Left>,
    /// The top is gone.
    is_gone: bool,
}

impl Watcher {
    fn new(top: PathBuf, recursive: bool) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let is_directory = fs::metadata(&top)?.is_dir();
        let mut watcher = Self { inotify, top, recursive, paths: HashMap::new(), left: None, is_gone: false };
        watcher.watch(PathBuf::new(), is_directory)?;
        if recursive && is_directory {
            let mut lost = Vec::new();
            watcher.enter(Path::new(""), &mut lost);
            if lost.contains(&FileChange::Lost) {
                let text = format!("there are more than {MAX_WATCHED_DIRS} directories");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
            }
        }
        Ok(watcher)
    }

    /// Without a slash at its end, which a file does not have.
    fn absolute(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() { self.top.clone() } else { self.top.join(below) }
    }

    fn watch(&mut self, below: PathBuf, is_directory: bool) -> io::Result<()> {
        if self.paths.len() >= MAX_WATCHED_DIRS {
            return Err(Errno::NOSPC.into());
        }
        let mut flags = CONTENTS;
        if is_directory {
            flags |= ENTRIES | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
        }
        if below != Path::new("") {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let number = inotify::add_watch(&*self.inotify, self.absolute(&below), flags)?;
        self.paths.insert(number, below);
        Ok(())
    }

    /// Watches the directories in a directory, and reports what is in it.
    fn enter(&mut self, directory: &Path, changes: &mut Vec<FileChange>) {
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            // A directory that is gone again has its own event.
            let Ok(entries) = fs::read_dir(self.absolute(&directory)) else { continue };
            for entry in entries.flatten() {
                let below = directory.join(entry.file_name());
                changes.push(FileChange::Created(text(&below)));
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    match self.watch(below.clone(), true) {
                        Ok(()) => directories.push(below),
                        Err(error) => changes.extend(lost(&error)),
                    }
                }
            }
        }
    }

    /// Returns what a batch of events means.
    fn take(&mut self, batch: Vec<Seen>) -> Vec<FileChange> {
        let mut changes = Vec::new();
        for seen in batch {
            let arrives = self
                .left
                .as_ref()
                .is_some_and(|left| seen.flags.contains(ReadFlags::MOVED_TO) && seen.cookie == left.cookie);
            if !arrives && let Some(left) = self.left.take() {
                changes.push(self.remove(left));
            }
            self.take_one(seen, &mut changes);
        }
        changes
    }

    fn take_one(&mut self, seen: Seen, changes: &mut Vec<FileChange>) {
        let Seen { watch, flags, cookie, name } = seen;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return changes.push(FileChange::Lost);
        }
        let Some(directory) = self.paths.get(&watch) else { return };
        if flags.contains(ReadFlags::IGNORED) {
            self.paths.remove(&watch);
            return;
        }
        let is_top = directory.as_os_str().is_empty();
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            // The event of the directory that it was in says so for all others.
            if is_top && !self.is_gone {
                self.is_gone = true;
                changes.push(FileChange::Removed(String::new()));
            }
            return;
        }
        // A change of a directory's own attributes is reported by the directory that it is in, too.
        if name.is_empty() && !is_top {
            return;
        }
        let path = directory.join(&name);
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if flags.contains(ReadFlags::CREATE) {
            changes.push(FileChange::Created(text(&path)));
            self.follow(path, is_directory, changes);
        } else if flags.contains(ReadFlags::MODIFY) {
            changes.push(FileChange::Modified(text(&path)));
        } else if flags.contains(ReadFlags::ATTRIB) {
            changes.push(FileChange::Attributes(text(&path)));
        } else if flags.contains(ReadFlags::DELETE) {
            changes.push(FileChange::Removed(text(&path)));
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            self.left = Some(Left { cookie, path, is_directory });
        } else if flags.contains(ReadFlags::MOVED_TO) {
            match self.left.take() {
                Some(left) => {
                    changes.push(FileChange::Moved { from: text(&left.path), to: text(&path) });
                    for below in self.paths.values_mut() {
                        if let Ok(rest) = below.strip_prefix(&left.path) {
                            *below = path.join(rest);
                        }
                    }
                }
                None => {
                    changes.push(FileChange::Created(text(&path)));
                    self.follow(path, is_directory, changes);
                }
            }
        }
    }

    /// Watches a directory that is new in the tree.
    fn follow(&mut self, path: PathBuf, is_directory: bool, changes: &mut Vec<FileChange>) {
        if !self.recursive || !is_directory {
            return;
        }
        match self.watch(path.clone(), true) {
            Ok(()) => self.enter(&path, changes),
            Err(error) => changes.extend(lost(&error)),
        }
    }

    /// Forgets what has left the tree.
    fn remove(&mut self, left: Left) -> FileChange {
        if left.is_directory {
            let numbers = self.paths.extract_if(|_, below| below.starts_with(&left.path));
            for (number, _) in numbers {
                // It has gone by itself if the directory was removed meanwhile.
                let _ = inotify::remove_watch(&*self.inotify, number);
            }
        }
        FileChange::Removed(text(&left.path))
    }
}

/// A directory that is gone again is not lost.
fn lost(error: &io::Error) -> Option<FileChange> {
    (error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::NotADirectory)
        .then_some(FileChange::Lost)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
