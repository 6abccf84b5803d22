//! What the process gives up before it reads a byte of the guest. It needs sockets, the descriptors that it was given, and
//! the list of the host's resolvers.

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, geteuid, getppid, getrlimit,
    parent_process_death_signal, set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::limits;

/// User and group that have no files: `nobody` and `nogroup`.
const UNPRIVILEGED: u32 = 65_534;
/// Maximum memory that the process may allocate, in bytes: more than all buffers together.
const MAX_DATA_BYTES: u64 = 256 << 20;

/// Why the process could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A limit could not be set.
    #[error("cannot limit the network process")]
    Limit(#[source] Errno),
    /// Privileges could not be given up.
    #[error("cannot give up privileges")]
    Privileges(#[source] Errno),
    /// The process that started this one has ended.
    #[error("the process that started this one has ended")]
    Orphaned,
}

/// Gives up what the process does not need. Call it before there is a second thread.
///
/// A process of root becomes one of an unprivileged user. In a user namespace that knows no such user, it keeps its user
/// but no capability.
///
/// # Errors
/// [`ConfineError`]. The process must not go on then.
pub fn confine() -> Result<(), ConfineError> {
    set_no_new_privs(true).map_err(ConfineError::Privileges)?;
    for (resource, most) in [
        (Resource::Nofile, limits::DESCRIPTORS),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Data, MAX_DATA_BYTES),
    ] {
        limit(resource, most).map_err(ConfineError::Limit)?;
    }
    let bound = parent_process_death_signal().ok().flatten();
    let parent = getppid();
    if geteuid().is_root() {
        become_nobody().map_err(ConfineError::Privileges)?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(ConfineError::Privileges)?;
    // A change of user resets both.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(ConfineError::Privileges)?;
    if bound.is_some() {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(ConfineError::Privileges)?;
        if getppid() != parent {
            return Err(ConfineError::Orphaned);
        }
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> Result<(), Errno> {
    let maximum = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })
}

fn become_nobody() -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(UNPRIVILEGED), Gid::from_raw(UNPRIVILEGED));
    let unknown = |error| match error {
        // The user namespace knows no such user, or does not let its users change groups.
        Errno::INVAL | Errno::PERM => Ok(()),
        error => Err(error),
    };
    set_thread_groups(&[]).or_else(unknown)?;
    set_thread_res_gid(group, group, group).or_else(unknown)?;
    set_thread_res_uid(user, user, user).or_else(unknown)
}
