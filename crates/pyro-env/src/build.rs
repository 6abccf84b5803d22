//! One build, from an empty work directory to a directory that is ready to be moved into place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cancel::CancelFlag;
use crate::catalog::{CATALOG_VERSION, CatalogEntry};
use crate::debian::{self, Archive};
use crate::error::PullError;
use crate::fsio;
use crate::image::RootfsFormat;
use crate::kernel::{self, UnpackedKernel};
use crate::manifest::{self, Artifact, Manifest};
use crate::observer::{PullStep, Steps};
use crate::partial::{self, Partial};
use crate::process::{self, LONGEST_SILENCE, Tools};

/// The index is about ten megabytes. apt would wait a quarter of an hour for a server that accepts connections but
/// never answers.
const INDEX_PATIENCE: Duration = Duration::from_secs(150);

/// The inputs of a build.
pub(crate) struct Build<'a> {
    pub(crate) entry: &'a CatalogEntry,
    pub(crate) archive: &'a Archive,
    pub(crate) tools: &'a Tools,
    pub(crate) partial: &'a Partial<'a>,
    pub(crate) steps: &'a Steps<'a>,
    pub(crate) cancel: &'a CancelFlag,
}

impl Build<'_> {
    /// Builds the environment and returns the finished directory, flushed to disk.
    pub(crate) fn run(&self) -> Result<PathBuf, PullError> {
        let work = self.partial.path();
        partial::populate(work)?;
        fsio::write_new(&work.join("settle-tree"), 0o700, debian::HOOK.as_bytes())?;

        let bootstrap = debian::bootstrap(self.entry, self.archive, work, self.tools);
        self.tool(bootstrap, "mmdebstrap", |line| match PullStep::from_mmdebstrap(line) {
            Some(step) => {
                self.steps.enter(step);
                if step == PullStep::FetchingIndex { INDEX_PATIENCE } else { LONGEST_SILENCE }
            }
            None => LONGEST_SILENCE,
        })?;

        let install = work.join("install");
        self.steps.enter(PullStep::PackingKernel);
        let kernel_release = self.pack_kernel(work, &install)?;

        self.steps.enter(PullStep::PackingImage);
        let format = RootfsFormat::CHOSEN;
        let image = install.join(format.file_name());
        self.tool(format.pack(&work.join("tree"), &image, self.tools), "mkfs.erofs", |_| LONGEST_SILENCE)?;

        self.steps.enter(PullStep::Checksumming);
        let manifest = self.describe(work, &install, format, kernel_release)?;
        self.check_cancelled()?;
        let path = install.join(manifest::FILE_NAME);
        fsio::write_new(&path, 0o600, &manifest.encode())?;
        fsio::set_mode(&path, 0o444)?;
        fsio::sync(&path)?;
        fsio::sync(&install)?;
        Ok(install)
    }

    fn pack_kernel(&self, work: &Path, install: &Path) -> Result<String, PullError> {
        let package = kernel::package_in(&work.join("kernel"))?;
        let unpacked = work.join("unpacked");
        let mut command = self.tools.offline(&self.tools.dpkg_deb);
        command.arg("--extract").arg(&package).arg(&unpacked);
        self.tool(command, "dpkg-deb", |_| LONGEST_SILENCE)?;
        let kernel = UnpackedKernel::find(&unpacked)?;
        kernel.copy_image(&install.join(manifest::KERNEL))?;
        kernel.pack_modules(&install.join(manifest::MODULES))?;
        Ok(kernel.release)
    }

    /// Makes the artifacts read-only, flushes them, and records their descriptions.
    fn describe(
        &self,
        work: &Path,
        install: &Path,
        format: RootfsFormat,
        kernel_release: String,
    ) -> Result<Manifest, PullError> {
        let mut artifacts = BTreeMap::new();
        for file in [manifest::KERNEL, manifest::MODULES, format.file_name()] {
            self.check_cancelled()?;
            let path = install.join(file);
            fsio::set_mode(&path, 0o444)?;
            fsio::sync(&path)?;
            artifacts.insert(file.to_owned(), Artifact::of_file(&path)?);
        }
        let packages = fsio::read_bounded(&work.join("packages"), 1 << 20)?.unwrap_or_default();
        let packages = manifest::parse_packages(&String::from_utf8_lossy(&packages))
            .map_err(|error| PullError::BadResult { reason: error.to_string() })?;
        let missing = self.entry.packages().find(|package| !packages.contains_key(*package));
        if let Some(package) = missing {
            return Err(PullError::BadResult { reason: format!("package {package} was not installed") });
        }
        Ok(Manifest {
            catalog_version: CATALOG_VERSION.to_owned(),
            name: self.entry.name.clone(),
            version: self.entry.version.clone(),
            source: self.entry.source(),
            source_digest: manifest::packages_digest(&packages),
            installed_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            format,
            kernel_release,
            artifacts,
            packages,
        })
    }

    fn tool(
        &self,
        command: std::process::Command,
        name: &'static str,
        on_line: impl FnMut(&str) -> Duration,
    ) -> Result<(), PullError> {
        self.check_cancelled()?;
        process::run(command, name, self.partial.lease()?, self.cancel, on_line)
    }

    fn check_cancelled(&self) -> Result<(), PullError> {
        if self.cancel.is_cancelled() { Err(PullError::Cancelled) } else { Ok(()) }
    }
}
