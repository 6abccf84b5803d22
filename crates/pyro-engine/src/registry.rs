//! The registry of VMs and tasks: one SQLite file shared by all pyro processes of the user.
//!
//! Each operation is one transaction, so processes may start, exit, and die at any point. The file is opened on first
//! use. Methods block on the disk; asynchronous callers move them to a blocking thread.
//!
//! Times are wall-clock seconds since the epoch, because they are compared across processes.

mod journal;
pub(crate) mod names;
mod naming;
mod open;
mod row;
mod schema;
mod services;
fn mark_stopped(
    tx: &Transaction<'_>,
    id: &VmId,
    reason: StopReason,
    last_error: Option<&str>,
) -> Result<VmRecord, TransactionError> {
    let mut record = find(tx, id)?;
    if let Ok(Transition::Become(state)) = record.state.apply(VmEvent::Died) {
        record.state = state;
        record.stop_reason = Some(reason);
        record.last_error = last_error.map(str::to_owned);
        record.update(tx)?;
    }
    journal::conclude(tx, id, now())?;
    services::conclude(tx, id, now())?;
    Ok(record)
}

#[cfg(test)]
mod tests;
mod transaction_error;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pyro_env::EnvironmentVersion;
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, named_params};

pub(crate) use self::journal::{CommandRecord, NewCommand};
use self::open::Opened;
pub(crate) use self::open::prepare_directory;
pub(crate) use self::row::{NewVm, RecordedPort, VmPatch, VmRecord};
pub(crate) use self::services::{ServiceRecord, no_such_service};
use self::transaction_error::TransactionError;
use crate::clock::now;
use crate::state::{Transition, Transitions as _, VmEvent};
use crate::{Caller, DirectoryMount, Kind, OwnerName};
use crate::{Error, ErrorKind, ExecutionMode, StopReason, VmId, VmState, state_dir};

/// How long the registry remembers that a VM was removed because of its lifetime, in seconds.
const TOMBSTONE_SECONDS: f64 = 3600.0;

/// Number of unused pages that the file may keep for new records.
const SPARE_PAGES: u64 = 256;

/// The registry of one state directory.
#[derive(Debug)]
pub(crate) struct Registry {
    base_dir: PathBuf,
    file: PathBuf,
    opened: Mutex<Option<Opened>>,
}

impl Registry {
    /// Creates the registry below `base_dir`. Does no I/O.
    pub(crate) fn new(base_dir: &Path) -> Self {
        Self { base_dir: base_dir.to_owned(), file: state_dir::registry(base_dir), opened: Mutex::new(None) }
    }

    /// Records a VM in state `created`, unless `max_active_vms` exist already or a task has its name.
    pub(crate) fn insert(&self, vm: &NewVm, max_active_vms: u32) -> Result<(), Error> {
        self.write(|tx| {
            let active: u32 =
                tx.query_row("SELECT count(*) FROM vms WHERE expired_at IS NULL", [], |row| row.get(0))?;
            if active >= max_active_vms {
                return Err(Error::at_capacity(max_active_vms).into());
            }
            if let Some(name) = &vm.naming.name {
                naming::refuse_taken(tx, vm.owner.as_ref().map(OwnerName::as_str), name, None)?;
            }
            vm.insert(tx)?;
            Ok(())
        })
    }

    /// Returns one VM or task.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such VM or task, `Expired` if it was removed because of its lifetime.
    pub(crate) fn get(&self, kind: Kind, id: &VmId) -> Result<VmRecord, Error> {
        self.read(|tx| load(tx, kind, id))
    }

    /// Returns one VM or task that `caller` may find.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`]. For what the caller may not find, the same as for an id that was never used.
    pub(crate) fn find(&self, caller: &Caller, kind: Kind, id: &VmId) -> Result<VmRecord, Error> {
        self.read(|tx| match row::may_find(tx, caller, id)? {
            true => load(tx, kind, id),
            false => Err(Error::not_found(kind, id.as_str()).into()),
        })
    }

    /// Chooses the size of the disk of a VM, given the other VMs with the sizes of their disks in MiB, and records it. No
    /// other process chooses meanwhile. The VM need not be recorded; nothing is promised to it then.
    pub(crate) fn promise_disk(
        &self,
        id: &VmId,
        choose: impl FnOnce(&[(VmId, Option<u64>)]) -> Result<u64, Error>,
    ) -> Result<u64, Error> {
        self.write(|tx| {
            let others: Vec<(VmId, Option<u64>)> = {
                let sql = "SELECT vm_id, layer_mib FROM vms WHERE expired_at IS NULL AND vm_id <> :id";
                let mut statement = tx.prepare_cached(sql)?;
                let rows = statement.query_map(named_params! { ":id": id.as_str() }, |row| {
                    Ok((row.get(0).map(|row::Stored(id)| id)?, row.get(1)?))
                })?;
                row::readable(rows)?
            };
            let size_mib = choose(&others)?;
            let sql = "UPDATE vms SET layer_mib = :size WHERE vm_id = :id";
            tx.execute(sql, named_params! { ":size": size_mib, ":id": id.as_str() })?;
            Ok(size_mib)
        })
    }

    /// Returns whether a VM or a task with this id exists. Its record need not be readable.
    pub(crate) fn exists(&self, kind: Kind, id: &VmId) -> Result<bool, Error> {
        self.read(|tx| {
            let sql = "SELECT 1 FROM vms WHERE vm_id = :id AND is_task = :is_task AND expired_at IS NULL";
            let values = named_params! { ":id": id.as_str(), ":is_task": kind == Kind::Task };
            Ok(tx.query_row(sql, values, |_| Ok(())).optional()?.is_some())
        })
    }

    /// Returns all VMs, oldest first. Damaged records are left out, so that one cannot hide the others.
    pub(crate) fn list(&self) -> Result<Vec<VmRecord>, Error> {
        self.read(|tx| row::select(tx, "expired_at IS NULL ORDER BY created_at, vm_id", named_params! {}))
    }

    /// Returns the ids of all VMs, sorted, including those of damaged records.
    pub(crate) fn ids(&self) -> Result<Vec<VmId>, Error> {
        self.read(|tx| row::select_ids(tx, "expired_at IS NULL"))
    }

    /// Returns the versions of environments that VMs and tasks were made with.
    pub(crate) fn environment_versions(&self) -> Result<Vec<EnvironmentVersion>, Error> {
        self.read(row::select_environments)
    }

    /// Returns the ids of the VMs and tasks that were made from an environment, in whatever version, sorted.
    pub(crate) fn users_of_environment(&self, name: &str) -> Result<Vec<VmId>, Error> {
        self.read(|tx| row::select_users(tx, name))
    }

    /// Returns the ids of the tasks that `caller` may find, sorted, including those of damaged records.
    pub(crate) fn task_ids(&self, caller: &Caller) -> Result<Vec<VmId>, Error> {
        self.read(|tx| {
            let mut ids = row::select_ids(tx, "expired_at IS NULL AND is_task")?;
            retain_own(tx, caller, &mut ids)?;
            Ok(ids)
        })
    }

    /// Applies `event` to a VM if its state allows it, and stores the new state together with `patch`.
    ///
    /// This only decides on a removal: the caller then frees what the VM holds and calls [`Registry::delete`], so that
    /// a crash between the two leaves a record to delete again.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`], and `WrongState`.
    pub(crate) fn transition(
        &self,
        kind: Kind,
        id: &VmId,
        event: VmEvent,
        patch: &VmPatch,
    ) -> Result<(Transition, VmRecord), Error> {
        self.write(|tx| {
            let mut record = load(tx, kind, id)?;
            let transition =
                record.state.apply(event).map_err(|denied| denied.into_error(kind, id.as_str()))?;
            if let Transition::Become(state) = transition {
                record.state = state;
                record.last_error = None;
                record.stop_reason = (event == VmEvent::Stop).then_some(StopReason::ExplicitStop);
            }
            if event == VmEvent::Stop {
                journal::conclude(tx, id, now())?;
            }
            if transition != Transition::Remove {
                record.apply(patch);
                record.update(tx)?;
            }
            Ok((transition, record))
        })
    }

    /// Records that the VM is running; `patch` holds what is known about it.
    ///
    /// # Errors
    ///
    /// As [`Registry::transition`] for a start.
    pub(crate) fn set_started(&self, id: &VmId, patch: &VmPatch) -> Result<VmRecord, Error> {
        self.write(|tx| {
            let mut record = find(tx, id)?;
            let started = record.state.apply(VmEvent::Start);
            started.map_err(|denied| denied.into_error(record.kind, id.as_str()))?;
            record.state = VmState::Started;
            record.stop_reason = None;
            record.last_error = None;
            record.lost_mounts.clear();
            record.apply(patch);
            record.update(tx)?;
            // What its last supervisor could not record.
            services::conclude(tx, id, now())?;
            Ok(record)
        })
    }

    /// Records that a start was lost that had made the VM's disk: as if the VM had stopped because its process vanished, and
    /// had never run in a guest.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn take_back_start(&self, id: &VmId, last_error: &str) -> Result<(), Error> {
        self.write(|tx| {
            let mut record = mark_stopped(tx, id, StopReason::OwnerVanished, Some(last_error))?;
            record.execution_mode = ExecutionMode::Pending;
            record.update(tx)
        })
    }

    /// Records that the VM has stopped running and why; `last_error` may add details. The record of a VM that was not
    /// running is unchanged. Commands that ran in the VM are lost.
    pub(crate) fn mark_stopped(
        &self,
        id: &VmId,
        reason: StopReason,
        last_error: Option<&str>,
    ) -> Result<VmRecord, Error> {
        self.write(|tx| mark_stopped(tx, id, reason, last_error))
    }

    /// Gives a task a new lifetime.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn renew(&self, id: &VmId, ttl_seconds: u32, expires_at: f64) -> Result<VmRecord, Error> {
        self.write(|tx| {
            let mut record = load(tx, Kind::Task, id)?;
            record.sizing.ttl_seconds = ttl_seconds;
            record.expires_at = expires_at;
            record.update(tx)?;
            Ok(record)
        })
    }

    /// Lets the lifetime of a task end at `expires_at`, unless it ends later.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn prolong(&self, id: &VmId, expires_at: f64) -> Result<VmRecord, Error> {
        self.write(|tx| {
            let mut record = load(tx, Kind::Task, id)?;
            if record.expires_at < expires_at {
                record.expires_at = expires_at;
                record.update(tx)?;
            }
            Ok(record)
        })
    }

    /// Records the published ports of a task.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn set_ports(&self, id: &VmId, ports: &[RecordedPort]) -> Result<VmRecord, Error> {
        self.write(|tx| {
            let mut record = load(tx, Kind::Task, id)?;
            record.ports = ports.to_vec();
            record.update(tx)?;
            Ok(record)
        })
    }

    /// Records the mounted directories of a task, and the mount points of those that are lost.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn set_mounts(
        &self,
        id: &VmId,
        mounts: &[DirectoryMount],
        lost: Vec<String>,
    ) -> Result<VmRecord, Error> {
        self.write(|tx| {
            let mut record = load(tx, Kind::Task, id)?;
            record.mounts = mounts.to_vec();
            record.lost_mounts = lost;
            record.update(tx)?;
            Ok(record)
        })
    }

    /// Deletes the record of a VM. The record need not be readable.
    ///
    /// # Errors
    ///
    /// As [`Registry::get`].
    pub(crate) fn delete(&self, id: &VmId) -> Result<(), Error> {
        let free_pages: u64 = self.write(|tx| {
            let sql = "DELETE FROM vms WHERE vm_id = :id AND expired_at IS NULL";
            match tx.execute(sql, named_params! { ":id": id.as_str() })? {
                0 => Err(absence(tx, Kind::Vm, id)?.into()),
                _ => Ok(tx.pragma_query_value(None, "freelist_count", |row| row.get(0))?),
            }
        })?;
        if free_pages > SPARE_PAGES {
            self.give_back_space();
        }
        Ok(())
    }

    /// Turns a VM into a tombstone because its lifetime has ended. Returns false if it already was one, so that only
    /// one of several processes reports the removal.
    pub(crate) fn mark_expired(&self, id: &VmId, now: f64) -> Result<bool, Error> {
        self.write(|tx| {
            let sql = "UPDATE vms SET expired_at = :now, state = :state \
                       WHERE vm_id = :id AND expired_at IS NULL AND NOT is_task";
            let changed = tx.execute(
                sql,
                named_params! { ":now": now, ":state": VmState::Stopped.as_str(), ":id": id.as_str() },
            )?;
            Ok(changed > 0)
        })
    }

    /// Returns the VMs, not tasks, whose lifetime has ended and which still exist, including damaged records.
    pub(crate) fn expired_candidates(&self, now: f64) -> Result<Vec<VmId>, Error> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT vm_id FROM vms WHERE expired_at IS NULL AND NOT is_task AND expires_at <= :now \
                 ORDER BY 1",
            )?;
            let ids = statement
                .query_map(named_params! { ":now": now }, |row| row.get(0).map(|row::Stored(id)| id))?;
            row::readable(ids)
        })
    }

    /// Deletes tombstones older than an hour.
    pub(crate) fn purge_tombstones(&self, now: f64) -> Result<(), Error> {
        self.write(|tx| {
            let sql = "DELETE FROM vms WHERE expired_at <= :before";
            tx.execute(sql, named_params! { ":before": now - TOMBSTONE_SECONDS })?;
            Ok(())
        })
    }

    /// Deletes the tombstones that `caller` may find and returns their ids, sorted, for the report of a reaping call.
    pub(crate) fn take_tombstones(&self, caller: &Caller) -> Result<Vec<VmId>, Error> {
        self.write(|tx| {
            let mut ids = row::select_ids(tx, "expired_at IS NOT NULL")?;
            retain_own(tx, caller, &mut ids)?;
            for id in &ids {
                tx.execute("DELETE FROM vms WHERE vm_id = :id", named_params! { ":id": id.as_str() })?;
            }
            Ok(ids)
        })
    }

    /// Gives the space of deleted records back to the disk. What fails is done after a later deletion.
    fn give_back_space(&self) {
        let vacuumed = self.transact(TransactionBehavior::Immediate, Durability::Process, |tx| {
            let mut statement = tx.prepare("PRAGMA incremental_vacuum")?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        });
        if let Err(error) = vacuumed {
            tracing::debug!(%error, "the state file keeps its size for now");
        }
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, Error> {
        self.transact(TransactionBehavior::Deferred, Durability::Process, work)
    }

    /// Takes the write lock at once: a transaction that begins as a reader and then writes fails with "busy", without
    /// waiting, if another one has written in between.
    fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, Error> {
        self.transact(TransactionBehavior::Immediate, Durability::Process, work)
    }

    /// Like [`Registry::write`], but the data is on disk when it returns, so that a power failure does not undo it.
    fn write_through<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, Error> {
        self.transact(TransactionBehavior::Immediate, Durability::Disk, work)
    }

    fn transact<T>(
        &self,
        behavior: TransactionBehavior,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, Error> {
        let mut slot = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // Another program may have moved a damaged file away while this process runs.
        let usable = slot.take().filter(|opened| opened.is_current(&self.file));
        let mut opened = match usable {
            Some(opened) => opened,
            None => Opened::open(&self.base_dir, &self.file)?,
        };
        let result = transact_on(&mut opened, behavior, durability, work)
            .map_err(|error| error.into_error(&self.file));
        // After an error of the file, reopen the file on the next call, because it may have been repaired by then.
        if !matches!(&result, Err(error) if error.kind == ErrorKind::StateUnusable) {
            *slot = Some(opened);
        }
        result
    }
}

fn transact_on<T>(
    opened: &mut Opened,
    behavior: TransactionBehavior,
    durability: Durability,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
) -> Result<T, TransactionError> {
    opened.connection.pragma_update(None, "synchronous", durability.pragma())?;
    let tx = opened.connection.transaction_with_behavior(behavior)?;
    let value = work(&tx)?;
    tx.commit()?;
    Ok(value)
}

/// What a committed transaction survives.
#[derive(Clone, Copy)]
enum Durability {
    /// The exit of any process.
    Process,
    /// A power failure too.
    Disk,
}

impl Durability {
    fn pragma(self) -> &'static str {
        match self {
            Self::Process => "NORMAL",
            Self::Disk => "FULL",
        }
    }
}

/// Removes from `ids` what the caller may not find.
fn retain_own(tx: &Transaction<'_>, caller: &Caller, ids: &mut Vec<VmId>) -> Result<(), TransactionError> {
    if caller.finds_all() {
        return Ok(());
    }
    let mut own = Vec::new();
    for id in ids.drain(..) {
        if row::may_find(tx, caller, &id)? {
            own.push(id);
        }
    }
    *ids = own;
    Ok(())
}

fn load(tx: &Transaction<'_>, kind: Kind, id: &VmId) -> Result<VmRecord, TransactionError> {
    match row::find(tx, id)? {
        Some(record) if record.kind == kind => Ok(record),
        Some(_) => Err(Error::not_found(kind, id.as_str()).into()),
        None => Err(absence(tx, kind, id)?.into()),
    }
}

/// Returns the VM or task with this id.
fn find(tx: &Transaction<'_>, id: &VmId) -> Result<VmRecord, TransactionError> {
    row::find(tx, id)?.map_or_else(|| Err(absence(tx, Kind::Vm, id)?.into()), Ok)
}

/// Explains why the VM or task `id` does not exist. Only VMs leave a tombstone.
fn absence(tx: &Transaction<'_>, kind: Kind, id: &VmId) -> Result<Error, TransactionError> {
    let tombstone: Option<i64> = tx
        .query_row("SELECT 1 FROM vms WHERE vm_id = :id", named_params! { ":id": id.as_str() }, |row| {
            row.get(0)
        })
        .optional()?;
    Ok(match (tombstone, kind) {
        (Some(_), Kind::Vm) => Error::vm_expired(id.as_str()),
        _ => Error::not_found(kind, id.as_str()),
    })
}
