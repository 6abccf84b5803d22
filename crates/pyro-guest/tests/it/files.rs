//! What files are, changes to the tree, and reports of changes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use pyro_wire::{
    ChangeReply, FailureKind, FileChange, FileInfo, FileKind, Frame, LineDecoder, List, ListReply,
    MakeDirectory, Move, Remove, Stat, StatReply, Watch, WatchReply,
};

use crate::host::{CallStream, Host};

fn owned(text: &str) -> String {
    text.to_owned()
}

async fn list(host: &Host, list: List) -> (Vec<FileInfo>, ListReply) {
    let mut stream = host.call(list).await;
    let (mut decoder, mut entries) = (LineDecoder::default(), Vec::new());
    loop {
        match stream.next().await.unwrap().unwrap() {
            Frame::Output(_, piece) => entries.extend(decoder.take::<FileInfo>(&piece).unwrap()),
            Frame::Control(reply) => {
                decoder.finish().unwrap();
                return (entries, reply);
            }
        }
    }
}

fn paths(entries: &[FileInfo]) -> Vec<&str> {
    entries.iter().map(|entry| entry.path.as_str()).collect()
}

#[tokio::test]
async fn a_file_is_described_and_a_link_is_not_followed() {
    let host = Host::new();
    fs::write(host.path("script"), "echo").unwrap();
    fs::set_permissions(host.path("script"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("script", host.path("link")).unwrap();
    crate::host::make_fifo(&host.path("fifo"));
    let stat = async |path: &str| match host.ask(Stat { path: owned(path) }).await {
        StatReply::Found(info) => info,
        StatReply::Failed(failure) => panic!("{failure}"),
    };
    let script = stat("script").await;
    assert_eq!((script.kind, script.size, script.mode), (FileKind::File, 4, 0o4750));
    assert_eq!((script.path.as_str(), script.target), ("script", None));
    assert!(script.modified_ms > 1_700_000_000_000, "{}", script.modified_ms);
    let link = stat("link").await;
    assert_eq!((link.kind, link.target.as_deref()), (FileKind::Symlink, Some("script")));
    assert_eq!(stat("fifo").await.kind, FileKind::Special);
    assert_eq!(stat(host.workspace().to_str().unwrap()).await.kind, FileKind::Directory);

    let StatReply::Failed(failure) = host.ask(Stat { path: owned("none") }).await else {
        panic!("it is there")
    };
    assert_eq!(failure.kind, FailureKind::FileNotFound);
    assert!(failure.cause.starts_with("none: "), "{}", failure.cause);
}

#[tokio::test]
async fn entries_are_in_order_and_a_directory_is_before_what_is_in_it() {
    let host = Host::new();
    fs::create_dir_all(host.path("tree/b/c")).unwrap();
    for file in ["tree/b/c/deep", "tree/b/file", "tree/a", "tree/z"] {
        fs::write(host.path(file), "x").unwrap();
    }
    symlink("b", host.path("tree/m")).unwrap();
    let all = List { path: owned("tree"), recursive: true, max_entries: 100 };
    let (entries, reply) = list(&host, all.clone()).await;
    assert_eq!(paths(&entries), ["a", "b", "m", "z", "b/c", "b/file", "b/c/deep"]);
    assert_eq!(reply, ListReply::Listed { truncated: false });

    let (entries, _) = list(&host, List { recursive: false, ..all.clone() }).await;
    assert_eq!(paths(&entries), ["a", "b", "m", "z"]);
    let (entries, reply) = list(&host, List { max_entries: 5, ..all.clone() }).await;
    assert_eq!((entries.len(), reply), (5, ListReply::Listed { truncated: true }));
    let (_, reply) = list(&host, List { max_entries: 7, ..all.clone() }).await;
    assert_eq!(reply, ListReply::Listed { truncated: false }, "exactly as many");
    for (path, kind) in [("none", FailureKind::FileNotFound), ("tree/a", FailureKind::NotADirectory)] {
        let (_, reply) = list(&host, List { path: owned(path), ..all.clone() }).await;
        let ListReply::Failed(failure) = reply else { panic!("{path}: {reply:?}") };
        assert_eq!(failure.kind, kind, "{failure}");
    }
}

#[tokio::test]
async fn many_entries_come_in_pieces() {
    let host = Host::new();
    fs::create_dir(host.path("many")).unwrap();
    for number in 0..3000 {
        fs::write(host.path(&format!("many/{number:04}")), "").unwrap();
    }
    let (entries, _) = list(&host, List { path: owned("many"), recursive: false, max_entries: 10_000 }).await;
    assert_eq!(entries.len(), 3000);
    assert!(entries.is_sorted_by(|a, b| a.path < b.path));
}

#[tokio::test]
async fn files_are_moved_and_replaced_only_on_request() {
    let host = Host::new();
    fs::write(host.path("a"), "a").unwrap();
    fs::write(host.path("b"), "b").unwrap();
    let a_to_b = Move { from: owned("a"), to: owned("b"), replace: false };
    let ChangeReply::Failed(failure) = host.ask(a_to_b.clone()).await else { panic!("it was replaced") };
    assert!(failure.cause.starts_with("b: File exists"), "{}", failure.cause);
    assert_eq!(host.ask(Move { replace: true, ..a_to_b }).await, ChangeReply::Done);
    assert_eq!(fs::read_to_string(host.path("b")).unwrap(), "a");
    assert!(!host.path("a").exists());
    fs::create_dir(host.path("dir")).unwrap();
    let into = Move { from: owned("b"), to: owned("dir"), replace: false };
    let ChangeReply::Failed(failure) = host.ask(into).await else { panic!("it was replaced") };
    assert!(failure.cause.ends_with("give the whole new path"), "{}", failure.cause);
}

/// As between `/workspace` and the rest of a guest.
#[tokio::test]
async fn files_and_directories_move_to_another_file_system_and_back() {
    let host = Host::new();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(other.path()), device(&host.workspace()), "they are different file systems");
    fs::create_dir(host.path("tree")).unwrap();
    fs::write(host.path("tree/file"), "text").unwrap();
    let there = other.path().join("tree").to_str().unwrap().to_owned();
    let out = Move { from: owned("tree"), to: there.clone(), replace: false };
    assert_eq!(host.ask(out.clone()).await, ChangeReply::Done);
    assert!(!host.path("tree").exists());
    assert_eq!(fs::read_to_string(other.path().join("tree/file")).unwrap(), "text");
    fs::write(host.path("tree"), "in its place").unwrap();
    let back = Move { from: there, to: owned("tree"), replace: false };
    let ChangeReply::Failed(failure) = host.ask(back.clone()).await else { panic!("it was replaced") };
    assert!(failure.cause.starts_with("tree: File exists"), "{}", failure.cause);
    fs::remove_file(host.path("tree")).unwrap();
    assert_eq!(host.ask(back).await, ChangeReply::Done);
    assert_eq!(fs::read_to_string(host.path("tree/file")).unwrap(), "text");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(host.workspace()).unwrap().count(), 1);
}

#[tokio::test]
async fn directories_are_made_with_their_parents_and_removed_with_their_contents_on_request() {
    let host = Host::new();
    let make = MakeDirectory { path: owned("x/y/z") };
    assert_eq!(host.ask(make.clone()).await, ChangeReply::Done);
    assert_eq!(host.ask(make).await, ChangeReply::Done, "it exists");
    fs::write(host.path("x/file"), "").unwrap();
    let ChangeReply::Failed(failure) = host.ask(MakeDirectory { path: owned("x/file") }).await else {
        panic!("it is a file")
    };
    assert!(failure.cause.starts_with("x/file: "), "{}", failure.cause);

    let remove = Remove { path: owned("x"), recursive: false };
    let ChangeReply::Failed(failure) = host.ask(remove.clone()).await else { panic!("it is not empty") };
    assert!(failure.cause.contains("not empty"), "{}", failure.cause);
    symlink("x", host.path("link")).unwrap();
    assert_eq!(host.ask(Remove { path: owned("link"), recursive: true }).await, ChangeReply::Done);
    assert!(host.path("x/y/z").is_dir(), "only the link is removed");
    assert_eq!(host.ask(Remove { path: owned("x/."), recursive: true }).await, ChangeReply::Done);
    assert!(!host.path("x").exists());
}

#[tokio::test]
async fn what_the_guest_needs_is_not_removed() {
    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    let workspace = host.workspace().to_str().unwrap().to_owned();
    let roundabout = format!("{workspace}/../workspace");
    for path in ["/", ".", "/..", "sub/..", &workspace, &roundabout] {
        let ChangeReply::Failed(failure) = host.ask(Remove { path: owned(path), recursive: true }).await
        else {
            panic!("{path} was removed")
        };
        let refused = failure.cause.ends_with("the guest needs this directory")
            || (path == "sub/.." && failure.kind == FailureKind::FileNotFound);
        assert!(refused, "{path}: {failure}");
    }
    assert!(host.path("file").exists());
}

/// Changes as they come.
struct Watched {
    stream: CallStream<Watch>,
    decoder: LineDecoder,
    received: Vec<FileChange>,
}

impl Watched {
    async fn new(host: &Host, path: &str, recursive: bool) -> Self {
        let stream = host.call(Watch { path: owned(path), recursive }).await;
        let mut watched = Self { stream, decoder: LineDecoder::default(), received: Vec::new() };
        watched.until(&FileChange::Watching).await;
        watched
    }

    /// Returns what comes before `last`.
    async fn until(&mut self, last: &FileChange) -> Vec<FileChange> {
        loop {
            if let Some(position) = self.received.iter().position(|change| change == last) {
                let mut before: Vec<_> = self.received.drain(..=position).collect();
                before.pop();
                return before;
            }
            match self.stream.next().await.unwrap().unwrap() {
                Frame::Output(_, piece) => {
                    self.received.extend(self.decoder.take::<FileChange>(&piece).unwrap())
                }
                Frame::Control(reply) => panic!("{reply:?} before {last:?}, after {:?}", self.received),
            }
        }
    }
}

fn created(path: &str) -> FileChange {
    FileChange::Created(owned(path))
}

fn removed(path: &str) -> FileChange {
    FileChange::Removed(owned(path))
}

#[tokio::test]
async fn changes_are_reported_as_they_happen() {
    let host = Host::new();
    fs::create_dir(host.path("dir")).unwrap();
    let mut watched = Watched::new(&host, "dir", false).await;
    fs::write(host.path("dir/a"), "text").unwrap();
    watched.until(&created("a")).await;
    watched.until(&FileChange::Modified(owned("a"))).await;
    fs::set_permissions(host.path("dir/a"), fs::Permissions::from_mode(0o600)).unwrap();
    watched.until(&FileChange::Attributes(owned("a"))).await;
    fs::rename(host.path("dir/a"), host.path("dir/b")).unwrap();
    watched.until(&FileChange::Moved { from: owned("a"), to: owned("b") }).await;
    fs::rename(host.path("dir/b"), host.path("outside")).unwrap();
    watched.until(&removed("b")).await;
    fs::rename(host.path("outside"), host.path("dir/c")).unwrap();
    watched.until(&created("c")).await;
    fs::create_dir(host.path("dir/sub")).unwrap();
    watched.until(&created("sub")).await;
    fs::write(host.path("dir/sub/unseen"), "").unwrap();
    fs::remove_file(host.path("dir/c")).unwrap();
    assert_eq!(watched.until(&removed("c")).await, [], "only the directory itself is watched");
    fs::remove_dir_all(host.path("dir")).unwrap();
    watched.until(&removed("")).await;
    let Some(Ok(Frame::Control(WatchReply::Gone))) = watched.stream.next().await else {
        panic!("it is gone")
    };
}

#[tokio::test]
async fn a_tree_is_watched_with_the_directories_that_are_new_in_it() {
    let host = Host::new();
    fs::create_dir_all(host.path("tree/old")).unwrap();
    let mut watched = Watched::new(&host, "tree", true).await;
    fs::write(host.path("tree/old/a"), "").unwrap();
    watched.until(&created("old/a")).await;
    fs::create_dir_all(host.path("tree/new/deep")).unwrap();
    fs::write(host.path("tree/new/deep/b"), "").unwrap();
    let before: BTreeSet<_> =
        watched.until(&created("new/deep/b")).await.iter().map(|change| format!("{change:?}")).collect();
    assert!(before.contains(&format!("{:?}", created("new/deep"))), "{before:?}");
    // Everything below a directory that moves is known by its new path.
    fs::rename(host.path("tree/new"), host.path("tree/other")).unwrap();
    watched.until(&FileChange::Moved { from: owned("new"), to: owned("other") }).await;
    fs::write(host.path("tree/other/deep/c"), "").unwrap();
    watched.until(&created("other/deep/c")).await;
    // What has left is not watched, even if the same name comes back.
    fs::rename(host.path("tree/other"), host.path("gone")).unwrap();
    watched.until(&removed("other")).await;
    fs::write(host.path("gone/deep/unseen"), "").unwrap();
    fs::create_dir(host.path("tree/last")).unwrap();
    assert_eq!(watched.until(&created("last")).await, []);
}

#[tokio::test]
async fn a_file_is_watched_and_what_does_not_exist_is_not() {
    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    let mut watched = Watched::new(&host, "file", true).await;
    fs::write(host.path("file"), "more").unwrap();
    watched.until(&FileChange::Modified(String::new())).await;
    let WatchReply::Failed(failure) = host.ask(Watch { path: owned("none"), recursive: false }).await else {
        panic!("it does not exist")
    };
    assert_eq!(failure.kind, FailureKind::FileNotFound);
}

/// The directory is made again and again while the watch looks into it.
#[tokio::test]
async fn a_tree_that_changes_all_the_time_is_followed_to_its_end() {
    let host = Host::new();
    fs::create_dir(host.path("tree")).unwrap();
    let mut watched = Watched::new(&host, "tree", true).await;
    let tree = host.path("tree");
    let churn = tokio::task::spawn_blocking(move || {
        for round in 0..200 {
            let dir = tree.join(format!("{}", round % 3));
            fs::create_dir_all(dir.join("a/b")).unwrap();
            fs::write(dir.join("a/b/file"), "").unwrap();
            fs::rename(dir.join("a"), tree.join("moved")).unwrap();
            fs::remove_dir_all(tree.join("moved")).unwrap();
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::create_dir_all(tree.join("end/of/it")).unwrap();
    });
    watched.until(&created("end/of/it")).await;
    churn.await.unwrap();
}

/// The move happens before the watch can look at the new directory, and another one takes its name.
#[tokio::test]
async fn a_directory_that_is_renamed_at_once_is_watched() {
    let host = Host::new();
    fs::create_dir(host.path("tree")).unwrap();
    let mut watched = Watched::new(&host, "tree", true).await;
    fs::create_dir_all(host.path("tree/new/first")).unwrap();
    fs::rename(host.path("tree/new"), host.path("tree/final")).unwrap();
    fs::create_dir_all(host.path("tree/new/second")).unwrap();
    watched.until(&created("final/first")).await;
    watched.until(&created("new/second")).await;
    // Everything so far has been seen once this has.
    fs::write(host.path("tree/mark"), "").unwrap();
    watched.until(&created("mark")).await;
    fs::write(host.path("tree/final/first/a"), "").unwrap();
    fs::write(host.path("tree/new/second/b"), "").unwrap();
    fs::write(host.path("tree/last"), "").unwrap();
    let seen = watched.until(&created("last")).await;
    for path in ["final/first/a", "new/second/b"] {
        assert!(seen.contains(&created(path)), "{path}: {seen:?}");
    }
    assert!(seen.iter().all(|change| !format!("{change:?}").contains("final/second")), "{seen:?}");
}

#[tokio::test]
async fn a_tree_is_watched_anew_after_changes_were_lost() {
    let host = Host::new();
    fs::create_dir_all(host.path("tree/old")).unwrap();
    for file in ["tree/a", "tree/b"] {
        fs::write(host.path(file), "").unwrap();
    }
    let mut watched = Watched::new(&host, "tree", true).await;
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    // Equal events that follow each other count once.
    for _ in 0..=queue.trim().parse::<u32>().unwrap() / 2 {
        for file in ["tree/a", "tree/b"] {
            fs::set_permissions(host.path(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    fs::create_dir(host.path("tree/new")).unwrap();
    fs::rename(host.path("tree/old"), host.path("tree/moved")).unwrap();
    watched.until(&FileChange::Lost).await;
    fs::write(host.path("tree/new/a"), "").unwrap();
    watched.until(&created("new/a")).await;
    fs::write(host.path("tree/moved/b"), "").unwrap();
    watched.until(&created("moved/b")).await;
}

#[tokio::test]
async fn a_large_directory_that_moves_into_a_tree_is_reported_whole() {
    let host = Host::new();
    fs::create_dir(host.path("tree")).unwrap();
    fs::create_dir(host.path("many")).unwrap();
    for number in 0..5000 {
        fs::write(host.path(&format!("many/{number}")), "").unwrap();
    }
    let mut watched = Watched::new(&host, "tree", true).await;
    fs::rename(host.path("many"), host.path("tree/many")).unwrap();
    watched.until(&created("many")).await;
    fs::write(host.path("tree/last"), "").unwrap();
    let names: BTreeSet<_> =
        watched.until(&created("last")).await.iter().map(|change| format!("{change:?}")).collect();
    assert_eq!(names.len(), 5000);
}

/// As editors save it.
#[tokio::test]
async fn a_file_that_is_replaced_is_watched_on() {
    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    symlink("file", host.path("link")).unwrap();
    let mut watched = Watched::new(&host, "link", false).await;
    for _ in 0..2 {
        fs::write(host.path("other"), "new").unwrap();
        fs::rename(host.path("other"), host.path("file")).unwrap();
        assert_eq!(watched.until(&created("")).await, [], "nothing else in the directory is reported");
        fs::remove_file(host.path("file")).unwrap();
        watched.until(&removed("")).await;
        fs::write(host.path("file"), "").unwrap();
        watched.until(&created("")).await;
    }
}

#[tokio::test]
async fn the_removal_of_a_tree_stops_when_the_host_leaves() {
    let host = Host::new();
    fs::create_dir(host.path("tree")).unwrap();
    for number in 0..20_000 {
        fs::write(host.path(&format!("tree/{number}")), "").unwrap();
    }
    let mut watched = Watched::new(&host, "tree", false).await;
    let removal = host.call(Remove { path: owned("tree"), recursive: true }).await;
    while watched.received.is_empty() {
        match watched.stream.next().await.unwrap().unwrap() {
            Frame::Output(_, piece) => {
                watched.received.extend(watched.decoder.take::<FileChange>(&piece).unwrap())
            }
            Frame::Control(reply) => panic!("{reply:?}"),
        }
    }
    drop(removal);
    // Long enough for the rest, if it went on.
    let end = tokio::time::timeout(Duration::from_secs(1), watched.until(&removed(""))).await;
    assert!(end.is_err(), "it was removed");
    let left = fs::read_dir(host.path("tree")).unwrap().count();
    assert!(left > 0, "everything in it was removed");
}

#[tokio::test]
async fn a_deep_tree_is_removed_and_links_in_it_are_not_followed() {
    let host = Host::new();
    let deep = "d/".repeat(200);
    fs::create_dir_all(host.path(&format!("tree/{deep}"))).unwrap();
    fs::create_dir(host.path("kept")).unwrap();
    fs::write(host.path("kept/file"), "").unwrap();
    symlink("../kept", host.path("tree/link")).unwrap();
    for number in 0..3000 {
        fs::write(host.path(&format!("tree/d/{number}")), "").unwrap();
    }
    assert_eq!(host.ask(Remove { path: owned("tree"), recursive: true }).await, ChangeReply::Done);
    assert!(!host.path("tree").exists() && host.path("kept/file").exists());
}

/// Directories of processes are another file system than this one; nothing of them can be removed in any case.
#[tokio::test]
async fn what_is_mounted_is_not_removed() {
    let host = Host::new();
    let remove = Remove { path: owned("/proc"), recursive: true };
    let ChangeReply::Failed(failure) = host.ask(remove).await else { panic!("it was removed") };
    assert!(failure.cause.contains("another file system is mounted there"), "{failure}");
}
