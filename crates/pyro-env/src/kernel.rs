//! The guest kernel, taken unchanged from the distribution's package.
//!
//! The image stays compressed: booting the extracted ELF through PVH is unreliable under emulation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{IoError, PullError};
use crate::modules::CircularDependency;
use crate::{fsio, modules};

/// No module or kernel of a distribution comes close to these sizes.
const LARGEST_MODULE: u64 = 64 << 20;
const LARGEST_KERNEL: u64 = 256 << 20;
const DEEPEST_MODULE: usize = 16;

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct UnpackedKernel {
    /// The kernel's release, such as `6.1.0-50-cloud-amd64`.
    pub(crate) release: String,
    image: PathBuf,
    modules: PathBuf,
}

fn bad(reason: impl Into<String>) -> PullError {
    PullError::BadResult { reason: reason.into() }
}

/// Returns the only package file in the directory that the build downloaded it to.
pub(crate) fn package_in(dir: &Path) -> Result<PathBuf, PullError> {
    let mut packages = entries(dir)?;
    packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    match packages.pop() {
        Some(package) if packages.is_empty() => Ok(package),
        Some(_) => Err(bad("more than one kernel package was downloaded")),
        None => Err(bad("no kernel package was downloaded")),
    }
}

impl UnpackedKernel {
    /// Finds the kernel in an unpacked package.
    pub(crate) fn find(root: &Path) -> Result<Self, PullError> {
        let image = entries(&root.join("boot"))?
            .into_iter()
            .find(|path| file_name(path).starts_with("vmlinuz-"))
            .ok_or_else(|| bad("the kernel package holds no kernel"))?;
        let release = file_name(&image).trim_start_matches("vmlinuz-").to_owned();
        // Releases after bookworm store modules below `usr`.
        let modules = ["lib/modules", "usr/lib/modules"]
            .into_iter()
            .map(|dir| root.join(dir).join(&release))
            .find(|dir| dir.is_dir())
            .ok_or_else(|| bad(format!("the kernel package holds no modules for {release}")))?;
        Ok(UnpackedKernel { release, image, modules })
    }

    /// Writes the kernel image to `path`.
    pub(crate) fn copy_image(&self, path: &Path) -> Result<(), PullError> {
        let image =
            fsio::read_bounded(&self.image, LARGEST_KERNEL)?.ok_or_else(|| bad("the kernel disappeared"))?;
        // Check the boot protocol's magic number: an image that is not a bzImage would fail only much later, in a VM.
        if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
            return Err(bad("the kernel is not a bzImage"));
        }
        Ok(fsio::write_new(path, 0o600, &image)?)
    }

    /// Writes the part of the initrd with the guest's modules to `path`.
    pub(crate) fn pack_modules(&self, path: &Path) -> Result<(), PullError> {
        let files = self.module_files()?;
        let builtin = self.builtin()?;
        let mut contents = BTreeMap::new();
        let load = |name: &str| {
            let Some(file) = files.get(name) else {
                return if builtin.contains(name) {
                    Ok(None)
                } else {
                    Err(bad(format!("kernel module {name} is missing")))
                };
            };
            let content = fsio::read_bounded(file, LARGEST_MODULE)?
                .ok_or_else(|| bad(format!("kernel module {name} disappeared")))?;
            let needs = modules::dependencies(&content)
                .map_err(|error| bad(format!("invalid kernel module {name}: {error}")))?;
            contents.insert(name.to_owned(), content);
            Ok(Some(needs))
        };
        let order = modules::load_order(&modules::WANTED, load)?;
        let ordered: Vec<(String, Vec<u8>)> =
            order.into_iter().filter_map(|name| contents.remove_entry(&name)).collect();
        let archive = modules::pack(&ordered).map_err(IoError::at("write", path))?;
        Ok(fsio::write_new(path, 0o600, &archive)?)
    }

    /// Returns all modules by name.
    fn module_files(&self) -> Result<BTreeMap<String, PathBuf>, PullError> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![(self.modules.join("kernel"), 0)];
        while let Some((dir, depth)) = dirs.pop() {
            for path in entries(&dir)? {
                let metadata = fs::symlink_metadata(&path).map_err(IoError::at("inspect", &path))?;
                if metadata.is_dir() && depth < DEEPEST_MODULE {
                    dirs.push((path, depth + 1));
                } else if metadata.is_file()
                    && let Some(name) = modules::name_of_file(&file_name(&path))
                {
                    files.insert(name, path);
                }
            }
        }
        Ok(files)
    }

    fn builtin(&self) -> Result<BTreeSet<String>, PullError> {
        let list = fsio::read_bounded(&self.modules.join("modules.builtin"), 1 << 20)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&list).lines().filter_map(modules::name_of_file).collect())
    }
}

impl From<CircularDependency> for PullError {
    fn from(error: CircularDependency) -> Self {
        bad(error.to_string())
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, PullError> {
    let list = fs::read_dir(dir).map_err(IoError::at("list", dir))?;
    let mut paths = Vec::new();
    for entry in list {
        paths.push(entry.map_err(IoError::at("list", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
