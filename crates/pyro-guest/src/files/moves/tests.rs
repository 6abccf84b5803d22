//! Within one file system, because copies and rules are the same there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::create_dir(tree.path("to")).unwrap();
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn relocate(&self, from: &str, to: &str, replace: bool) -> Result<(), Failure> {
        self.relocate_unless(&CancellationToken::new(), from, to, replace)
    }

    fn relocate_unless(
        &self,
        stop: &CancellationToken,
        from: &str,
        to: &str,
        replace: bool,
    ) -> Result<(), Failure> {
        let request = Move { from: from.to_owned(), to: to.to_owned(), replace };
        relocate(&request, &self.path(from), &self.path(to), stop)
    }

    /// Every path with its kind, and what it contains.
    fn contents(&self) -> BTreeMap<PathBuf, String> {
        let mut contents = BTreeMap::new();
        let mut directories = vec![self.0.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let text = match () {
                    () if metadata.is_dir() => {
                        directories.push(path.clone());
                        "directory".to_owned()
                    }
                    () if metadata.is_file() => fs::read_to_string(&path).unwrap(),
                    () => format!("{:?}", metadata.file_type()),
                };
                contents.insert(path, text);
            }
        }
        contents
    }
}

fn attribute(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 100];
    let length = getxattr(path, "user.pyro", value.as_mut_slice()).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn a_file_keeps_everything_that_belongs_to_it() {
    let tree = Tree::new();
    let from = tree.path("file");
    let file = fs::File::create(&from).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 8 << 20).unwrap();
    file.set_len(64 << 20).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&from, Some(12), Some(34)).unwrap();
    }
    fs::set_permissions(&from, fs::Permissions::from_mode(0o6751)).unwrap();
    let has_attributes = setxattr(&from, "user.pyro", b"value", XattrFlags::empty()).is_ok();
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
    let before = fs::metadata(&from).unwrap();

    tree.relocate("file", "to/new", false).unwrap();
    assert!(!from.exists());
    let new = tree.path("to/new");
    let after = fs::metadata(&new).unwrap();
    let kept = |it: &fs::Metadata| {
        (it.len(), it.mode(), it.uid(), it.gid(), it.mtime(), it.mtime_nsec(), it.atime(), it.atime_nsec())
    };
    assert_eq!(kept(&after), kept(&before));
    assert_ne!(after.ino(), before.ino());
    assert!(after.blocks() <= before.blocks(), "{} blocks of {}", after.blocks(), before.blocks());
    assert_eq!(attribute(&new).is_some(), has_attributes);
    let copy = fs::File::open(&new).unwrap();
    let mut text = [0; 6];
    for (offset, expected) in [(0, b"begin\0"), (8 << 20, b"middle")] {
        copy.read_exact_at(&mut text, offset).unwrap();
        assert_eq!(&text, expected);
    }
    assert_eq!(fs::read_dir(tree.path("to")).unwrap().count(), 1);
}

#[test]
fn a_tree_is_the_same_at_its_new_path() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("tree/a/b/empty")).unwrap();
    fs::write(tree.path("tree/a/file"), "text").unwrap();
    fs::hard_link(tree.path("tree/a/file"), tree.path("tree/a/b/hard")).unwrap();
    symlink("../nowhere", tree.path("tree/a/link")).unwrap();
    symlink("/etc", tree.path("tree/outside")).unwrap();
    mknodat(&tree.path("tree/fifo"), FileType::Fifo);
    mknodat(&tree.path("tree/socket"), FileType::Socket);
    fs::set_permissions(tree.path("tree/a"), fs::Permissions::from_mode(0o555)).unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let directory = fs::File::open(tree.path("tree/a")).unwrap();
    directory.set_times(fs::FileTimes::new().set_modified(time)).unwrap();

    tree.relocate("tree", "to/new", false).unwrap();
    let new = |path: &str| tree.path("to/new").join(path);
    let metadata = |path: &str| fs::symlink_metadata(new(path)).unwrap();
    assert!(!tree.path("tree").exists());
    assert_eq!(fs::read_to_string(new("a/b/hard")).unwrap(), "text");
    assert_eq!((metadata("a/file").ino(), metadata("a/file").nlink()), (metadata("a/b/hard").ino(), 2));
    assert_eq!(fs::read_link(new("a/link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(fs::read_link(new("outside")).unwrap(), Path::new("/etc"));
    assert_eq!(FileType::from_raw_mode(metadata("fifo").mode()), FileType::Fifo);
    assert_eq!(FileType::from_raw_mode(metadata("socket").mode()), FileType::Socket);
    assert_eq!((metadata("a").mode() & 0o7777, metadata("a").modified().unwrap()), (0o555, time));
    assert!(new("a/b/empty").is_dir());
    assert_eq!(fs::read_dir(tree.path("to")).unwrap().count(), 1);
    // So that the directory of the test can be removed without being root.
    fs::set_permissions(new("a"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn mknodat(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from(0o600), 0).unwrap();
}

#[test]
fn what_has_the_new_path_is_treated_as_within_a_file_system() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("dir/sub")).unwrap();
    fs::create_dir_all(tree.path("to/full/sub")).unwrap();
    fs::create_dir(tree.path("to/empty")).unwrap();
    for file in ["file", "to/file"] {
        fs::write(tree.path(file), file).unwrap();
    }
    symlink("full", tree.path("to/link")).unwrap();
    let before = tree.contents();
    for (from, to, replace, cause) in [
        ("file", "to/file", false, "to/file: File exists"),
        ("file", "to/link", false, "to/link: File exists"),
        ("file", "to/full", false, "to/full: File exists"),
        ("dir", "to/empty", false, "to/empty: File exists"),
        ("file", "to/empty", true, "to/empty: Is a directory"),
        ("dir", "to/file", true, "to/file: Not a directory"),
        ("dir", "to/link", true, "to/link: Not a directory"),
        ("dir", "to/full", true, "to/full: Directory not empty"),
        ("file", "to/none/new", false, "to/none/new: No such file"),
        ("file", "to/new/", false, "to/new/: Not a directory"),
        ("file/", "to/new", false, "file/: Not a directory"),
        ("none", "to/new", false, "none: No such file"),
        ("dir/.", "to/new", false, "dir/.: Device or resource busy"),
        ("dir", "to/..", false, "to/..: Device or resource busy"),
        ("dir", "dir/sub/new", false, "dir/sub: a directory cannot be moved into itself"),
    ] {
        let failure = tree.relocate(from, to, replace).unwrap_err();
        assert!(failure.cause.starts_with(cause), "{from} to {to}: {}", failure.cause);
        assert_eq!(tree.contents(), before, "{from} to {to}");
    }
    // By another mount, a path can be the same file.
    tree.relocate("file", "file", true).unwrap();
    assert_eq!(tree.contents(), before);
    tree.relocate("file", "to/link", true).unwrap();
    assert_eq!(fs::read_to_string(tree.path("to/link")).unwrap(), "file");
    assert!(tree.path("to/full/sub").exists(), "only the link is replaced");
    tree.relocate("dir", "to/empty/", true).unwrap();
    assert!(tree.path("to/empty/sub").is_dir() && !tree.path("dir").exists());
}

#[test]
fn nothing_is_lost_or_left_when_it_fails() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("dir/sub")).unwrap();
    fs::write(tree.path("dir/sub/file"), "text").unwrap();
    fs::write(tree.path("to/old"), "old").unwrap();
    fs::write(tree.path("file"), "text").unwrap();
    let before = tree.contents();
    let stop = CancellationToken::new();
    stop.cancel();
    for (from, to) in [("dir", "to/new"), ("file", "to/old")] {
        let failure = tree.relocate_unless(&stop, from, to, true).unwrap_err();
        assert_eq!(failure.errno, Some(Errno::CANCELED.raw_os_error()), "{failure}");
        assert_eq!(tree.contents(), before);
    }
    // Such a name is longer than the file system takes, which it finds out in the middle.
    let long = "x".repeat(255);
    fs::write(tree.path("dir").join(&long), "text").unwrap();
    let before = tree.contents();
    let too_long = format!("to/{long}x");
    let failure = tree.relocate("dir", &too_long, false).unwrap_err();
    assert_eq!(failure.errno, Some(Errno::NAMETOOLONG.raw_os_error()), "{failure}");
    assert_eq!(tree.contents(), before);
}

#[test]
fn what_is_not_the_original_any_more_is_not_removed() {
    let tree = Tree::new();
    let place = |path: &str| Place::open(&tree.path(path)).unwrap();
    let of = |path: &str| place(path).stat().unwrap();
    fs::write(tree.path("file"), "text").unwrap();
    fs::create_dir(tree.path("dir")).unwrap();
    let original = of("file");

    // An editor saves a file in this way.
    fs::write(tree.path("new"), "next").unwrap();
    fs::rename(tree.path("new"), tree.path("file")).unwrap();
    assert_eq!(place("file").remove(&original), Err(("file".into(), Errno::STALE)));
    // A program writes to it.
    let original = of("file");
    fs::write(tree.path("file"), "longer").unwrap();
    assert_eq!(place("file").remove(&original), Err(("file".into(), Errno::STALE)));
    let original = of("file");
    let file = fs::File::options().write(true).open(tree.path("file")).unwrap();
    file.set_modified(UNIX_EPOCH).unwrap();
    assert_eq!(place("file").remove(&original), Err(("file".into(), Errno::STALE)));
    assert_eq!(fs::read_to_string(tree.path("file")).unwrap(), "longer");
    // It cannot be looked at.
    let long = "x".repeat(256);
    assert_eq!(place(&long).remove(&original), Err((long.into(), Errno::NAMETOOLONG)));

    place("file").remove(&of("file")).unwrap();
    place("none").remove(&original).unwrap();
    // Entries that are added to a directory change its time, and it is removed with those that were there.
    let original = of("dir");
    fs::write(tree.path("dir/new"), "").unwrap();
    place("dir").remove(&original).unwrap();
    assert!(!tree.path("dir").exists());
}

#[test]
fn what_else_has_the_temporary_name_stays() {
    let tree = Tree::new();
    fs::create_dir(tree.path("dir")).unwrap();
    fs::write(tree.path("file"), "text").unwrap();
    symlink("file", tree.path("link")).unwrap();
    mknodat(&tree.path("fifo"), FileType::Fifo);
    fs::write(tree.path("to/other"), "copy of another move").unwrap();
    fs::create_dir_all(tree.path("to/tree/full")).unwrap();
    let before = tree.contents();
    for temporary in [c"other", c"tree"] {
        for from in ["dir", "file", "link", "fifo"] {
            let request = Move { from: from.to_owned(), to: "to/new".to_owned(), replace: false };
            let never = CancellationToken::new();
            let (from, to) = (tree.path(from), tree.path("to/new"));
            let failure = relocate_by(temporary, &request, &from, &to, &never).unwrap_err();
            assert_eq!(failure.errno, Some(Errno::EXIST.raw_os_error()), "{failure}");
            assert_eq!(tree.contents(), before);
        }
    }
    assert_ne!(temporary(), temporary());
}

#[test]
fn files_of_the_kernel_stay_where_they_are() {
    let tree = Tree::new();
    let request = Move { from: "/proc/version".to_owned(), to: "to/new".to_owned(), replace: false };
    let never = CancellationToken::new();
    let failure = relocate(&request, Path::new("/proc/version"), &tree.path("to/new"), &never).unwrap_err();
    assert!(failure.cause.starts_with("/proc/version: files of the kernel"), "{failure}");
    // The root of another file system.
    let request = Move { from: "/proc".to_owned(), ..request };
    let failure = relocate(&request, Path::new("/proc"), &tree.path("to/new"), &never).unwrap_err();
    assert_eq!(failure.cause, "/proc: another file system is mounted there");
    assert_eq!(fs::read_dir(tree.path("to")).unwrap().count(), 0);
}
