//! Whether the commands of a VM may run on the host.

use crate::VmSpec;

/// What a caller has agreed to for a host on which no VM can run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostAccess {
    /// Commands run in a guest or not at all.
    #[default]
    Denied,
    /// Commands may run on the host, without isolation.
    Allowed,
}

impl HostAccess {
    /// Name of the parameter, and of the field in results.
    pub const NAME: &str = "allow_host_compat";

    /// Returns whether commands may run on the host.
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

impl From<bool> for HostAccess {
    fn from(is_allowed: bool) -> Self {
        if is_allowed { Self::Allowed } else { Self::Denied }
    }
}

impl VmSpec {
    /// Returns whether commands of the VM may run on the host.
    pub fn host_access(&self) -> HostAccess {
        self.allow_host_compat.into()
    }
}
