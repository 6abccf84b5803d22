//! A stream of files: written by the guest and unpacked by the host. Nothing outside the copy may change.
#![no_main]

use std::fs;

use pyro_archive::{Limits, Links, Rules};

const LIMITS: Limits = Limits { max_entries: 50, max_bytes: 1 << 16 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let outside = tempfile::tempdir().expect("a directory for the copy");
    let parent = outside.path().join("parent");
    fs::create_dir(&parent).expect("a directory");
    fs::write(outside.path().join("secret"), "unchanged").expect("a file");
    for links in [Links::Inside, Links::Any] {
        for keeps_owner in [false, true] {
            let rules = Rules { links, mask: 0o077, keeps_owner };
            let _ = pyro_archive::unpack(&mut &*data, &parent, "place".as_ref(), &LIMITS, rules);
        }
    }
    let _ = pyro_archive::read_contents(&mut &*data, 1 << 16);
    let names =
        |dir| fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    assert!(names(&parent).all(|name| name == "place"), "there is something next to the copy");
    let around: Vec<_> = names(&outside.path().to_owned()).collect();
    assert_eq!(around.len(), 2, "{around:?}");
    assert_eq!(fs::read(outside.path().join("secret")).expect("a file"), b"unchanged");
});
