//! Removes unusable data from the cache.

use std::path::Path;

use crate::catalog::{self, CatalogEntry, EnvironmentVersion};
use crate::error::{IoError, PruneError};
use crate::layout::{Layout, PARTIAL_PREFIX};
use crate::lock;
use crate::manifest::{Found, Manifest};
use crate::partial::{self, directories, files};
use crate::payload::PruneReport;
use crate::process::Tools;
use crate::remove;

pub(crate) fn run(
    layout: &Layout,
    tools: &Tools,
    keep: &[EnvironmentVersion],
) -> Result<PruneReport, PruneError> {
    let dir = layout.platform_dir();
    if !dir.exists() {
        return Ok(PruneReport::default());
    }
    let latest = catalog::entries().iter().map(CatalogEntry::latest);
    let kept: Vec<EnvironmentVersion> = latest.chain(keep.iter().cloned()).collect();
    // What cannot be locked or removed must not prevent the removal of the rest.
    let (mut removed, mut failed) =
        partial::sweep(layout, tools).unwrap_or_else(|error| (Vec::new(), Some(error)));
    for path in directories(&dir)? {
        match prune_install(layout, &path, tools, &kept) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    for path in files(&dir)? {
        if let Err(error) = prune_lock(layout, &path) {
            failed = failed.or(Some(error));
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    let names = removed.iter().filter_map(|path| path.file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(PruneReport { count: names.len(), deleted_environment_dirs: names })
}

/// Removes one install directory unless it is one of `kept` and usable, or in use.
fn prune_install(
    layout: &Layout,
    path: &Path,
    tools: &Tools,
    kept: &[EnvironmentVersion],
) -> Result<bool, IoError> {
    let Some(dir_name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Ok(false);
    };
    if dir_name.starts_with(PARTIAL_PREFIX) || is_usable(path, &dir_name, kept)? {
        return Ok(false);
    }
    let Some(unused) = lock::try_exclusive(&layout.use_lock(&dir_name))? else {
        return Ok(false);
    };
    // It may have been replaced by a good one since the first check.
    if is_usable(path, &dir_name, kept)? {
        return Ok(false);
    }
    remove::tree(path, tools)?;
    unused.remove_file()?;
    Ok(true)
}

/// Removes a file if it is the lock of an environment that is not installed, and no process holds it.
fn prune_lock(layout: &Layout, path: &Path) -> Result<(), IoError> {
    let Some(dir_name) = path.file_name().and_then(|name| Layout::locked_dir(name.to_str()?)) else {
        return Ok(());
    };
    let is_installed = || layout.install_dir(dir_name).symlink_metadata().is_ok();
    if is_installed() {
        return Ok(());
    }
    match lock::try_exclusive(path)? {
        // It may have been installed since the first check.
        Some(unused) if !is_installed() => unused.remove_file(),
        _ => Ok(()),
    }
}

/// Returns whether `path` is a complete install of the version that has this directory's name.
fn is_usable(path: &Path, dir_name: &str, kept: &[EnvironmentVersion]) -> Result<bool, IoError> {
    let Some(which) = kept.iter().find(|which| which.dir_name().as_deref() == Some(dir_name)) else {
        return Ok(false);
    };
    Ok(matches!(Manifest::find(path, &which.name, &which.version)?, Found::Installed(_)))
}
