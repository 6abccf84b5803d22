//! Templates of VMs: the part of `pyro-machine`'s snapshots that a VM's launch decides about.

use pyro_machine::snapshot::Store;
use pyro_machine::{HostPlatform, Platform};

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
    let platform = HostPlatform::new();
    let subject = spec.subject();
    if !platform.is_fingerprint_cached(&subject.hardware, dir) {
        return true;
    }
    Store::open(dir, &subject, &platform).await.is_ok_and(|store| store.is_missing())
}
