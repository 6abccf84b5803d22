//! Packing and unpacking over a channel of byte chunks. The work itself blocks, so it has a thread of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::io::SyncIoBridge;

use crate::contents::{Parts, read_contents, write_contents, write_contents_to};
use crate::name::printable;
use crate::{ArchiveError, Limits, Report, Rules, pack, unpack};

/// Largest chunk that is sent, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Packs `source` into `sink`, as [`pack`] does. The sink is not closed.
///
/// # Errors
/// [`ArchiveError`]; [`ArchiveError::Stream`] if the sink takes no more.
pub async fn pack_into<S: Sink<Bytes> + Unpin>(
    source: PathBuf,
    limits: Limits,
    sink: &mut S,
) -> Result<Report, ArchiveError> {
    work_into(sink, move |writer| pack(&source, writer, &limits)).await
}

/// Sends a file with these contents, as [`write_contents`] does. The sink is not closed.
///
/// # Errors
/// [`ArchiveError::Stream`] if the sink takes no more.
pub async fn contents_into<S: Sink<Bytes> + Unpin>(
    contents: Vec<u8>,
    mode: u32,
    sink: &mut S,
) -> Result<(), ArchiveError> {
    work_into(sink, move |writer| write_contents(&contents, mode, writer)).await
}

/// Sends a file whose contents come in pieces, with at most `limit` bytes in all. The sink is not closed. Returns how many bytes
/// there were.
///
/// # Errors
/// [`ArchiveError::Io`] if a piece cannot be read, [`ArchiveError::Stream`] if the sink takes no more, [`ArchiveError::TooLarge`].
pub async fn pieces_into<S: Sink<Bytes> + Unpin>(
    pieces: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin),
    mode: u32,
    limit: u64,
    sink: &mut S,
) -> Result<u64, ArchiveError> {
    let mut parts = Parts::default();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(ArchiveError::io("read", "the input"))?;
        if !piece.is_empty() {
            give(sink, parts.part(&piece, mode, limit)?).await?;
        }
    }
    let (rest, size) = parts.end(mode)?;
    give(sink, rest).await?;
    Ok(size)
}

async fn give<S: Sink<Bytes> + Unpin>(sink: &mut S, bytes: Vec<u8>) -> Result<(), ArchiveError> {
    let mut bytes = Bytes::from(bytes);
    while !bytes.is_empty() {
        let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
        sink.send(chunk)
            .await
            .map_err(|_| ArchiveError::Stream { action: "send", source: io::ErrorKind::BrokenPipe.into() })?;
    }
    Ok(())
}

async fn work_into<S: Sink<Bytes> + Unpin, T: Send + 'static>(
    sink: &mut S,
    work: impl FnOnce(&mut SyncIoBridge<DuplexStream>) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let (mut reader, writer) = tokio::io::duplex(CHUNK_BYTES);
    // Its drop, at the end of the work, is the reader's end.
    let mut writer = SyncIoBridge::new(writer);
    let work = tokio::task::spawn_blocking(move || work(&mut writer));
    let sent = send(&mut reader, sink).await;
    // Ends the work if it is still packing: nothing takes its output any more.
    drop(reader);
    match (work.await, sent) {
        (Ok(Ok(done)), Ok(())) => Ok(done),
        // That the sink failed is the reason why packing failed.
        (_, Err(source)) => Err(ArchiveError::Stream { action: "send", source }),
        (Ok(Err(error)), Ok(())) => Err(error),
        (Err(lost), Ok(())) => Err(ArchiveError::Stream { action: "pack", source: io::Error::other(lost) }),
    }
}

async fn send<S: Sink<Bytes> + Unpin>(reader: &mut DuplexStream, sink: &mut S) -> io::Result<()> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        if reader.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        sink.send(chunk.freeze()).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}

/// Unpacks from `stream` as [`unpack`] does, to `name` in `parent`. What follows the archive is not read.
///
/// # Errors
/// [`ArchiveError`].
pub async fn unpack_from<S: Stream<Item = io::Result<Bytes>> + Unpin>(
    stream: &mut S,
    (parent, name): (PathBuf, OsString),
    limits: Limits,
    rules: impl Into<Rules>,
) -> Result<Report, ArchiveError> {
    let rules = rules.into();
    work_from(stream, move |reader| unpack(reader, &parent, &name, &limits, rules)).await
}

/// Reads the contents of a file from `stream`, as [`read_contents`] does. What follows the archive is not read.
///
/// # Errors
/// [`ArchiveError`].
pub async fn contents_from<S: Stream<Item = io::Result<Bytes>> + Unpin>(
    stream: &mut S,
    limit: u64,
) -> Result<Vec<u8>, ArchiveError> {
    work_from(stream, move |reader| read_contents(reader, limit)).await
}

/// Writes the contents of a file from `stream` to `sink`, as [`write_contents_to`] does. What follows the archive is not read.
///
/// # Errors
/// [`ArchiveError`].
pub async fn contents_through<S: Stream<Item = io::Result<Bytes>> + Unpin>(
    stream: &mut S,
    limit: u64,
    mut sink: impl Write + Send + 'static,
) -> Result<u64, ArchiveError> {
    work_from(stream, move |reader| write_contents_to(reader, limit, &mut sink)).await
}

async fn work_from<S: Stream<Item = io::Result<Bytes>> + Unpin, T: Send + 'static>(
    stream: &mut S,
    work: impl FnOnce(&mut BufReader<SyncIoBridge<DuplexStream>>) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let (reader, mut writer) = tokio::io::duplex(CHUNK_BYTES);
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, SyncIoBridge::new(reader));
    let mut work = tokio::task::spawn_blocking(move || work(&mut reader));
    let receive = async {
        while let Some(chunk) = stream.next().await {
            writer.write_all(&chunk?).await?;
        }
        Ok::<_, io::Error>(())
    };
    let ended = tokio::select! {
        biased;
        // It has the whole archive, or gave up.
        done = &mut work => return settled(done),
        received = receive => received,
    };
    // The end of the stream is the reader's end.
    drop(writer);
    match (settled(work.await), ended) {
        (Err(ArchiveError::Truncated), Err(source)) => {
            Err(ArchiveError::Stream { action: "receive", source })
        }
        (done, _) => done,
    }
}

fn settled<T>(done: Result<Result<T, ArchiveError>, tokio::task::JoinError>) -> Result<T, ArchiveError> {
    let lost = |lost| ArchiveError::Stream { action: "unpack", source: io::Error::other(lost) };
    done.map_err(lost)?
}

/// The directory and name for a copy of `own_name` to `target`: below `target` if that is a directory, else `target`
/// itself.
///
/// # Errors
/// [`ArchiveError::NotOneName`] if neither gives a name.
pub fn destination(target: &Path, own_name: Option<&OsStr>) -> Result<(PathBuf, OsString), ArchiveError> {
    if target.is_dir() {
        return Ok((target.to_owned(), own_name.ok_or_else(|| no_name(target))?.to_owned()));
    }
    directory_and_name(target)
}

/// The same, except that the copy is written through a symlink in its place, unless that leads to a directory.
///
/// # Errors
/// As [`destination`]; also if there are too many symlinks.
pub fn followed_destination(
    target: &Path,
    own_name: Option<&OsStr>,
) -> Result<(PathBuf, OsString), ArchiveError> {
    let (parent, name) = destination(target, own_name)?;
    let place = parent.join(&name);
    // Another name is refused when it is used.
    let is_name = place.parent() == Some(&parent) && place.file_name() == Some(&name);
    if is_name && place.is_symlink() && !place.is_dir() {
        return directory_and_name(&followed(&place)?);
    }
    Ok((parent, name))
}

/// The directory and name for a copy with exactly the name `target`, whose directory is made if it is missing. If it is a
/// symlink, the copy is what it leads to.
///
/// # Errors
/// [`ArchiveError::NotOneName`], or there are too many symlinks, or the directory cannot be made.
pub fn exact_destination(target: &Path) -> Result<(PathBuf, OsString), ArchiveError> {
    let (parent, name) = directory_and_name(&followed(target)?)?;
    fs::create_dir_all(&parent).map_err(ArchiveError::io("make", shown(&parent)))?;
    Ok((parent, name))
}

/// Follows symlinks at the end of a path, also to something that does not exist.
fn followed(path: &Path) -> Result<PathBuf, ArchiveError> {
    /// As many as the kernel follows.
    const MAX_LINKS: u32 = 40;
    let mut found = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&found) {
            Ok(target) => found = found.parent().unwrap_or(Path::new("")).join(target),
            // What it is, or why it cannot be used, turns out when it is.
            Err(_) => return Ok(found),
        }
    }
    let looped = io::Error::from_raw_os_error(Errno::LOOP.raw_os_error());
    Err(ArchiveError::Io { action: "follow", name: shown(path), source: looped })
}

fn directory_and_name(path: &Path) -> Result<(PathBuf, OsString), ArchiveError> {
    let name = path.file_name().ok_or_else(|| no_name(path))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_owned(), name.to_owned()))
}

fn no_name(path: &Path) -> ArchiveError {
    ArchiveError::NotOneName { name: shown(path) }
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use futures::stream;

    use super::*;
    use crate::Links;

    const LIMITS: Limits = Limits { max_entries: 1000, max_bytes: 10 << 20 };

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn what_goes_in_at_one_end_comes_out_at_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/large"), vec![7; 3 << 20]).unwrap();
        let (sent, received) = block_on(async {
            let (sender, receiver) = mpsc::channel(1);
            let mut sink = sender;
            let mut chunks = receiver.map(Ok);
            let place = (to.clone(), "copy".into());
            let sending = async {
                let sent = pack_into(from, LIMITS, &mut sink).await;
                sink.close_channel();
                sent
            };
            tokio::join!(sending, unpack_from(&mut chunks, place, LIMITS, Links::Inside))
        });
        assert_eq!(sent.unwrap(), received.unwrap());
        assert_eq!(fs::read(to.join("copy/sub/large")).unwrap(), vec![7; 3 << 20]);
    }

    #[test]
    fn a_stream_that_fails_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut chunks = stream::iter([Err(io::Error::other("the guest went away"))]);
        let place = (dir.path().to_owned(), "copy".into());
        let error = block_on(unpack_from(&mut chunks, place, LIMITS, Links::Inside)).unwrap_err();
        assert!(
            matches!(&error, ArchiveError::Stream { source, .. } if source.to_string() == "the guest went away")
        );
        assert!(!dir.path().join("copy").exists());
    }

    #[test]
    fn a_sink_that_takes_no_more_ends_the_work() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("large"), vec![7; 3 << 20]).unwrap();
        let (mut sink, receiver) = mpsc::channel::<Bytes>(1);
        drop(receiver);
        let error = block_on(pack_into(dir.path().join("large"), LIMITS, &mut sink)).unwrap_err();
        assert!(matches!(error, ArchiveError::Stream { action: "send", .. }), "{error:?}");
    }

    #[test]
    fn things_go_into_a_directory_or_get_a_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = |path: &Path, name: Option<&str>| destination(path, name.map(OsStr::new));
        let inside = target(dir.path(), Some("a")).unwrap();
        assert_eq!(inside, (dir.path().to_owned(), "a".into()));
        let renamed = target(&dir.path().join("b"), Some("a")).unwrap();
        assert_eq!(renamed, (dir.path().to_owned(), "b".into()));
        assert_eq!(target(Path::new("nowhere-here"), None).unwrap(), (".".into(), "nowhere-here".into()));
        assert!(target(dir.path(), None).is_err());
        assert!(target(&dir.path().join("nowhere/.."), Some("a")).is_err());
    }

    #[test]
    fn a_copy_goes_through_a_link_unless_that_leads_to_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/sub")).unwrap();
        for (link, leads_to) in [("file", "d/new"), ("d/file", "new"), ("d/tree", "sub"), ("round", "round")]
        {
            std::os::unix::fs::symlink(leads_to, dir.path().join(link)).unwrap();
        }
        let target =
            |path: &str, name: &str| followed_destination(&dir.path().join(path), Some(OsStr::new(name)));
        let new = (dir.path().join("d"), "new".into());
        assert_eq!(target("file", "a").unwrap(), new);
        assert_eq!(target("d", "file").unwrap(), new);
        assert_eq!(target("d", "other").unwrap(), (dir.path().join("d"), "other".into()));
        assert_eq!(target("d", "tree").unwrap(), (dir.path().join("d"), "tree".into()));
        assert_eq!(target("absent", "a").unwrap(), (dir.path().to_owned(), "absent".into()));
        assert_eq!(target("d", "../file").unwrap(), (dir.path().join("d"), "../file".into()));
        assert!(target("round", "a").is_err());
    }

    #[test]
    fn an_exact_name_gets_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b/c");
        assert_eq!(exact_destination(&target).unwrap(), (dir.path().join("a/b"), "c".into()));
        assert!(dir.path().join("a/b").is_dir());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(exact_destination(&dir.path().join("file/c")).is_err());
        for (link, leads_to) in
            [("one", "two"), ("two", "a/b/new"), ("round", "round"), ("absolute", "/nowhere-here/x")]
        {
            std::os::unix::fs::symlink(leads_to, dir.path().join(link)).unwrap();
        }
        assert_eq!(
            exact_destination(&dir.path().join("one")).unwrap(),
            (dir.path().join("a/b"), "new".into())
        );
        let round = exact_destination(&dir.path().join("round")).unwrap_err();
        assert!(
            matches!(&round, ArchiveError::Io { action: "follow", name, .. } if name.ends_with("/round")),
            "{round:?}"
        );
        assert_eq!(followed(&dir.path().join("absolute")).unwrap(), Path::new("/nowhere-here/x"));
        assert!(exact_destination(&dir.path().join("..")).is_err());
    }
}
