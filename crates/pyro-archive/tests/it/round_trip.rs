//! Packing and unpacking gives the same files back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use pyro_archive::{Limits, Links, Rules, pack, unpack};
use tempfile::tempdir;

use crate::trees::{Outside, Thing, set_mode, tree};

const LIMITS: Limits = Limits { max_entries: 10_000, max_bytes: 1 << 24 };

#[derive(Clone, Debug)]
enum Node {
    File { mode: u32, modified: u64, data: Vec<u8> },
    Directory { mode: u32, nodes: BTreeMap<Vec<u8>, Node> },
    Symlink(Vec<u8>),
}

impl Node {
    fn make(&self, path: &Path) {
        match self {
            Self::File { mode, modified, data } => {
                fs::write(path, data).unwrap();
                let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(*modified);
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_times(FileTimes::new().set_modified(modified))
                    .unwrap();
                set_mode(path, *mode);
            }
            Self::Directory { mode, nodes } => {
                fs::create_dir(path).unwrap();
                for (name, node) in nodes {
                    node.make(&path.join(OsStr::from_bytes(name)));
                }
                set_mode(path, *mode);
            }
            Self::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Directory { nodes, .. } => 1 + nodes.values().map(Self::count).sum::<u64>(),
            _ => 1,
        }
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name has it", |byte| !matches!(byte, 0 | b'/'));
    let name = prop_oneof![
        4 => vec(byte.clone(), 1..12),
        1 => vec(byte, 90..=255),
        1 => "[a-z]{1,3}".prop_map(String::into_bytes),
    ];
    name.prop_filter("no name is this", |name| !matches!(name.as_slice(), b"." | b".."))
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no path has it", |byte| *byte != 0);
    prop_oneof![4 => vec(byte.clone(), 1..20), 1 => vec(byte, 90..400)]
}

/// What its owner may read, so that also ordinary users can run this.
fn file() -> impl Strategy<Value = Node> {
    let data = prop_oneof![8 => vec(any::<u8>(), 0..1500), 1 => vec(Just(7), 60_000..140_000)];
    (0_u32..0o1000, 0_u64..1 << 33, data).prop_map(|(mode, modified, data)| Node::File {
        mode: mode | 0o400,
        modified,
        data,
    })
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![3 => file(), 1 => target().prop_map(Node::Symlink)];
    leaf.prop_recursive(6, 30, 6, |node| {
        (0_u32..0o1000, btree_map(name(), node, 0..6))
            .prop_map(|(mode, nodes)| Node::Directory { mode: mode | 0o700, nodes })
    })
    .prop_filter("an item is not a symlink", |node| !matches!(node, Node::Symlink(_)))
}

fn there_and_back(source: &Path) -> (BTreeMap<std::path::PathBuf, Thing>, u64) {
    let mut stream = Vec::new();
    let report = pack(source, &mut stream, &LIMITS).unwrap();
    let outside = Outside::new();
    assert_eq!(outside.unpack(&stream, &LIMITS, Links::Any).unwrap(), report);
    assert_eq!(report.left_out, 0);
    (tree(&outside.place()), report.entries)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(node in node()) {
        let dir = tempdir().unwrap();
        let source = dir.path().join("source");
        node.make(&source);
        let (things, entries) = there_and_back(&source);
        prop_assert!(things == tree(&source));
        prop_assert_eq!(entries, node.count());
    }
}

#[test]
fn paths_of_every_length_come_back() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("source");
    let path = (0..10).fold(source.clone(), |path, number| path.join(number.to_string().repeat(50)));
    fs::create_dir_all(&path).unwrap();
    for (length, ancestor) in path.ancestors().take(11).enumerate() {
        fs::write(ancestor.join(format!("file{length}")), [length as u8]).unwrap();
    }
    assert_eq!(there_and_back(&source).0, tree(&source));
}

#[test]
fn directories_may_be_unwritable() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "x").unwrap();
    let mut stream = Vec::new();
    for path in ["sub/file", "sub", ""] {
        set_mode(&source.join(path), if path == "sub/file" { 0o400 } else { 0o500 });
    }
    pack(&source, &mut stream, &LIMITS).unwrap();
    let outside = Outside::new();
    outside.unpack(&stream, &LIMITS, Links::Inside).unwrap();
    assert_eq!(tree(&outside.place()), tree(&source));
    let modified = |path: &Path| fs::metadata(path).unwrap().mtime();
    assert_eq!(modified(&outside.place().join("sub")), modified(&source.join("sub")));
    // So that they can be removed.
    for root in [source, outside.place()] {
        set_mode(&root, 0o700);
        set_mode(&root.join("sub"), 0o700);
    }
}

#[test]
fn a_mask_takes_bits_from_modes_that_are_given_and_from_no_others() {
    let source = tempdir().unwrap();
    let item = source.path().join("item");
    fs::create_dir(&item).unwrap();
    for (name, mode) in [("open", 0o666), ("program", 0o777), ("private", 0o600)] {
        fs::write(item.join(name), name).unwrap();
        set_mode(&item.join(name), mode);
    }
    set_mode(&item, 0o777);
    let mut stream = Vec::new();
    pack(&item, &mut stream, &LIMITS).unwrap();
    for (mask, expected) in [(0, [0o777, 0o666, 0o777, 0o600]), (0o027, [0o750, 0o640, 0o750, 0o600])] {
        let target = tempdir().unwrap();
        let rules = Rules { mask, ..Rules::from(Links::Inside) };
        unpack(&mut &*stream, target.path(), "copy".as_ref(), &LIMITS, rules).unwrap();
        let mode = |name: &str| fs::metadata(target.path().join(name)).unwrap().mode() & 0o7777;
        let modes = ["copy", "copy/open", "copy/program", "copy/private"].map(mode);
        assert_eq!(modes, expected, "{mask:o}");
    }
}
