//! An installed environment, opened for running.

use std::path::PathBuf;

use crate::error::{Damage, IoError};
use crate::fsio;
use crate::image::RootfsFormat;
use crate::lock::Lock;
use crate::manifest::{self, Installed, Manifest, OpenFiles};

/// An environment in use: while this value lives, neither this process nor another one removes or replaces it.
#[derive(Debug)]
#[non_exhaustive]
pub struct InstalledEnvironment {
    /// Name, such as `debian:12`.
    pub name: String,
    /// Version of the environment.
    pub version: String,
    /// What it was made from, such as `debian:bookworm`.
    pub source: String,
    /// SHA-256 over the sorted `name=version` lines of its packages.
    pub source_digest: String,
    /// Where it is installed.
    pub install_dir: PathBuf,
    /// The guest kernel, a bzImage.
    pub kernel: PathBuf,
    /// Release of the kernel, such as `6.1.0-50-cloud-amd64`.
    pub kernel_release: String,
    /// The read-only base image.
    pub rootfs: PathBuf,
    /// File system of the base image.
    pub rootfs_format: RootfsFormat,
    /// A cpio archive of the guest's kernel modules: `lib/modules/pyro/order` lists their file names in load order.
    pub modules: PathBuf,
    /// SHA-256 over the artifacts' names and digests. Equal digests mean equal kernel, modules, and image.
    pub digest: String,
    /// A process that holds a shared lock on this file uses the environment. This value holds one.
    pub use_lock: PathBuf,
    /// The artifacts, open since they were compared with what was installed.
    pub files: OpenFiles,
    manifest: Manifest,
    _in_use: Lock,
}

impl InstalledEnvironment {
    pub(crate) fn new(install_dir: PathBuf, installed: Installed, in_use: Lock) -> Self {
        let Installed { manifest, files, verified: _ } = installed;
        InstalledEnvironment {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            source: manifest.source.clone(),
            source_digest: manifest.source_digest.clone(),
            kernel: install_dir.join(manifest::KERNEL),
            kernel_release: manifest.kernel_release.clone(),
            rootfs: install_dir.join(manifest.format.file_name()),
            rootfs_format: manifest.format,
            modules: install_dir.join(manifest::MODULES),
            digest: manifest.digest(),
            install_dir,
            files,
            manifest,
            use_lock: in_use.path().to_owned(),
            _in_use: in_use,
        }
    }

    /// Returns the versions of all packages in the image and of the kernel's package, sorted by name.
    pub fn packages(&self) -> impl Iterator<Item = (&str, &str)> {
        self.manifest.packages.iter().map(|(name, version)| (name.as_str(), version.as_str()))
    }

    /// Reads all artifacts and compares them with the digests recorded when they were installed. Opening compares only
    /// sizes and times.
    pub fn verify_contents(&self) -> Result<Result<(), Damage>, IoError> {
        for (path, open, file) in [
            (&self.kernel, &self.files.kernel, manifest::KERNEL),
            (&self.modules, &self.files.modules, manifest::MODULES),
            (&self.rootfs, &self.files.rootfs, self.rootfs_format.file_name()),
        ] {
            let recorded = self.manifest.artifacts.get(file).map(|artifact| artifact.sha256.as_str());
            if recorded != Some(fsio::sha256(open, path)?.as_str()) {
                return Ok(Err(Damage::Modified { path: path.clone() }));
            }
        }
        Ok(Ok(()))
    }
}
