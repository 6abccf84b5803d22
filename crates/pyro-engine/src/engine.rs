//! The engine: environments, VMs, and one-shot runs.

mod deep;
mod disk;
mod environments;
mod exec;
mod host;
mod launch;
mod lifecycle;
mod mounts;
mod reconcile;
mod removal;
mod run;
mod spares;
mod tasks;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyro_env::{CacheConfig, EnvironmentCache};
use pyro_supervisor::Pace;
use tokio_util::sync::CancellationToken;

use crate::boot_times::LastPace;
use crate::clock::now;
use crate::doctor::{self, DoctorReport, HostFacts};
use crate::presets::DefaultHosts;
use crate::registry::{self, Registry};
use crate::state_dir::vm as vm_dir;
use crate::supervise::SupervisorCommand;
use crate::{Caller, Config, Error, ErrorKind, Hint, VmId, state_dir};

pub use host::{PROBE_COMMAND, probe_kvm};
pub use mounts::{MOUNT_COMMAND, serve_mount};
pub(crate) use tasks::dropped;
pub use tasks::{CopyFromGuest, CopyToGuest};

/// The engine: environments, VMs, and one-shot runs.
///
/// It holds no VM. Every VM has its own supervisor process, and all state is on disk, so any number of engines of one
/// user see the same VMs. Methods must be called on a tokio runtime.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    caller: Caller,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    registry: Registry,
    environments: EnvironmentCache,
    default_hosts: DefaultHosts,
    pace: LastPace,
}

impl Engine {
    /// Creates an engine with these settings. Does no I/O and cannot fail.
    pub fn new(config: Config) -> Self {
        let registry = Registry::new(&config.base_dir);
        let cache = CacheConfig {
            cache_dir: config.cache_dir.clone(),
            mirror: config.debian_mirror.clone(),
            search_path: config.search_path.clone(),
        };
        let environments = EnvironmentCache::new(cache);
        let default_hosts = DefaultHosts::default();
        let pace = LastPace::default();
        let shared = Shared { config, registry, environments, default_hosts, pace };
        Self { shared: Arc::new(shared), caller: Caller::Operator }
    }

    /// Returns the engine as a caller sees it: what the caller creates is its own, and what it may not find does not exist.
    #[must_use]
    pub fn on_behalf_of(&self, caller: &Caller) -> Self {
        Self { shared: Arc::clone(&self.shared), caller: caller.clone() }
    }

    /// Reports what this host can do, and what to change if it cannot. Changes nothing, never fails, and works on a
    /// host that has nothing.
    pub async fn doctor(&self, platform: &str) -> DoctorReport {
        let accelerator = self.accelerator_report().await;
        let environments = self.list_environments().await;
        let facts = HostFacts::gather(self.config(), Path::new("/")).await;
        doctor::judge(platform, self.config(), facts, accelerator, environments)
    }

    /// Returns the state directory, which it creates if it is missing.
    ///
    /// # Errors
    /// `StateUnusable`, also if other users can write to it.
    pub fn state_directory(&self) -> Result<&Path, Error> {
        let base_dir = &self.config().base_dir;
        registry::prepare_directory(base_dir)?;
        Ok(base_dir)
    }

    /// Maximum number of VMs and tasks that may exist at once.
    pub fn max_active_vms(&self) -> u32 {
        self.config().max_active_vms
    }

    fn config(&self) -> &Config {
        &self.shared.config
    }

    fn supervisor_command(&self) -> SupervisorCommand {
        let Config { program, base_dir, .. } = self.config();
        SupervisorCommand { program: program.clone(), base_dir: base_dir.clone() }
    }

    /// Returns how slow this host is.
    fn pace(&self) -> Pace {
        self.shared.pace.get(&state_dir::boot_times(&self.config().base_dir))
    }

    /// Returns the directory of one VM. The id's type guarantees that it is valid.
    fn vm_dir(&self, id: &VmId) -> PathBuf {
        vm_dir(&self.config().base_dir, id)
    }

    /// Runs one blocking registry operation.
    async fn registry<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Registry) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.blocking(move |shared| operation(&shared.registry)).await
    }

    /// Runs one operation on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || operation(&shared)).await {
            Ok(result) => result,
            Err(error) => Err(Error::internal("a background operation was lost").caused_by(error)),
        }
    }
}

/// Abandons `work` when the caller cancels.
async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::cancelled()),
        result = work => result,
    }
}

/// Returns the error for a file of the state directory that cannot be used.
fn state_unusable(action: &str, path: &Path, error: std::io::Error) -> Error {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let hint = match full {
        true => Hint::FreeDisk,
        false => Hint::CheckOwner,
    };
    Error::new(ErrorKind::StateUnusable, format!("cannot {action} {}", path.display()))
        .hint(hint)
        .caused_by(error)
}
