//! Engine settings.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use pyro_machine::Vmm;
use pyro_machine::disk::Overcommit;

use crate::limits::MAX_TTL_SECONDS;
use crate::{Accelerator, HostCa, MountRoot, PackageClients};

/// Settings of an [`Engine`](crate::Engine), as plain data.
///
/// The front end decides where the values come from: flags, environment variables, or defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// State directory: the registry and one directory per VM. Created with mode 0700 on first use.
    pub base_dir: PathBuf,
    /// Environment cache.
    pub cache_dir: PathBuf,
    /// Maximum number of VMs that may exist at once, in any state and across all processes that share `base_dir`. The
    /// contract's default is [`Config::DEFAULT_MAX_ACTIVE_VMS`].
    pub max_active_vms: u32,
    /// How many spares of each kind to keep ready for the next start; 0 disables spares. They use the capacity that
    /// `max_active_vms` leaves free and yield to VMs that a caller requests.
    pub warm_spares: u32,
    /// How long an unclaimed spare is kept, in seconds; normally [`Config::DEFAULT_SPARE_IDLE_SECONDS`].
    pub spare_idle_seconds: u32,
    /// The pyro executable, which the engine runs again for its helper processes.
    pub program: PathBuf,
    /// Forces an accelerator; `None` selects one by measuring the host.
    pub accelerator: Option<Accelerator>,
    /// What runs VMs.
    pub vmm: Vmm,
    /// The QEMU executable; `None` searches `search_path` for `qemu-system-x86_64`.
    pub vmm_program: Option<PathBuf>,
    /// The Firecracker executable; `None` searches `search_path` for `firecracker`.
    pub firecracker_program: Option<PathBuf>,
    /// A kernel for all guests that needs no modules; `None` uses each environment's own kernel.
    pub guest_kernel: Option<PathBuf>,
    /// Mirror to build Debian environments from; `None` uses the catalog's default.
    pub debian_mirror: Option<String>,
    /// How far the disks of all VMs and tasks together may exceed what the host's disk can hold.
    pub disk_overcommit: Overcommit,
    /// Which directories of this host guests may have mounted.
    pub mount_roots: MountRoots,
    /// Which of those the clients of this process may have mounted; `None`: all. Their paths must be without symbolic links.
    pub client_mounts: Option<Vec<MountRoot>>,
    /// Maximum time limit of a command, in seconds, for which a lifetime is raised. The lifetime then also has the time to start
    /// and to end.
    pub max_raised_ttl_seconds: u32,
    /// Start VMs only if the host can confine their VMMs fully.
    pub requires_full_confinement: bool,
    /// Certification authorities that guests trust where a request does not say; `None`: those of their images.
    pub host_ca: Option<HostCa>,
    /// Give guests with a network this host's proxy settings where a request does not say.
    pub host_proxy: bool,
    /// The file with the certificates that this host trusts; `None` searches the places of common distributions.
    pub ssl_cert_file: Option<PathBuf>,
    /// This host's proxy settings: variables such as `HTTPS_PROXY`, and their values.
    pub proxy_variables: SecretVariables,
    /// Where this host's package managers keep their settings, which name the hosts of presets such as `@pypi`.
    pub package_clients: PackageClients,
    /// `PYRO_LOG` of supervisors, which get no other variables of this process but the search path.
    pub log: Option<String>,
    /// Where to search for programs, in the form of `PATH`. Commands in host compatibility mode get it as their `PATH`.
    pub search_path: OsString,
}

/// Which directories of the host guests may have mounted, if callers ask for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountRoots {
    /// None.
    Off,
    /// Every directory that the user of pyro can open.
    #[default]
    Any,
    /// These, and what is below them.
    Below(Vec<PathBuf>),
}

impl MountRoots {
    /// Returns whether a directory may be mounted. Its path must be without symbolic links. Blocks.
    pub(crate) fn include(&self, path: &Path) -> bool {
        self.any_root(|root| path.starts_with(root))
    }

    /// Returns whether a directory, or one below it, may be mounted. Its path must be without symbolic links. Blocks.
    pub fn overlap(&self, path: &Path) -> bool {
        self.any_root(|root| path.starts_with(root) || root.starts_with(path))
    }

    fn any_root(&self, matches: impl Fn(&Path) -> bool) -> bool {
        match self {
            Self::Off => false,
            Self::Any => true,
            Self::Below(roots) => {
                roots.iter().any(|root| fs::canonicalize(root).is_ok_and(|root| matches(&root)))
            }
        }
    }
}

/// Environment variables with their values, which may contain credentials and are therefore not shown.
#[derive(Clone, Default)]
pub struct SecretVariables(pub Vec<(String, OsString)>);

impl SecretVariables {
    /// Returns the value of a variable.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }
}

impl fmt::Debug for SecretVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Config {
    /// Default for `max_active_vms`.
    pub const DEFAULT_MAX_ACTIVE_VMS: u32 = 4;

    /// Default for `spare_idle_seconds`: five minutes.
    pub const DEFAULT_SPARE_IDLE_SECONDS: u32 = 300;

    /// Default for `max_raised_ttl_seconds`: the longest lifetime that a caller can ask for.
    pub const DEFAULT_MAX_RAISED_TTL_SECONDS: u32 = MAX_TTL_SECONDS;

    /// Returns the environment variables of supervisors.
    pub(crate) fn supervisor_variables(&self) -> Vec<(OsString, OsString)> {
        let log = self.log.as_ref().map(|log| ("PYRO_LOG".into(), log.into()));
        // The state directory is for people who want to know what a process belongs to.
        let variables = [("PATH", self.search_path.clone()), ("PYRO_BASE_DIR", self.base_dir.clone().into())];
        variables.map(|(name, value)| (name.into(), value)).into_iter().chain(log).collect()
    }

    /// Settings with these locations and the contract's limits: no spares, nothing forced, and an empty search path.
    pub fn new(base_dir: PathBuf, cache_dir: PathBuf, program: PathBuf) -> Self {
        Self {
            base_dir,
            cache_dir,
            max_active_vms: Self::DEFAULT_MAX_ACTIVE_VMS,
            warm_spares: 0,
            spare_idle_seconds: Self::DEFAULT_SPARE_IDLE_SECONDS,
            program,
            accelerator: None,
            vmm: Vmm::default(),
            vmm_program: None,
            firecracker_program: None,
            guest_kernel: None,
            debian_mirror: None,
            disk_overcommit: Overcommit::default(),
            mount_roots: MountRoots::default(),
            client_mounts: None,
            max_raised_ttl_seconds: Self::DEFAULT_MAX_RAISED_TTL_SECONDS,
            requires_full_confinement: false,
            host_ca: None,
            host_proxy: false,
            ssl_cert_file: None,
            proxy_variables: SecretVariables::default(),
            package_clients: PackageClients::default(),
            log: None,
            search_path: OsString::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_gets_no_settings_of_its_hosts_proxies() {
        let secret =
            |name: &str| SecretVariables(vec![(name.to_owned(), "http://user:secret@proxy.test".into())]);
        let config = Config {
            host_proxy: true,
            proxy_variables: secret("HTTPS_PROXY"),
            package_clients: PackageClients {
                variables: secret("PIP_INDEX_URL"),
                ..PackageClients::default()
            },
            log: Some("debug".to_owned()),
            ..Config::new("/state".into(), "/cache".into(), "/bin/pyro".into())
        };
        let variables = config.supervisor_variables();
        let names: Vec<_> = variables.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["PATH", "PYRO_BASE_DIR", "PYRO_LOG"]);
    }
}
