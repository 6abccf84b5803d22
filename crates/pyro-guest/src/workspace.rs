//! `/workspace`: a directory of the writable layer itself, mounted into the root.
//!
//! The rest of the root is an overlay, in which neither overlayfs can have its upper directory nor the kernel a swap file.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use pyro_wire::{Failure, WORKSPACE};
use rustix::mount::mount_bind;

use crate::failure::During;

/// Its name in the layer, in a directory of the root's layers, and in the root.
const NAME: &str = "workspace";

/// Returns the directory in the layer, which is made if it is missing. The layers are not joined yet.
///
/// On a disk of an earlier version, the files of the workspace are in the overlay's upper directory. Their directory becomes this
/// one, which the file system does completely or not at all.
///
/// `None`: the workspace is part of the overlay, because the image has files in it.
pub(crate) fn in_layer(base: &Path, layer: &Path, upper: &Path) -> Result<Option<PathBuf>, Failure> {
    let directory = layer.join(NAME);
    if is_directory(&directory).during("looking for the workspace")? {
        return Ok(Some(directory));
    }
    if has_entries(&base.join(NAME)).during("looking for the image's workspace")? {
        return Ok(None);
    }
    let earlier = upper.join(NAME);
    let made = match is_directory(&earlier).during("looking for the workspace of an earlier version")? {
        true => fs::rename(&earlier, &directory),
        false => fs::create_dir(&directory),
    };
    made.during("making the workspace")?;
    Ok(Some(directory))
}

/// Mounts the directory at its place in the root. What the user has put there instead of a directory stays.
pub(crate) fn mount(directory: &Path, root: &Path) -> Result<(), Failure> {
    let place = root.join(NAME);
    match fs::create_dir(&place) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made.during(format!("creating {WORKSPACE}"))?,
    }
    if !is_directory(&place).during(format!("looking for {WORKSPACE}"))? {
        return Ok(());
    }
    mount_bind(directory, &place).during(format!("mounting {WORKSPACE}"))
}

/// A symlink does not count, even if it leads to a directory.
fn is_directory(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        metadata => Ok(metadata?.is_dir()),
    }
}

fn has_entries(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(false),
        entries => entries?.next().transpose().map(|first| first.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The directories of a root before its layers are joined.
    struct Layers(tempfile::TempDir);

    impl Layers {
        /// As an image and an empty layer have them.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["base/workspace", "layer/upper"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            Self(dir)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn in_layer(&self) -> Result<Option<PathBuf>, Failure> {
            in_layer(&self.path("base"), &self.path("layer"), &self.path("layer/upper"))
        }
    }

    #[test]
    fn a_new_layer_gets_an_empty_workspace_which_stays() {
        for image_has_the_directory in [true, false] {
            let layers = Layers::new();
            if !image_has_the_directory {
                fs::remove_dir(layers.path("base/workspace")).unwrap();
            }
            let directory = layers.in_layer().unwrap().unwrap();
            assert_eq!(directory, layers.path("layer/workspace"));
            fs::write(directory.join("file"), "kept").unwrap();
            // What is in the upper directory by now is below the mount.
            fs::create_dir(layers.path("layer/upper/workspace")).unwrap();
            fs::write(layers.path("layer/upper/workspace/below"), "").unwrap();
            assert_eq!(layers.in_layer().unwrap().unwrap(), directory);
            assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "kept");
            assert!(!directory.join("below").exists());
        }
    }

    #[test]
    fn the_workspace_of_an_earlier_version_is_kept() {
        let layers = Layers::new();
        let earlier = layers.path("layer/upper/workspace");
        fs::create_dir_all(earlier.join("project")).unwrap();
        fs::write(earlier.join("project/file"), "kept").unwrap();
        fs::set_permissions(&earlier, fs::Permissions::from_mode(0o1777)).unwrap();
        let directory = layers.in_layer().unwrap().unwrap();
        assert_eq!(fs::read_to_string(directory.join("project/file")).unwrap(), "kept");
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o1777);
        assert!(!earlier.exists());
    }

    #[test]
    fn files_of_the_image_stay_visible_in_the_overlay() {
        let layers = Layers::new();
        fs::write(layers.path("base/workspace/example"), "").unwrap();
        let earlier = layers.path("layer/upper/workspace/file");
        fs::create_dir_all(earlier.parent().unwrap()).unwrap();
        fs::write(&earlier, "").unwrap();
        assert_eq!(layers.in_layer().unwrap(), None);
        assert!(earlier.exists());
        // An environment that was rebuilt with files in it does not hide those of the task.
        fs::create_dir(layers.path("layer/workspace")).unwrap();
        assert_eq!(layers.in_layer().unwrap(), Some(layers.path("layer/workspace")));
    }

    #[test]
    fn something_else_in_its_place_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let layers = Layers::new();
        symlink("/elsewhere", layers.path("layer/upper/workspace")).unwrap();
        let directory = layers.in_layer().unwrap().unwrap();
        assert!(directory.is_dir());
        assert!(fs::symlink_metadata(layers.path("layer/upper/workspace")).unwrap().is_symlink());
        symlink("/elsewhere", root.path().join(NAME)).unwrap();
        mount(&directory, root.path()).unwrap();
        assert_eq!(fs::read_link(root.path().join(NAME)).unwrap(), Path::new("/elsewhere"));
    }

    #[test]
    fn a_place_that_cannot_be_made_is_a_failure() {
        let layers = Layers::new();
        let failure = mount(&layers.path("layer"), &layers.path("absent")).unwrap_err();
        assert_eq!(failure.step, "creating /workspace");
        fs::write(layers.path("layer/workspace"), "").unwrap();
        assert_eq!(layers.in_layer().unwrap_err().step, "making the workspace");
    }
}
