//! What happens to what is there already.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use pyro_archive::{ArchiveError, Links};

use crate::streams::{LIMITS, Stream};
use crate::trees::{Outside, set_mode, tree};

fn is_in_the_way(result: Result<pyro_archive::Report, ArchiveError>, expected: &str) {
    match result {
        Err(ArchiveError::InTheWay { there, .. }) => assert_eq!(there, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_keeps_what_it_has_and_its_mode() {
    let outside = Outside::new();
    let place = outside.place();
    fs::create_dir_all(place.join("both")).unwrap();
    fs::write(place.join("both/mine"), "mine").unwrap();
    fs::write(place.join("both/shared"), "old").unwrap();
    set_mode(&place, 0o711);
    let stream = Stream::directory().dir("item/both").file("item/both/shared", b"new").dir("item/theirs");
    assert_eq!(stream.unpack(&outside).unwrap().entries, 4);
    assert_eq!(fs::read(place.join("both/mine")).unwrap(), b"mine");
    assert_eq!(fs::read(place.join("both/shared")).unwrap(), b"new");
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(tree(&place).len(), 5);
}

#[test]
fn files_and_links_are_replaced_and_not_written_through() {
    let outside = Outside::new();
    let place = outside.place();
    fs::create_dir(&place).unwrap();
    let secret = outside.path().join("secret");
    fs::hard_link(&secret, place.join("hard")).unwrap();
    symlink(&secret, place.join("soft")).unwrap();
    symlink(&secret, place.join("stays-soft")).unwrap();
    let stream = Stream::directory().file("item/hard", b"evil").file("item/soft", b"evil");
    stream.link("item/stays-soft", "hard").unpack(&outside).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"unchanged");
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
    assert!(fs::symlink_metadata(place.join("soft")).unwrap().is_file());
    assert_eq!(fs::read_link(place.join("stays-soft")).unwrap(), Path::new("hard"));
}

#[test]
fn a_symlink_is_never_taken_for_a_directory() {
    for links in [Links::Inside, Links::Any] {
        let outside = Outside::new();
        symlink("neighbour", outside.place()).unwrap();
        let stream = Stream::directory().file("item/file", b"evil");
        is_in_the_way(stream.unpack_with(&outside, &LIMITS, links), "a symlink");

        let outside = Outside::new();
        fs::create_dir(outside.place()).unwrap();
        symlink("../neighbour", outside.place().join("sub")).unwrap();
        let stream = Stream::directory().dir("item/sub").file("item/sub/file", b"evil");
        is_in_the_way(stream.unpack_with(&outside, &LIMITS, links), "a symlink");
    }
}

#[test]
fn a_single_file_replaces_only_a_file() {
    let stream = || Stream::default().file("item", b"new");
    let outside = Outside::new();
    fs::write(outside.place(), "a longer old one").unwrap();
    assert_eq!(stream().unpack(&outside).unwrap().bytes, 3);
    assert_eq!(fs::read(outside.place()).unwrap(), b"new");

    let outside = Outside::new();
    symlink("neighbour/file", outside.place()).unwrap();
    is_in_the_way(stream().unpack(&outside), "a symlink");

    let outside = Outside::new();
    fs::create_dir(outside.place()).unwrap();
    is_in_the_way(stream().unpack(&outside), "a directory");

    let outside = Outside::new();
    let _socket = UnixListener::bind(outside.place()).unwrap();
    is_in_the_way(stream().unpack(&outside), "a device, fifo or socket");
}

#[test]
fn a_file_that_is_written_over_keeps_its_owner_and_mode() {
    use pyro_archive::{Rules, write_contents};
    let outside = Outside::new();
    let place = outside.place();
    let parent = place.parent().unwrap();
    let rules = Rules { keeps_owner: true, ..Rules::from(Links::Any) };
    let write = |contents: &[u8], mode| {
        let mut stream = Vec::new();
        write_contents(contents, mode, &mut stream).unwrap();
        pyro_archive::unpack(&mut stream.as_slice(), parent, "place".as_ref(), &LIMITS, rules).unwrap();
        let metadata = fs::metadata(&place).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    let ours = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    assert_eq!(write(b"new", 0o644), (0o644, ours.0, ours.1));
    // Only root can give files away.
    let theirs = if ours.0 == 0 { (1234, 4321) } else { ours };
    std::os::unix::fs::chown(&place, Some(theirs.0), Some(theirs.1)).unwrap();
    set_mode(&place, 0o750);
    assert_eq!(write(b"again", 0o644), (0o750, theirs.0, theirs.1));
    set_mode(&place, 0o600);
    // Who may not read it may not execute it either.
    assert_eq!(write(b"executable", 0o755), (0o700, theirs.0, theirs.1));
    assert_eq!(fs::read(&place).unwrap(), b"executable");
    set_mode(&place, 0o640);
    assert_eq!(write(b"for the group", 0o755), (0o750, theirs.0, theirs.1));
    // Other contents than those that were trusted to run as their owner.
    set_mode(&place, 0o6755);
    assert_eq!(write(b"trusted?", 0o644), (0o755, theirs.0, theirs.1));
}

#[test]
fn kinds_do_not_replace_each_other() {
    let outside = Outside::new();
    let place = outside.place();
    fs::create_dir_all(place.join("dir")).unwrap();
    fs::write(place.join("file"), "old").unwrap();
    let _socket = UnixListener::bind(place.join("socket")).unwrap();
    let before = tree(&place);
    is_in_the_way(Stream::directory().file("item/dir", b"").unpack(&outside), "a directory");
    is_in_the_way(Stream::directory().link("item/dir", "file").unpack(&outside), "a directory");
    is_in_the_way(Stream::directory().dir("item/file").unpack(&outside), "a file");
    is_in_the_way(Stream::directory().file("item/socket", b"").unpack(&outside), "a device, fifo or socket");
    is_in_the_way(Stream::directory().dir("item/socket").unpack(&outside), "a device, fifo or socket");
    assert_eq!(tree(&place), before);

    let outside = Outside::new();
    fs::write(outside.place(), "old").unwrap();
    is_in_the_way(Stream::directory().unpack(&outside), "a file");
}

#[test]
fn the_parent_has_to_be_a_directory() {
    let outside = Outside::new();
    let stream = Stream::directory().end().bytes;
    for parent in ["nowhere", "secret"] {
        let parent = outside.path().join(parent);
        let result =
            pyro_archive::unpack(&mut stream.as_slice(), &parent, "place".as_ref(), &LIMITS, Links::Any);
        assert!(matches!(result, Err(ArchiveError::Io { action: "open", .. })), "{result:?}");
    }
    outside.assert_unchanged();
}
