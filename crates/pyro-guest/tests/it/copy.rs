//! Files in and out, with a host that keeps to the rules and one that does not.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future};
use pyro_archive::{Limits, Links};
use pyro_wire::{
    ArchiveLimits, ArchiveReply, ArchiveReport, Failure, FailureKind, Frame, FrameError, OutputStream, Pack,
    Unpack,
};

use crate::host::{CallStream, Host, chunk};

const LIMITS: ArchiveLimits = ArchiveLimits { max_entries: 100, max_bytes: 10 << 20 };

fn host_limits() -> Limits {
    Limits { max_entries: LIMITS.max_entries, max_bytes: LIMITS.max_bytes }
}

fn pack(path: impl AsRef<Path>) -> Pack {
    Pack { path: path.as_ref().to_str().unwrap().to_owned(), limits: LIMITS }
}

fn unpack(path: impl AsRef<Path>, name: &str) -> Unpack {
    let path = path.as_ref().to_str().unwrap().to_owned();
    Unpack { path, name: name.to_owned(), limits: LIMITS, exact: false }
}

fn failure(reply: ArchiveReply) -> Failure {
    match reply {
        ArchiveReply::Failed(failure) => failure,
        ArchiveReply::Archived(report) => panic!("{report:?}"),
    }
}

fn report(reply: ArchiveReply) -> ArchiveReport {
    match reply {
        ArchiveReply::Archived(report) => report,
        ArchiveReply::Failed(failure) => panic!("{failure}"),
    }
}

/// A tree with a large file, an empty directory, a link and something that cannot be copied.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::write(root.join("sub/large"), vec![7; 2 << 20]).unwrap();
    symlink("sub/large", root.join("link")).unwrap();
    crate::host::make_fifo(&root.join("fifo"));
}

fn assert_tree(root: &Path) {
    assert_eq!(fs::read(root.join("sub/large")).unwrap(), vec![7; 2 << 20]);
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("sub/large"));
    assert!(root.join("sub/empty").is_dir());
    assert!(!root.join("fifo").exists());
}

/// Sends the file or directory at `source` and returns the guest's reply.
async fn send(mut stream: CallStream<Unpack>, source: &Path) -> ArchiveReply {
    let mut sink = (&mut stream).with(|bytes: Bytes| future::ready(Ok::<_, FrameError>(chunk(bytes))));
    // A guest that takes no more says so in its reply.
    let _ = pyro_archive::pack_into(source.to_owned(), host_limits(), &mut sink).await;
    reply(&mut stream).await
}

/// The last frame.
async fn reply(stream: &mut CallStream<Unpack>) -> ArchiveReply {
    let reply = match stream.next().await {
        Some(Ok(Frame::Control(reply))) => reply,
        other => panic!("no reply: {other:?}"),
    };
    assert!(stream.next().await.is_none());
    reply
}

/// What a guest sends until its reply, and the reply.
async fn receive(mut stream: CallStream<Pack>) -> (Vec<Bytes>, ArchiveReply) {
    let mut chunks = Vec::new();
    loop {
        match stream.next().await.unwrap().unwrap() {
            Frame::Output(OutputStream::Stdout, bytes) => chunks.push(bytes),
            Frame::Output(OutputStream::Stderr, _) => panic!("there is only one stream"),
            Frame::Control(reply) => {
                assert!(stream.next().await.is_none());
                return (chunks, reply);
            }
        }
    }
}

#[tokio::test]
async fn a_directory_goes_out() {
    let host = Host::new();
    make_tree(&host.path("tree"));
    let (chunks, reply) = receive(host.call(pack("tree")).await).await;
    let report = report(reply);
    assert_eq!((report.entries, report.bytes, report.left_out), (5, 2 << 20, 1));
    assert_eq!(report.examples, ["tree/fifo: a fifo"]);
    let to = tempfile::tempdir().unwrap();
    let mut chunks = futures::stream::iter(chunks.into_iter().map(io::Result::Ok));
    let place = (to.path().to_owned(), "copy".into());
    pyro_archive::unpack_from(&mut chunks, place, host_limits(), Links::Inside).await.unwrap();
    assert_tree(&to.path().join("copy"));
}

#[tokio::test]
async fn writing_over_a_file_goes_through_links_and_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    let script = host.path("s.sh");
    fs::write(&script, "#!/bin/sh\necho 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    symlink("s.sh", host.path("l")).unwrap();
    symlink("round", host.path("round")).unwrap();
    let write = async |path: &str| {
        let limits = ArchiveLimits { max_entries: 1, ..LIMITS };
        let unpack = Unpack { path: path.to_owned(), name: String::new(), limits, exact: true };
        let mut stream = host.call(unpack).await;
        let mut sink = (&mut stream).with(|bytes: Bytes| future::ready(Ok::<_, FrameError>(chunk(bytes))));
        // A guest that takes nothing says so in its reply.
        let _ = pyro_archive::contents_into(format!("by {path}").into_bytes(), 0o644, &mut sink).await;
        reply(&mut stream).await
    };
    for path in ["s.sh", "l"] {
        report(write(path).await);
        assert_eq!(fs::read_to_string(&script).unwrap(), format!("by {path}"));
        assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o7777, 0o750);
        assert_eq!(fs::read_link(host.path("l")).unwrap(), Path::new("s.sh"));
    }
    fs::create_dir(host.path("d")).unwrap();
    for (path, cause) in
        [("round", "cannot follow"), ("d", "cannot create d: a directory exists in its place")]
    {
        let failure = failure(write(path).await);
        assert!(failure.cause.contains(cause) && failure.cause.contains(path), "{failure:?}");
    }
}

#[tokio::test]
async fn a_copy_over_a_file_goes_through_links_and_keeps_modes() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    fs::create_dir(host.path("d")).unwrap();
    for path in ["s.sh", "d/one"] {
        fs::write(host.path(path), "old").unwrap();
        fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o750)).unwrap();
    }
    symlink("../s.sh", host.path("d/l")).unwrap();
    let from = tempfile::tempdir().unwrap();
    let source = from.path().join("one");
    for (text, path, name) in [("1", "s.sh", "x"), ("2", "d/l", "x"), ("3", "d", "l")] {
        fs::write(&source, text).unwrap();
        report(send(host.call(unpack(path, name)).await, &source).await);
        assert_eq!(fs::read_to_string(host.path("s.sh")).unwrap(), text, "{path}");
        assert_eq!(mode(&host.path("s.sh")), 0o750, "{path}");
        assert!(fs::symlink_metadata(host.path("d/l")).unwrap().is_symlink());
    }
    // A file in a tree is one that is written over, too.
    report(send(host.call(unpack(".", "d")).await, from.path()).await);
    assert_eq!(fs::read_to_string(host.path("d/one")).unwrap(), "3");
    assert_eq!(mode(&host.path("d/one")), 0o750);
}

#[tokio::test]
async fn a_directory_comes_in() {
    let host = Host::new();
    let from = tempfile::tempdir().unwrap();
    make_tree(from.path());
    let reply = send(host.call(unpack("tree", "ignored")).await, from.path()).await;
    assert_eq!(report(reply).entries, 5);
    assert_tree(&host.path("tree"));
    // Into a directory that is there, under its own name.
    let reply = send(host.call(unpack("tree", "again")).await, from.path()).await;
    assert_eq!(report(reply).bytes, 2 << 20);
    assert_tree(&host.path("tree/again"));
}

#[tokio::test]
async fn paths_are_below_the_workspace_unless_they_are_absolute() {
    let host = Host::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("file");
    fs::write(host.path("file"), "text").unwrap();
    report(send(host.call(unpack(&target, "n")).await, &host.path("file")).await);
    assert_eq!(fs::read_to_string(&target).unwrap(), "text");
    report(receive(host.call(pack(&target)).await).await.1);
}

#[tokio::test]
async fn an_exact_name_gets_its_directories() {
    let host = Host::new();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), "text").unwrap();
    let exact = Unpack { exact: true, ..unpack("a/b/c", "n") };
    report(send(host.call(exact).await, &from.path().join("file")).await);
    assert_eq!(fs::read_to_string(host.path("a/b/c")).unwrap(), "text");

    let failure = failure(send(host.call(unpack("x/y", "n")).await, &from.path().join("file")).await);
    assert_eq!((failure.kind, failure.errno), (FailureKind::FileNotFound, Some(2)), "{failure}");
    assert_eq!(failure.step, "unpacking x/y");
    assert!(!host.path("x").exists());
}

#[tokio::test]
async fn what_stands_in_the_way_is_a_failure_with_its_kind() {
    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    let exact = Unpack { exact: true, ..unpack("file/below/it", "n") };
    let failure = failure(send(host.call(exact).await, &host.path("file")).await);
    assert_eq!((failure.kind, failure.errno), (FailureKind::NotADirectory, Some(20)), "{failure}");
}

#[tokio::test]
async fn what_cannot_be_packed_is_a_failure_with_its_kind() {
    let host = Host::new();
    let (chunks, reply) = receive(host.call(pack("missing")).await).await;
    let missing = failure(reply);
    assert!(chunks.is_empty());
    assert_eq!((missing.kind, missing.errno), (FailureKind::FileNotFound, Some(2)));
    assert_eq!(missing.step, "packing missing");
    assert!(missing.cause.starts_with("cannot examine "), "{}", missing.cause);
    assert!(missing.cause.ends_with("No such file or directory (os error 2)"), "{}", missing.cause);

    let device = failure(receive(host.call(pack("/dev/null")).await).await.1);
    assert_eq!((device.kind, device.errno), (FailureKind::Unsupported, None));
    assert_eq!(device.cause, "/dev/null is neither a regular file nor a directory");
}

#[tokio::test]
async fn limits_hold_in_both_directions() {
    let host = Host::new();
    fs::write(host.path("large"), vec![7; 1000]).unwrap();
    let limits = ArchiveLimits { max_bytes: 999, ..LIMITS };
    let reply = receive(host.call(Pack { limits, ..pack("large") }).await).await.1;
    assert_eq!(failure(reply).cause, "the files are too large: the maximum is 999 bytes in total");
    let stream = host.call(Unpack { limits, ..unpack("copy", "n") }).await;
    assert_eq!(failure(send(stream, &host.path("large")).await).kind, FailureKind::Other);
    assert!(!host.path("copy").exists());
}

#[tokio::test]
async fn a_stream_without_an_end_is_cut_off_at_the_limit() {
    let host = Host::new();
    let from = tempfile::tempdir().unwrap();
    // Far more than all windows and buffers on the way can hold: a guest that read on would never reply.
    fs::write(from.path().join("large"), vec![7; 64 << 20]).unwrap();
    let mut stream = host.call(unpack("copy", "n")).await;
    let limits = Limits { max_entries: 1, max_bytes: u64::MAX };
    let reply = {
        let (sink, mut replies) = (&mut stream).split();
        let mut sink = sink.with(|bytes: Bytes| future::ready(Ok::<_, FrameError>(chunk(bytes))));
        tokio::select! {
            sent = pyro_archive::pack_into(from.path().join("large"), limits, &mut sink) => {
                assert!(sent.is_err(), "all of it was taken");
                replies.next().await
            }
            reply = replies.next() => reply,
        }
    };
    let Some(Ok(Frame::Control(reply))) = reply else { panic!("{reply:?}") };
    assert_eq!(
        failure(reply).cause,
        format!("the files are too large: the maximum is {} bytes in total", LIMITS.max_bytes)
    );
    assert!(!host.path("copy").exists());
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let host = Host::new();
    let mut stream = host.call(unpack("copy", "n")).await;
    stream.send(chunk(vec![b'x'; 4096])).await.unwrap();
    let cause = failure(reply(&mut stream).await).cause;
    assert!(cause.starts_with("the stream of files is malformed"), "{cause}");

    let mut stream = host.call(unpack("copy", "n")).await;
    stream.send(Frame::Output(OutputStream::Stderr, Bytes::from_static(b"x"))).await.unwrap();
    let cause = failure(reply(&mut stream).await).cause;
    assert!(cause.starts_with("cannot receive the stream of files"), "{cause}");
    assert!(!host.path("copy").exists());
}

#[tokio::test]
async fn an_archive_that_is_cut_short_makes_nothing() {
    let host = Host::new();
    fs::write(host.path("file"), vec![7; 1000]).unwrap();
    let whole = receive(host.call(pack("file")).await).await.0.concat();
    for length in [0, 100, 512, 1000, whole.len() - 1] {
        let mut stream = host.call(unpack("copy", "n")).await;
        stream.send(chunk(whole[..length].to_vec())).await.unwrap();
        stream.close().await.unwrap();
        let failure = failure(reply(&mut stream).await);
        assert_eq!(failure.cause, "the stream of files is truncated", "{length}");
    }
    let names: Vec<_> = fs::read_dir(host.workspace()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "nothing partial is left");
}

#[tokio::test]
async fn a_name_cannot_lead_out_of_the_directory() {
    let host = Host::new();
    fs::write(host.path("file"), "text").unwrap();
    fs::create_dir(host.path("inner")).unwrap();
    for name in ["../out", "..", ".", "", "/out", "a/b"] {
        let stream = host.call(unpack("inner", name)).await;
        let failure = failure(send(stream, &host.path("file")).await);
        assert_eq!(failure.step, "unpacking inner", "{name:?}");
    }
    assert_eq!(fs::read_dir(host.path("inner")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(host.workspace()).unwrap().count(), 2);
}

#[tokio::test]
async fn a_host_that_goes_away_in_the_middle_leaves_nothing_behind() {
    let host = Host::new();
    fs::write(host.path("large"), vec![7; 5 << 20]).unwrap();
    let mut out = host.call(pack("large")).await;
    out.next().await.unwrap().unwrap();
    drop(out);
    fs::write(host.path("file"), vec![7; 1000]).unwrap();
    let whole = receive(host.call(pack("file")).await).await.0.concat();
    let mut stream = host.call(unpack("copy", "n")).await;
    stream.send(chunk(whole[..700].to_vec())).await.unwrap();
    drop(stream);
    assert_eq!(host.run(host.exec("echo on")).await.text(), "on\n", "the agent goes on");
    assert!(!host.path("copy").exists());
}
