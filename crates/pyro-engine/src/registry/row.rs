//! Rows of the `vms` table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;

use pyro_env::EnvironmentVersion;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{OptionalExtension, Row, ToSql, Transaction, named_params};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::naming::StoredLabels;
use super::transaction_error::{TransactionError, is_row_error};
use crate::Kind;
use crate::host_settings::{CaSource, HostChoice};
use crate::limits::Sizing;
use crate::{AllowedCidr, AllowedDomain, AllowedHost, Egress};
use crate::{
    Caller, DirectoryMount, ExecutionMode, HostAccess, Naming, NetworkPolicy, OwnerName, PortMapping,
    StopReason, TtlFrom, Vm, VmId, VmState,
};

/// The record of a new VM.
#[derive(Debug, Clone)]
pub(crate) struct NewVm {
    pub(crate) vm_id: VmId,
    pub(crate) environment: String,
    pub(crate) environment_version: Option<String>,
    pub(crate) sizing: Sizing,
    /// Seconds since the epoch; the lifetime starts here.
    pub(crate) created_at: f64,
    pub(crate) kind: Kind,
    /// Whether this is a one-shot run, which belongs to its caller and ends with it.
    pub(crate) ephemeral: bool,
    /// Size of its disk, if requested.
    pub(crate) disk_mib: Option<u32>,
    /// What it may reach; `None`: it has no network.
    pub(crate) network: Option<NetworkPolicy>,
    /// Its published ports.
    pub(crate) ports: Vec<RecordedPort>,
    /// The directories of the host that it has mounted.
    pub(crate) mounts: Vec<DirectoryMount>,
    pub(crate) host_choice: HostChoice,
    pub(crate) host_access: HostAccess,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Its name and labels.
    pub(crate) naming: Naming,
    pub(crate) ttl_from: TtlFrom,
    /// The client on whose behalf it is created; `None`: this host's user.
    pub(crate) owner: Option<OwnerName>,
}

/// The record of a VM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VmRecord {
    pub(crate) vm_id: VmId,
    pub(crate) environment: String,
    pub(crate) environment_version: Option<String>,
    pub(crate) sizing: Sizing,
    pub(crate) created_at: f64,
    pub(crate) expires_at: f64,
    pub(crate) state: VmState,
    pub(crate) kind: Kind,
    pub(crate) ephemeral: bool,
    pub(crate) disk_mib: Option<u32>,
    /// What it may reach; `None`: it has no network.
    pub(crate) network: Option<NetworkPolicy>,
    /// Its published ports.
    pub(crate) ports: Vec<RecordedPort>,
    /// The directories of the host that it has mounted.
    pub(crate) mounts: Vec<DirectoryMount>,
    /// Mount points of those that were lost since the last start.
    pub(crate) lost_mounts: Vec<String>,
    pub(crate) host_choice: HostChoice,
    pub(crate) host_access: HostAccess,
    pub(crate) guest_ip: Option<String>,
    pub(crate) execution_mode: ExecutionMode,
    pub(crate) accelerator: Option<String>,
    /// Why it is not running; recorded only for tasks.
    pub(crate) stop_reason: Option<StopReason>,
    pub(crate) last_error: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) name: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ttl_from: TtlFrom,
    /// The client that created it.
    pub(crate) owner: Option<String>,
}

/// A published port of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedPort {
    /// What was asked for, and is asked for again at the next start.
    pub(crate) mapping: PortMapping,
    /// Where the host listened at the last start; `None`: the task was not started since.
    pub(crate) bound: Option<SocketAddr>,
}

/// A change to a record; `None` leaves a value unchanged.
#[derive(Debug, Clone, Default)]
pub(crate) struct VmPatch {
    pub(crate) execution_mode: Option<ExecutionMode>,
    pub(crate) accelerator: Option<String>,
    pub(crate) guest_ip: Option<String>,
    pub(crate) ports: Option<Vec<RecordedPort>>,
    /// Entries to add or replace.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl NewVm {
    pub(super) fn insert(&self, tx: &Transaction<'_>) -> Result<(), TransactionError> {
        let sql =
            "INSERT INTO vms (vm_id, environment, environment_version, vcpu_count, mem_mib, ttl_seconds,
                created_at, expires_at, state, is_task, ephemeral, disk_mib, network_enabled, network_policy,
                published_ports, host_ca, host_proxy, allow_host_compat, execution_mode, metadata, name, labels,
                ttl_from, owner, mounts)
            VALUES (:vm_id, :environment, :environment_version, :vcpu_count, :mem_mib, :ttl_seconds,
                :created_at, :expires_at, :state, :is_task, :ephemeral, :disk_mib, :network_enabled, :network_policy,
                :published_ports, :host_ca, :host_proxy, :allow_host_compat, :execution_mode, :metadata, :name, :labels,
                :ttl_from, :owner, :mounts)";
        tx.execute(
            sql,
            named_params! {
                ":vm_id": self.vm_id.as_str(),
                ":environment": self.environment,
                ":environment_version": self.environment_version,
                ":vcpu_count": self.sizing.vcpu_count,
                ":mem_mib": self.sizing.mem_mib,
                ":ttl_seconds": self.sizing.ttl_seconds,
                ":created_at": self.created_at,
                ":expires_at": self.created_at + f64::from(self.sizing.ttl_seconds),
                ":state": VmState::Created.as_str(),
                ":is_task": self.kind == Kind::Task,
                ":ephemeral": self.ephemeral,
                ":disk_mib": self.disk_mib,
                ":network_enabled": self.network.is_some(),
                ":network_policy": self.network.as_ref().map(policy_to_json),
                ":published_ports": ports_to_json(&self.ports),
                ":host_ca": self.host_choice.ca.as_ref().map(ToString::to_string),
                ":host_proxy": self.host_choice.proxy,
                ":allow_host_compat": self.host_access.is_allowed(),
                ":execution_mode": ExecutionMode::Pending.as_str(),
                ":metadata": to_json(&self.metadata),
                ":name": self.naming.name,
                ":labels": StoredLabels::to_json(&self.naming.labels),
                ":ttl_from": self.ttl_from.as_str(),
                ":owner": self.owner.as_ref().map(OwnerName::as_str),
                ":mounts": mounts_to_json(&self.mounts, &[]),
            },
        )?;
        Ok(())
    }
}

impl VmRecord {
    /// Returns the record as callers see it.
    pub(crate) fn payload(&self) -> Vm {
        Vm {
            vm_id: self.vm_id.clone(),
            environment: self.environment.clone(),
            environment_version: self.environment_version.clone(),
            vcpu_count: self.sizing.vcpu_count,
            mem_mib: self.sizing.mem_mib,
            ttl_seconds: self.sizing.ttl_seconds,
            created_at: self.created_at,
            expires_at: self.expires_at,
            state: self.state,
            network_enabled: self.network.is_some(),
            network_policy: self.network.clone(),
            allow_host_compat: self.host_access.is_allowed(),
            guest_ip: self.guest_ip.clone(),
            tap_name: None,
            execution_mode: self.execution_mode,
            metadata: self.metadata.clone(),
            accelerator: self.accelerator.clone(),
            mounts: self.mounts.clone(),
            owner: self.owner.clone(),
        }
    }

    pub(super) fn apply(&mut self, patch: &VmPatch) {
        if let Some(mode) = patch.execution_mode {
            self.execution_mode = mode;
        }
        if let Some(accelerator) = &patch.accelerator {
            self.accelerator = Some(accelerator.clone());
        }
        if let Some(guest_ip) = &patch.guest_ip {
            self.guest_ip = Some(guest_ip.clone());
        }
        if let Some(ports) = &patch.ports {
            self.ports.clone_from(ports);
        }
        self.metadata.extend(patch.metadata.clone());
    }

    /// Stores the values that can change during a VM's life.
    pub(super) fn update(&self, tx: &Transaction<'_>) -> Result<(), TransactionError> {
        let sql = "UPDATE vms SET state = :state, guest_ip = :guest_ip, execution_mode = :execution_mode,
                accelerator = :accelerator, stop_reason = :stop_reason, last_error = :last_error,
                metadata = :metadata, ttl_seconds = :ttl_seconds, expires_at = :expires_at,
                published_ports = :published_ports, name = :name, labels = :labels, ttl_from = :ttl_from,
                mounts = :mounts
            WHERE vm_id = :vm_id";
        tx.execute(
            sql,
            named_params! {
                ":state": self.state.as_str(),
                ":guest_ip": self.guest_ip,
                ":execution_mode": self.execution_mode.as_str(),
                ":accelerator": self.accelerator,
                ":stop_reason": self.stop_reason.map(StopReason::as_str),
                ":last_error": self.last_error,
                ":ttl_seconds": self.sizing.ttl_seconds,
                ":expires_at": self.expires_at,
                ":published_ports": ports_to_json(&self.ports),
                ":metadata": to_json(&self.metadata),
                ":name": self.name,
                ":labels": StoredLabels::to_json(&self.labels),
                ":ttl_from": self.ttl_from.as_str(),
                ":mounts": mounts_to_json(&self.mounts, &self.lost_mounts),
                ":vm_id": self.vm_id.as_str(),
            },
        )?;
        Ok(())
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let vm_id: VmId = stored(row, "vm_id")?;
        let metadata = from_json(&vm_id, &row.get::<_, String>("metadata")?);
        let mounts = mounts(row)?;
        let lost_mounts =
            mounts.iter().filter(|stored| stored.lost).map(|stored| stored.mount.guest.clone()).collect();
        Ok(Self {
            environment: row.get("environment")?,
            environment_version: row.get("environment_version")?,
            sizing: Sizing {
                vcpu_count: row.get("vcpu_count")?,
                mem_mib: row.get("mem_mib")?,
                ttl_seconds: row.get("ttl_seconds")?,
            },
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            state: stored(row, "state")?,
            kind: if row.get("is_task")? { Kind::Task } else { Kind::Vm },
            ephemeral: row.get("ephemeral")?,
            disk_mib: row.get("disk_mib")?,
            network: network(row)?,
            ports: ports(row)?,
            mounts: mounts.into_iter().map(|stored| stored.mount).collect(),
            lost_mounts,
            host_choice: HostChoice {
                ca: row.get::<_, Option<Stored<CaSource>>>("host_ca")?.map(|Stored(source)| source),
                proxy: row.get("host_proxy")?,
            },
            host_access: row.get::<_, bool>("allow_host_compat")?.into(),
            guest_ip: row.get("guest_ip")?,
            execution_mode: stored(row, "execution_mode")?,
            accelerator: row.get("accelerator")?,
            stop_reason: row
                .get::<_, Option<Stored<StopReason>>>("stop_reason")?
                .map(|Stored(reason)| reason),
            last_error: row.get("last_error")?,
            metadata,
            name: row.get("name")?,
            labels: row
                .get::<_, Option<StoredLabels>>("labels")?
                .map_or_else(BTreeMap::new, |StoredLabels(labels)| labels),
            ttl_from: stored(row, "ttl_from")?,
            owner: row.get("owner")?,
            vm_id,
        })
    }
}

/// Returns what a VM may reach. A VM that was recorded before there were policies has the default one; a damaged policy makes
/// the record unreadable, because any other policy might open more.
fn network(row: &Row<'_>) -> rusqlite::Result<Option<NetworkPolicy>> {
    if !row.get::<_, bool>("network_enabled")? {
        return Ok(None);
    }
    let policy = row.get::<_, Option<StoredPolicy>>("network_policy")?;
    Ok(Some(policy.map_or_else(NetworkPolicy::default, |StoredPolicy(policy)| policy)))
}

/// Returns the published ports of a task. A damaged list makes the record unreadable, because any other list might open more.
fn ports(row: &Row<'_>) -> rusqlite::Result<Vec<RecordedPort>> {
    let stored = row.get::<_, Option<StoredPorts>>("published_ports")?;
    Ok(stored.map_or_else(Vec::new, |StoredPorts(ports)| ports))
}

/// Returns the mounted directories. A damaged list makes the record unreadable, because any other list might open more.
fn mounts(row: &Row<'_>) -> rusqlite::Result<Vec<StoredMount>> {
    let stored = row.get::<_, Option<StoredMounts>>("mounts")?;
    Ok(stored.map_or_else(Vec::new, |StoredMounts(mounts)| mounts))
}

/// Returns whether a caller may find what this id stands for, be it a damaged record or a tombstone. An id that stands for
/// nothing may be looked for.
pub(super) fn may_find(tx: &Transaction<'_>, caller: &Caller, id: &VmId) -> Result<bool, TransactionError> {
    let sql = "SELECT owner FROM vms WHERE vm_id = :id";
    let owner: Option<Option<String>> =
        tx.query_row(sql, named_params! { ":id": id.as_str() }, |row| row.get(0)).optional()?;
    Ok(owner.is_none_or(|owner| caller.finds(owner.as_deref())))
}

/// Returns the VM with this id, unless it is a tombstone.
pub(super) fn find(tx: &Transaction<'_>, id: &VmId) -> Result<Option<VmRecord>, TransactionError> {
    let sql = "SELECT * FROM vms WHERE vm_id = :id AND expired_at IS NULL";
    Ok(tx.query_row(sql, named_params! { ":id": id.as_str() }, VmRecord::from_row).optional()?)
}

/// Returns all VMs that match `condition`. Columns are read by name, so unknown columns do no harm.
pub(super) fn select(
    tx: &Transaction<'_>,
    condition: &str,
    values: &[(&str, &dyn ToSql)],
) -> Result<Vec<VmRecord>, TransactionError> {
    let mut statement = tx.prepare_cached(&format!("SELECT * FROM vms WHERE {condition}"))?;
    readable(statement.query_map(values, VmRecord::from_row)?)
}

/// Returns the ids that match `condition`, sorted.
pub(super) fn select_ids(tx: &Transaction<'_>, condition: &str) -> Result<Vec<VmId>, TransactionError> {
    let mut statement =
        tx.prepare_cached(&format!("SELECT vm_id FROM vms WHERE {condition} ORDER BY vm_id"))?;
    readable(statement.query_map([], |row| row.get(0).map(|Stored(id)| id))?)
}

/// Returns the ids of the VMs that were made from an environment; those whose commands run on the host were not.
pub(super) fn select_users(tx: &Transaction<'_>, environment: &str) -> Result<Vec<VmId>, TransactionError> {
    let mut statement = tx.prepare_cached(
        "SELECT vm_id FROM vms
        WHERE expired_at IS NULL AND environment = :environment AND environment_version IS NOT NULL ORDER BY vm_id",
    )?;
    let rows = statement
        .query_map(named_params! { ":environment": environment }, |row| row.get(0).map(|Stored(id)| id))?;
    readable(rows)
}

/// Returns the versions of environments of all VMs.
pub(super) fn select_environments(tx: &Transaction<'_>) -> Result<Vec<EnvironmentVersion>, TransactionError> {
    let mut statement = tx.prepare_cached(
        "SELECT DISTINCT environment, environment_version FROM vms
        WHERE expired_at IS NULL AND environment_version IS NOT NULL",
    )?;
    let version = |row: &rusqlite::Row<'_>| {
        Ok(EnvironmentVersion::new(row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    };
    readable(statement.query_map([], version)?)
}

/// Collects `rows`, skipping damaged ones.
pub(super) fn readable<T>(
    rows: impl Iterator<Item = rusqlite::Result<T>>,
) -> Result<Vec<T>, TransactionError> {
    let mut values = Vec::new();
    for row in rows {
        match row {
            Ok(value) => values.push(value),
            Err(error) if is_row_error(&error) => warn!(%error, "left out a damaged record of the registry"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(values)
}

fn policy_to_json(policy: &NetworkPolicy) -> String {
    serde_json::json!(policy).to_string()
}

fn ports_to_json(ports: &[RecordedPort]) -> Option<String> {
    (!ports.is_empty()).then(|| serde_json::json!(ports).to_string())
}

fn mounts_to_json(mounts: &[DirectoryMount], lost: &[String]) -> Option<String> {
    let stored =
        |mount: &DirectoryMount| StoredMount { lost: lost.contains(&mount.guest), mount: mount.clone() };
    let stored: Vec<StoredMount> = mounts.iter().map(stored).collect();
    (!stored.is_empty()).then(|| serde_json::json!(stored).to_string())
}

/// A mount as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredMount {
    #[serde(flatten)]
    mount: DirectoryMount,
    /// Its server has ended since the last start.
    #[serde(default)]
    lost: bool,
}

/// Mounts stored as JSON.
struct StoredMounts(Vec<StoredMount>);

impl FromSql for StoredMounts {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let mounts = serde_json::from_str(value.as_str()?);
        mounts.map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// Ports stored as JSON.
struct StoredPorts(Vec<RecordedPort>);

impl FromSql for StoredPorts {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let ports = serde_json::from_str(value.as_str()?);
        ports.map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A policy stored as JSON.
struct StoredPolicy(NetworkPolicy);

impl FromSql for StoredPolicy {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let unreadable = |error| FromSqlError::Other(Box::new(error));
        let policy: CompletePolicy = serde_json::from_str(value.as_str()?).map_err(unreadable)?;
        let CompletePolicy { egress, allow_cidrs, allow_hosts, allow_domains } = policy;
        let policy = NetworkPolicy { egress, allow_cidrs, allow_hosts, allow_domains };
        policy.check().map_err(|error| FromSqlError::Other(Box::new(error)))?;
        Ok(Self(policy))
    }
}

/// A policy as it is stored: a key that is absent has been lost, and does not have its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompletePolicy {
    egress: Egress,
    allow_cidrs: Vec<AllowedCidr>,
    allow_hosts: Vec<AllowedHost>,
    allow_domains: Vec<AllowedDomain>,
}

fn to_json(metadata: &BTreeMap<String, String>) -> String {
    let object = metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// Parses metadata. It is only diagnostic, so a VM with damaged metadata stays usable.
fn from_json(id: &VmId, text: &str) -> BTreeMap<String, String> {
    serde_json::from_str(text).unwrap_or_else(|error| {
        warn!(%id, %error, "metadata in the registry is damaged");
        BTreeMap::from([("metadata_error".to_owned(), "the stored metadata is damaged".to_owned())])
    })
}

/// A stored word that is not a value of its type.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a value of this column")]
struct UnknownWord(String);

/// A value stored as its word.
pub(super) struct Stored<T>(pub(super) T);

impl<T: FromStr> FromSql for Stored<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        text.parse().map(Self).map_err(|_| FromSqlError::Other(Box::new(UnknownWord(text.to_owned()))))
    }
}

/// Returns the value of a column.
pub(super) fn stored<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    row.get(column).map(|Stored(value)| value)
}
