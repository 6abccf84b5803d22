//! Keeps the warm pool as large as the settings say.

use std::time::Duration;

use pyro_supervisor::{LaunchSpec, Retention};
use tokio_util::sync::CancellationToken;

use super::launch::Shape;
use super::{Engine, unless_cancelled};
use crate::host_settings::HostChoice;
use crate::limits;
use crate::pool::{Pool, Target};
use crate::{Error, Events, VmId, VmSpec};

impl Engine {
    /// Number of spares of each kind kept ready for the next start; 0 disables spares.
    pub fn warm_spares(&self) -> u32 {
        self.config().warm_spares
    }

    /// Ensures that as many spares as the settings say wait for one-shot runs like `spec`, or are about to. Installs the
    /// environment first if necessary, as a run does. Runs nothing, and does not wait until the spares are up.
    ///
    /// # Errors
    /// `InvalidInput`, `VmUnavailable`, `EnvironmentUnavailable`, `StateUnusable`, `Cancelled`. That a spare cannot be
    /// started is only logged.
    pub async fn ensure_spares(
        &self,
        spec: &VmSpec,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        if self.warm_spares() == 0 {
            return Ok(());
        }
        let sizing = limits::check_spec(spec)?;
        let host = self.host().await.map_err(|reason| Error::boot_unavailable(&reason.to_string()))?;
        let environment = self.environment(&spec.environment, events, cancel).await?;
        let model = async {
            self.reconcile().await?;
            let shape = Shape {
                sizing,
                retention: Retention::Caller,
                disk_mib: None,
                network: spec.network.then(|| spec.network_policy.clone().unwrap_or_default()),
                ports: Vec::new(),
                host: HostChoice::of(spec, self.config()),
                // A spare has a lifetime of its own.
                expires_at: f64::MAX,
                is_new: true,
            };
            self.launch_spec(&VmId::random()?, shape, &environment, host).await
        };
        let model = unless_cancelled(cancel, model).await?;
        self.refill(&model, cancel, cancel).await;
        Ok(())
    }

    /// Keeps the existing spares alive until `cancel`; after that, their usual idle time applies.
    pub async fn keep_spares(&self, cancel: &CancellationToken) {
        let (pool, idle) = (self.pool(), self.spare_idle_time());
        let keep = async {
            loop {
                tokio::time::sleep(idle / 3).await;
                pool.renew(idle).await;
            }
        };
        let _: Option<()> = cancel.run_until_cancelled(keep).await;
    }

    /// Starts the spares of a kind that are missing. Does not fail: nothing depends on a spare. Once `stop_waiting` is
    /// cancelled, it no longer waits for other processes that are counting spares.
    pub(super) async fn refill(
        &self,
        model: &LaunchSpec,
        cancel: &CancellationToken,
        stop_waiting: &CancellationToken,
    ) {
        if self.warm_spares() == 0 {
            return;
        }
        let fill = async {
            let of_all = match self.spares_capacity().await {
                Ok(capacity) => capacity,
                Err(error) => return tracing::warn!(%error, "no spare was started"),
            };
            let target = Target { of_kind: self.warm_spares(), of_all, idle: self.spare_idle_time() };
            if let Err(error) =
                self.pool().fill(&self.supervisor_command(), model, target, stop_waiting).await
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "no spare was started");
            }
        };
        // What is dropped half-way clears itself away, or is cleared away by the next process that counts.
        let _ = cancel.run_until_cancelled(fill).await;
    }

    /// Returns how many spares may exist in addition to the VMs that callers have asked for.
    pub(super) async fn spares_capacity(&self) -> Result<u32, Error> {
        let active = self.registry(|registry| registry.ids()).await?.len();
        let active = u32::try_from(active).unwrap_or(u32::MAX);
        Ok(self.config().max_active_vms.saturating_sub(active))
    }

    pub(super) fn pool(&self) -> Pool {
        Pool::new(&self.config().base_dir)
    }

    fn spare_idle_time(&self) -> Duration {
        Duration::from_secs(self.config().spare_idle_seconds.into())
    }
}
