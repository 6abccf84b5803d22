//! Making the record agree with the world. The world changes without us: processes are killed, machines lose
//! power, lifetimes end.

use std::fs;
use std::time::{Duration, SystemTime};

use pyro_vm::supervisor::OwnerLock;

use super::{Engine, Shared, now, vm_dir, vms_dir};
use crate::registry::VmRecord;
use crate::{EngineError, ExecutionMode, Reaped, VmId, VmState};

/// A directory without a record and without an owner is left alone this long: its maker may be about to lock it, which
/// takes microseconds.
const MAKING_TIME: Duration = Duration::from_secs(2);

/// What `last_error` says of a VM whose owner vanished.
pub(super) const OWNER_VANISHED: &str = "backing guest process is no longer running";

impl Engine {
    /// Removes VMs whose lifetime has ended, those that lost the process they belonged to, and files without a
    /// record; notes which VMs do not run any more.
    pub(super) async fn reconcile(&self) -> Result<(), EngineError> {
        let (orphans, expired) = self
            .blocking(|shared| {
                shared.registry.purge_tombstones(now())?;
                let mut orphans = strays(shared)?;
                for record in shared.registry.list()? {
                    if owner_vanished(shared, &record) {
                        match record.ephemeral {
                            true => orphans.push(record.vm_id),
                            false => drop(shared.registry.mark_stopped(&record.vm_id, Some(OWNER_VANISHED))?),
                        }
                    }
                }
                Ok((orphans, shared.registry.expired_candidates(now())?))
            })
            .await?;
        for id in orphans {
            self.remove(&id).await?;
        }
        for id in expired {
            self.expire(&id).await?;
        }
        Ok(())
    }

    /// Removes VMs whose lifetime has ended. The result names those removed by this call and those that their
    /// supervisors have removed since the last one.
    ///
    /// # Errors
    /// `StateUnusable`.
    pub async fn reap_expired(&self) -> Result<Reaped, EngineError> {
        if !self.config().base_dir.exists() {
            return Ok(Reaped::from(Vec::new()));
        }
        self.reconcile().await?;
        let ids = self.registry(|registry| registry.take_tombstones()).await?;
        Ok(Reaped::from(ids))
    }
}

/// The VM was running, or was a one-shot run, and nobody holds it any more.
pub(super) fn owner_vanished(shared: &Shared, record: &VmRecord) -> bool {
    let needs_owner = record.ephemeral
        || (record.state == VmState::Started && record.execution_mode == ExecutionMode::GuestVsock);
    needs_owner && !OwnerLock::is_held(&vm_dir(&shared.config.base_dir, &record.vm_id))
}

/// VM directories that no record knows and nobody holds.
fn strays(shared: &Shared) -> Result<Vec<VmId>, EngineError> {
    let Ok(entries) = fs::read_dir(vms_dir(&shared.config.base_dir)) else { return Ok(Vec::new()) };
    let is_old = |entry: &fs::DirEntry| {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > MAKING_TIME))
    };
    let present = entries
        .filter_map(Result::ok)
        .filter(is_old)
        .filter_map(|entry| VmId::parse(entry.file_name().to_str()?).ok())
        .filter(|id| !OwnerLock::is_held(&vm_dir(&shared.config.base_dir, id)));
    let known = shared.registry.ids()?;
    Ok(present.filter(|id| !known.contains(id)).collect())
}
