//! Brings the registry in line with reality, which changes independently of pyro: processes are killed, hosts lose
//! power, lifetimes end.

use std::fs;
use std::time::{Duration, SystemTime};

use pyro_supervisor::{Owner, OwnerLock};
use tokio::task::JoinSet;

use super::{Engine, Shared, now, vm_dir};
use crate::Kind;
use crate::registry::VmRecord;
use crate::{Error, ExecutionMode, Reaped, StopReason, VmId, VmState, state_dir};

/// A directory without a record and without a lock holder is left alone for this long: its creator may be about to lock
/// it, which takes microseconds.
const MAKING_TIME: Duration = Duration::from_secs(2);

/// The `last_error` of a VM whose supervisor vanished.
pub(super) const OWNER_VANISHED: &str = "backing guest process is no longer running";

impl Engine {
    /// Removes VMs whose lifetime has ended, VMs whose owning process is gone, and files without a record; records
    /// which VMs have stopped running.
    ///
    /// A VM that cannot be removed now is only logged: it must not prevent what has nothing to do with it. A later call
    /// tries again.
    ///
    /// # Errors
    /// `StateUnusable` if the registry cannot be used.
    pub(super) async fn reconcile(&self) -> Result<(), Error> {
        let (orphans, expired) = self
            .blocking(|shared| {
                shared.registry.purge_tombstones(now())?;
                let mut orphans = strays(shared)?;
                for record in shared.registry.list()? {
                    if owner_vanished(shared, &record) {
                        if is_unfinished(&record) {
                            orphans.push(record.vm_id);
                        } else {
                            note_unless_held(shared, &record.vm_id)?;
                        }
                    }
                }
                let mut expired = shared.registry.expired_candidates(now())?;
                expired.retain(|id| !is_held_by_caller(shared, id));
                Ok((orphans, expired))
            })
            .await?;
        // All at once, so that each waits only for its own process.
        let mut removals = JoinSet::new();
        for id in orphans {
            let engine = self.clone();
            removals.spawn(async move { (engine.remove(&id).await, id) });
        }
        for id in expired {
            let engine = self.clone();
            removals.spawn(async move { (engine.expire(&id).await.map(drop), id) });
        }
        while let Some(removal) = removals.join_next().await {
            match removal {
                Ok((Ok(()), _)) => {}
                Ok((Err(error), id)) => tracing::warn!(vm_id = %id, %error, "the VM cannot be removed now"),
                Err(error) => tracing::warn!(%error, "the removal of a VM was lost"),
            }
        }
        Ok(())
    }

    /// Records that the VM has stopped running; the caller holds its lock. Does nothing if that is already recorded.
    pub(super) async fn note_vanished(&self, id: &VmId) -> Result<(), Error> {
        let id = id.clone();
        self.blocking(move |shared| note_vanished(shared, &id)).await
    }

    /// Removes VMs whose lifetime has ended. The result lists those removed by this call and those that their
    /// supervisors have removed since the previous call, as far as the caller may find them.
    ///
    /// # Errors
    /// `StateUnusable`.
    pub async fn reap_expired(&self) -> Result<Reaped, Error> {
        if !self.config().base_dir.exists() {
            return Ok(Reaped::from(Vec::new()));
        }
        self.reconcile().await?;
        let caller = self.caller.clone();
        let ids = self.registry(move |registry| registry.take_tombstones(&caller)).await?;
        Ok(Reaped::from(ids))
    }
}

/// No process that knows of it will use it: a one-shot run, or a task whose creation is not complete.
pub(super) fn is_unfinished(record: &VmRecord) -> bool {
    record.ephemeral || (record.kind == Kind::Task && record.state == VmState::Created)
}

/// Records that the VM has stopped running. Does nothing if that is already recorded.
fn note_vanished(shared: &Shared, id: &VmId) -> Result<(), Error> {
    shared.registry.mark_stopped(id, StopReason::OwnerVanished, Some(OWNER_VANISHED)).map(drop)
}

/// Does the same, unless another process has taken the VM since it was seen without one: that process may have started it.
fn note_unless_held(shared: &Shared, id: &VmId) -> Result<(), Error> {
    let lock = OwnerLock::try_acquire(&vm_dir(&shared.config.base_dir, id));
    // Without its directory, no process can have taken it.
    if matches!(lock, Ok(None)) { Ok(()) } else { note_vanished(shared, id) }
}

/// The VM was running, or belonged to the process that created it, and no process holds it any more.
pub(super) fn owner_vanished(shared: &Shared, record: &VmRecord) -> bool {
    let needs_owner = is_unfinished(record)
        || (record.state == VmState::Started && record.execution_mode == ExecutionMode::GuestVsock);
    needs_owner && !OwnerLock::is_held(&vm_dir(&shared.config.base_dir, &record.vm_id))
}

/// A process that is not a supervisor holds the VM: it starts the VM, or runs a command of it on the host. Nothing asks
/// such a process to end the VM, and waiting for it would take as long as the command.
fn is_held_by_caller(shared: &Shared, id: &VmId) -> bool {
    let dir = vm_dir(&shared.config.base_dir, id);
    Owner::of(&dir).is_none() && OwnerLock::is_held(&dir)
}

/// Whether no process can be about to lock a file or directory that it has just made.
pub(super) fn is_older_than_making(entry: &fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > MAKING_TIME))
}

/// Returns the VM directories that have no record and no lock holder.
pub(super) fn strays(shared: &Shared) -> Result<Vec<VmId>, Error> {
    let Ok(entries) = fs::read_dir(state_dir::vms(&shared.config.base_dir)) else { return Ok(Vec::new()) };
    let present = entries
        .filter_map(Result::ok)
        .filter(is_older_than_making)
        .filter_map(|entry| VmId::parse(entry.file_name().to_str()?).ok())
        .filter(|id| !OwnerLock::is_held(&vm_dir(&shared.config.base_dir, id)));
    let known = shared.registry.ids()?;
    Ok(present.filter(|id| !known.contains(id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::{engine, started};

    #[test]
    fn a_vm_that_another_process_has_started_since_it_was_seen_is_not_recorded_as_vanished() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let id = started(&engine, 1, ExecutionMode::GuestVsock, now());
        let state = || engine.shared.registry.get(Kind::Vm, &id).unwrap().state;
        let lock = OwnerLock::try_acquire(&engine.vm_dir(&id)).unwrap().unwrap();
        note_unless_held(&engine.shared, &id).unwrap();
        assert_eq!(state(), VmState::Started);
        drop(lock);
        note_unless_held(&engine.shared, &id).unwrap();
        assert_eq!(state(), VmState::Stopped);
    }
}
