//! Templates of VMs: the part of `pyro-machine`'s snapshots that a VM's launch decides about.

use std::path::Path;

use pyro_machine::snapshot::Store;
use pyro_machine::{Firecracker, Platform, Qemu, Vmm};

pub use pyro_machine::snapshot::{prune, remove_all_of};

use crate::files;
use crate::spec::LaunchSpec;

/// Returns whether a template for VMs like that of `spec` must be made before one can start. Starts no process: a
/// platform that has never been used is assumed to be able to save machines.
pub async fn is_missing(spec: &LaunchSpec) -> bool {
    let Some(dir) = &spec.template_dir else { return false };
    if spec.dir.join(files::LAYER).exists() {
        return false;
    }
    match spec.vmm {
        Vmm::Qemu => is_missing_on(&Qemu::new(), spec, dir).await,
        Vmm::Firecracker => is_missing_on(&Firecracker::new(), spec, dir).await,
    }
}

async fn is_missing_on<P: Platform>(platform: &P, spec: &LaunchSpec, dir: &Path) -> bool {
    let subject = spec.subject();
    if !platform.is_fingerprint_cached(&subject.hardware, dir) {
        return true;
    }
    Store::open(dir, &subject, platform).await.is_ok_and(|store| store.is_missing())
}
