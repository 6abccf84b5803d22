//! Another thread keeps exchanging a directory for a symlink.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pyro_archive::{Links, pack, unpack};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::tempdir;

use crate::streams::{LIMITS, Stream};
use crate::trees::{Outside, Thing, tree};

const ROUNDS: usize = 2000;

/// Does `work` again and again while `one` and `other` keep changing places.
fn while_exchanging(one: &Path, other: &Path, mut work: impl FnMut()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // Also when `work` panics, which would wait for the other thread forever.
        let _stop = Stop(&stop);
        for _ in 0..ROUNDS {
            work();
        }
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn packing_does_not_follow() {
    let dir = tempdir().unwrap();
    for (sub, data) in [("outside", "secret"), ("tree/sub", "public")] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
        fs::write(dir.path().join(sub).join("file"), data).unwrap();
    }
    let other = dir.path().join("link");
    symlink(dir.path().join("outside"), &other).unwrap();
    while_exchanging(&dir.path().join("tree/sub"), &other, || {
        let mut stream = Vec::new();
        let _ = pack(&dir.path().join("tree"), &mut stream, &LIMITS);
        assert!(!stream.windows(6).any(|bytes| bytes == b"secret"));
    });
}

#[test]
fn unpacking_does_not_follow() {
    let outside = Outside::new();
    let sub = outside.place().join("sub");
    fs::create_dir_all(&sub).unwrap();
    let other = outside.place().join("other");
    symlink(outside.parent().join("neighbour"), &other).unwrap();
    let stream = Stream::directory().dir("item/sub").file("item/sub/file", b"evil").end().bytes;
    let mut done = 0;
    while_exchanging(&sub, &other, || {
        let result =
            unpack(&mut stream.as_slice(), &outside.parent(), "place".as_ref(), &LIMITS, Links::Inside);
        done += usize::from(result.is_ok());
    });
    outside.assert_unchanged();
    let written = tree(&outside.place()).into_values().any(|thing| matches!(thing, Thing::File { .. }));
    assert_eq!(written, done > 0);
}
