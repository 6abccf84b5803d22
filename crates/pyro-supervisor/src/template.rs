//! The templates of VMs: the snapshots of `pyro-machine`, as far as a VM's launch decides about them.

use pyro_machine::snapshot::Store;
use pyro_machine::{HostPlatform, Platform};

pub use pyro_machine::snapshot::prune;

use crate::files;
use crate::spec::LaunchSpec;

/// The template for VMs like that of `spec` has to be made before one can start. Starts no process: of a platform that has
/// never been used it is assumed that it can save machines.
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
