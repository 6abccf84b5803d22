//! Looks at files of the machine, and changes the tree. Everything here runs on threads that may block: a file system that does
//! not respond must not hold the agent up.

pub(crate) mod moves;
pub(crate) mod remove;
pub(crate) mod watch;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::SinkExt;
use pyro_wire::{
    ChangeReply, Failure, FileInfo, FileKind, Frame, List, ListReply, MAX_LISTED, MakeDirectory,
    OutputStream, Stat, StatReply, append_line,
};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::blocking::blocking;
use crate::failure::failed;
use crate::stream::{CallStream, finish};

/// Bytes of lines that are sent at a time, about.
const PIECE_BYTES: usize = 32 << 10;
/// Number of such pieces that wait for the host.
const PIECES_AHEAD: usize = 4;

/// Describes one file.
pub(crate) async fn stat(request: Stat, workspace: PathBuf) -> StatReply {
    let described = blocking(move || {
        let path = workspace.join(&request.path);
        let metadata =
            fs::symlink_metadata(&path).map_err(|error| because("looking at", &request.path, error))?;
        Ok(describe(&path, request.path, &metadata))
    });
    match described.await {
        Ok(info) => StatReply::Found(info),
        Err(failure) => StatReply::Failed(failure),
    }
}

/// Sends the entries of a directory, unless the host leaves before the end.
pub(crate) async fn list<S>(request: List, workspace: &Path, mut stream: CallStream<S, List>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let top = workspace.join(&request.path);
    let listing = tokio::spawn(blocking(move || {
        Listing::new(&top, &request, sender).send().map_err(|error| because("listing", &request.path, error))
    }));
    while let Some(piece) = pieces.recv().await {
        if stream.send(Frame::Output(OutputStream::Stdout, piece)).await.is_err() {
            return;
        }
    }
    let reply = match listing.await {
        Ok(Ok(truncated)) => ListReply::Listed { truncated },
        Ok(Err(failure)) => ListReply::Failed(failure),
        Err(_) => return,
    };
    finish(stream, reply).await;
}

/// Makes a directory.
pub(crate) async fn make_directory(request: MakeDirectory, workspace: PathBuf) -> ChangeReply {
    changed(move || {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(workspace.join(&request.path));
        made.map_err(|error| because("making", &request.path, error))
    })
    .await
}

async fn changed(change: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> ChangeReply {
    match blocking(change).await {
        Ok(()) => ChangeReply::Done,
        Err(failure) => ChangeReply::Failed(failure),
    }
}

/// The failure of a step with its path. The cause names the path too, because callers show nothing else.
fn because(step: &str, path: &str, error: io::Error) -> Failure {
    let failure = failed(format!("{step} {path}"), error);
    Failure { cause: format!("{path}: {}", failure.cause), ..failure }
}

fn is_same(path: &Path, other: &Metadata) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| (it.dev(), it.ino()) == (other.dev(), other.ino()))
}

fn describe(path: &Path, name: String, metadata: &Metadata) -> FileInfo {
    let kind = kind(metadata.file_type());
    let target = (kind == FileKind::Symlink).then(|| fs::read_link(path).ok()).flatten();
    FileInfo {
        path: name,
        kind,
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ms: metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}

/// Something of which only the directory that it is in can say something.
fn unknown(name: String, kind: FileKind) -> FileInfo {
    FileInfo { path: name, kind, size: 0, mode: 0, uid: 0, gid: 0, modified_ms: 0, target: None }
}

fn kind(file: fs::FileType) -> FileKind {
    if file.is_file() {
        FileKind::File
    } else if file.is_dir() {
        FileKind::Directory
    } else if file.is_symlink() {
        FileKind::Symlink
    } else {
        debug_assert!(
            file.is_fifo() || file.is_socket() || file.is_block_device() || file.is_char_device(),
            "there are no other kinds"
        );
        FileKind::Special
    }
}

/// The host does not want the rest.
struct Abandoned;

/// Values as lines of JSON, in pieces for the host.
struct Lines {
    piece: Vec<u8>,
    sender: mpsc::Sender<Bytes>,
}

impl Lines {
    fn new(sender: mpsc::Sender<Bytes>) -> Self {
        Self { piece: Vec::new(), sender }
    }

    fn push(&mut self, value: &impl Serialize) -> Result<(), Abandoned> {
        append_line(&mut self.piece, value);
        if self.piece.len() < PIECE_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Abandoned> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        if piece.is_empty() { Ok(()) } else { self.sender.blocking_send(piece).map_err(|_| Abandoned) }
    }
}

/// A walk through a directory, each directory before its entries.
struct Listing<'a> {
    top: &'a Path,
    recursive: bool,
    left: u64,
    lines: Lines,
}

impl<'a> Listing<'a> {
    fn new(top: &'a Path, request: &List, sender: mpsc::Sender<Bytes>) -> Self {
        let List { recursive, max_entries, .. } = *request;
        Self { top, recursive, left: max_entries.min(MAX_LISTED), lines: Lines::new(sender) }
    }

    /// Returns whether there are more entries.
    fn send(mut self) -> io::Result<bool> {
        let device = fs::metadata(self.top)?.dev();
        // Names of directories below the top, the next one last.
        let mut directories = vec![PathBuf::new()];
        // The entries of a directory are missing.
        let mut is_incomplete = false;
        while let Some(directory) = directories.pop() {
            let names = match self.names(&self.top.join(&directory)) {
                Err(error) if directory != Path::new("") => {
                    // Most are removed after they were found.
                    is_incomplete |= error.kind() != io::ErrorKind::NotFound;
                    continue;
                }
                names => names?,
            };
            let next = directories.len();
            for (name, kind) in names {
                let below = directory.join(name);
                let path = self.top.join(&below);
                let text = below.to_string_lossy().into_owned();
                let (info, is_tree) = match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    // Its file system does not respond, or its path is too long for the kernel.
                    Err(_) => (unknown(text, kind), false),
                    // What is mounted there is another tree, such as `/proc`.
                    Ok(metadata) => {
                        let is_tree = metadata.is_dir() && metadata.dev() == device;
                        (describe(&path, text, &metadata), is_tree)
                    }
                };
                if self.left == 0 {
                    let _ = self.lines.flush();
                    return Ok(true);
                }
                self.left -= 1;
                if self.lines.push(&info).is_err() {
                    return Ok(true);
                }
                if self.recursive && is_tree {
                    directories.push(below);
                }
            }
            directories[next..].reverse();
        }
        let _ = self.lines.flush();
        Ok(is_incomplete)
    }

    /// The names in a directory in their order, each with the kind of file, but no more than are needed to know that there are too
    /// many.
    fn names(&self, directory: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        let needed = usize::try_from(self.left).unwrap_or(usize::MAX).saturating_add(1);
        let entries = fs::read_dir(directory)?.take(needed);
        let named =
            |entry: fs::DirEntry| (entry.file_name(), entry.file_type().map_or(FileKind::Special, kind));
        let mut names = entries.map(|entry| entry.map(named)).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(names)
    }
}
