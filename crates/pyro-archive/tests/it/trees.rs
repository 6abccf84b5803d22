//! Trees on disk: what is in them, and a place that must stay as it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pyro_archive::{ArchiveError, Limits, Links, Report, unpack};
use tempfile::TempDir;

/// One thing of a tree, with everything about it that is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    File { mode: u32, modified: i64, data: Vec<u8> },
    Directory { mode: u32 },
    Symlink(PathBuf),
    Other,
}

/// What is at `path` and below it, by paths from there.
pub(crate) fn tree(path: &Path) -> BTreeMap<PathBuf, Thing> {
    tree_without(path, None)
}

/// The same without what is at `left_out`, which may be too large to be read.
fn tree_without(path: &Path, left_out: Option<&Path>) -> BTreeMap<PathBuf, Thing> {
    let mut things = BTreeMap::new();
    collect(path, Path::new(""), left_out, &mut things);
    things
}

fn collect(path: &Path, name: &Path, left_out: Option<&Path>, things: &mut BTreeMap<PathBuf, Thing>) {
    if left_out == Some(name) {
        return;
    }
    let metadata = fs::symlink_metadata(path).unwrap();
    let mode = metadata.mode() & 0o7777;
    let thing = if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let own_name = entry.unwrap().file_name();
            collect(&path.join(&own_name), &name.join(&own_name), left_out, things);
        }
        Thing::Directory { mode }
    } else if metadata.is_symlink() {
        Thing::Symlink(fs::read_link(path).unwrap())
    } else if metadata.is_file() {
        Thing::File { mode, modified: metadata.mtime(), data: fs::read(path).unwrap() }
    } else {
        Thing::Other
    };
    things.insert(name.to_owned(), thing);
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory for things to be unpacked to, among others that a stream must not reach.
pub(crate) struct Outside {
    dir: TempDir,
    before: BTreeMap<PathBuf, Thing>,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("parent/neighbour")).unwrap();
        for file in ["secret", "item", "parent/item", "parent/neighbour/file"] {
            fs::write(dir.path().join(file), "unchanged").unwrap();
        }
        symlink("neighbour", dir.path().join("parent/link")).unwrap();
        let before = tree(dir.path());
        Self { dir, before }
    }

    /// The directory around it all.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn parent(&self) -> PathBuf {
        self.path().join("parent")
    }

    /// Where the item goes.
    pub(crate) fn place(&self) -> PathBuf {
        self.parent().join("place")
    }

    pub(crate) fn unpack(
        &self,
        stream: &[u8],
        limits: &Limits,
        links: Links,
    ) -> Result<Report, ArchiveError> {
        let result = unpack(&mut &*stream, &self.parent(), "place".as_ref(), limits, links);
        self.assert_unchanged();
        result
    }

    /// Everything outside the place is unchanged, and no other file is left in its directory.
    pub(crate) fn assert_unchanged(&self) {
        let now = tree_without(self.path(), Some(Path::new("parent/place")));
        assert!(now == self.before, "something outside the place has changed: {now:?}");
    }
}
