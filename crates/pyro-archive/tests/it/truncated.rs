//! Streams that end too early.

use std::fs;

use pyro_archive::{ArchiveError, Links, Report, unpack};

use crate::streams::{LIMITS, Stream};
use crate::trees::{Outside, Thing, tree};

/// Looking at everything outside after each of thousands of streams takes long: it is done once, at the end.
fn unpack_only(outside: &Outside, stream: &[u8]) -> Result<Report, ArchiveError> {
    unpack(&mut &*stream, &outside.parent(), "place".as_ref(), &LIMITS, Links::Inside)
}

#[test]
fn a_directory_cut_anywhere_is_no_success() {
    let long = format!("item/b/{}", "n".repeat(200));
    let stream = Stream::directory().file("item/a", b"some data").dir("item/b");
    let stream = stream.entry(tar::EntryType::GNULongName, b"", b"", long.as_bytes()).file(&long, &[7; 600]);
    let stream = stream.link("item/c", "a").end().bytes;
    let whole = Outside::new();
    whole.unpack(&stream, &LIMITS, Links::Inside).unwrap();
    let whole = tree(&whole.place());
    let outside = Outside::new();
    for length in 0..stream.len() {
        let result = unpack_only(&outside, &stream[..length]);
        assert!(matches!(result, Err(ArchiveError::Truncated)), "{length}: {result:?}");
        if !outside.place().exists() {
            continue;
        }
        // Whatever has its name is whole.
        for (path, thing) in tree(&outside.place()) {
            if !matches!(thing, Thing::Directory { .. }) {
                assert_eq!(thing, whole[&path], "{length}");
            }
        }
        fs::remove_dir_all(outside.place()).unwrap();
    }
    outside.assert_unchanged();
}

#[test]
fn a_single_file_cut_anywhere_leaves_the_old_one() {
    let stream = Stream::default().file("item", &[7; 700]).end().bytes;
    let outside = Outside::new();
    for length in 0..stream.len() {
        let result = unpack_only(&outside, &stream[..length]);
        assert!(matches!(result, Err(ArchiveError::Truncated)), "{length}: {result:?}");
        assert!(!outside.place().exists(), "{length}");
    }
    fs::write(outside.place(), "old").unwrap();
    for length in 0..stream.len() {
        unpack_only(&outside, &stream[..length]).unwrap_err();
        assert_eq!(fs::read(outside.place()).unwrap(), b"old", "{length}");
    }
    outside.unpack(&stream, &LIMITS, Links::Inside).unwrap();
    assert_eq!(fs::read(outside.place()).unwrap(), [7; 700]);
}

#[test]
fn a_file_with_something_behind_it_leaves_the_old_one() {
    let outside = Outside::new();
    fs::write(outside.place(), "old").unwrap();
    Stream::default().file("item", b"new").file("item", b"newer").unpack(&outside).unwrap_err();
    assert_eq!(fs::read(outside.place()).unwrap(), b"old");
}
