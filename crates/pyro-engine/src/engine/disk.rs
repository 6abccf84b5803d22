//! Space for the disks of VMs and tasks: what is promised to one is not promised to another.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pyro_machine::disk::{LayerError, LayerLifetime, LayerTemplates};
use pyro_supervisor::files;

use super::{Shared, vm_dir};
use crate::{Error, ErrorKind, Hint, VmId, state_dir};

/// Chooses the size of a VM's new disk, records it, and returns the template to copy. Blocks.
///
/// Spares are not counted: an idle spare does not write, it yields to VMs, and the VM that it becomes is counted.
///
/// # Errors
/// `StateUnusable` if the host's disk could not hold it; `VmUnavailable` if `mke2fs` is missing.
pub(super) fn template(
    shared: &Shared,
    id: &VmId,
    wanted_mib: Option<u32>,
    lifetime: LayerLifetime,
) -> Result<PathBuf, Error> {
    let config = &shared.config;
    let templates = LayerTemplates::new(state_dir::layers(&config.base_dir), config.search_path.clone());
    let size_mib = shared.registry.promise_disk(id, |others| {
        // Before the free space is looked at: what a guest writes in between is counted twice rather than not at all.
        let promised_mib = others
            .iter()
            .map(|(other, size_mib)| growth_mib(&vm_dir(&config.base_dir, other), *size_mib))
            .sum();
        templates.choose(wanted_mib.map(u64::from), promised_mib, config.disk_overcommit).map_err(layer_error)
    })?;
    templates.of_size(size_mib, lifetime).map_err(layer_error)
}

/// Returns how much the disk of a VM can still grow, in MiB. `recorded_mib` is its size, which matters until the file exists.
fn growth_mib(dir: &Path, recorded_mib: Option<u64>) -> u64 {
    match fs::metadata(dir.join(files::LAYER)) {
        Ok(layer) => layer.len().saturating_sub(layer.blocks() * 512) >> 20,
        Err(_) => recorded_mib.unwrap_or(0),
    }
}

fn layer_error(error: LayerError) -> Error {
    let hint = match &error {
        LayerError::NoSpace { promised_mib: 0, .. } => Hint::FreeDiskOrMove,
        LayerError::NoSpace { .. } => Hint::DiskPromised,
        LayerError::ToolMissing => Hint::InstallE2fsprogs,
        LayerError::ToolFailed(_) | LayerError::Io { .. } => Hint::CheckStateDir,
    };
    let kind = match &error {
        LayerError::ToolMissing => ErrorKind::VmUnavailable,
        _ => ErrorKind::StateUnusable,
    };
    Error::new(kind, error.to_string()).with_causes_of(&error).hint(hint)
}
