//! What other processes do with one spare: start it, claim it, end it. Which spares there are, and how many there should
//! be, is decided by the processes that use them.
//!
//! A spare is a VM that is started before a caller asks for it and waits to be claimed. Its supervisor decides which
//! claim is the first, so no two processes can get the same spare.

use std::ffi::OsStr;
use std::path::Path;

use futures::{SinkExt, StreamExt};
use pyro_machine::snapshot::SnapshotError;
use pyro_machine::{Firecracker, Qemu, Vmm, snapshot};
use pyro_wire::{Frame, FrameCodec, HostSettings};
use sha2::{Digest, Sha256};
use tokio_util::codec::Framed;

use crate::protocol::{Legacy, Reply, VERSION};
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootInfo, BootStage, Lifeline, OwnerLock, StartError, client, dir, server};

/// Returns the key that VMs share that can take each other's place, whether they start from templates or not. `cache`
/// is a directory for what is remembered about the VMM.
///
/// # Errors
/// The VMM, the guest's kernel, or the host cannot be identified.
pub async fn key(spec: &LaunchSpec, cache: &Path) -> Result<String, SnapshotError> {
    let subject = spec.subject();
    let key = match spec.vmm {
        Vmm::Qemu => snapshot::key(cache, &subject, &Qemu::new()).await?,
        Vmm::Firecracker => snapshot::key(cache, &subject, &Firecracker::new()).await?,
    };
    Ok(with_network(&key, VERSION, spec))
}

/// A running VM keeps its policy and its network process, so VMs with different policies or of different versions of this
/// program cannot take each other's place.
fn with_network(key: &str, version: &str, spec: &LaunchSpec) -> String {
    let policy = spec.network.then_some(&spec.network_policy);
    let network = format!("{version} {policy:?}");
    format!("{key}-{}", hex::encode(&Sha256::digest(network)[..8]))
}

/// Starts `program` with `args` as the supervisor of a spare, which `spec` describes and whose lock is `lock`. Does not
/// wait until the spare is up. The spare outlives this process.
///
/// # Errors
/// [`StartError::Spawn`], or [`StartError::Lost`] if the supervisor has died at once.
pub async fn start(
    program: &Path,
    args: &[&OsStr],
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Result<(), StartError> {
    // A spare gets those of the VM that it becomes.
    let host_settings = HostSettings::default();
    let spec = LaunchSpec { purpose: Purpose::Spare, is_new: true, host_settings, ..spec };
    client::spawn(program, args, spec, lock).await.map(drop)
}

/// What became of the claim of a spare.
#[derive(Debug)]
pub enum Claim {
    /// The spare is gone, or another process has claimed it. Nothing has changed.
    NotGranted,
    /// The spare failed before its claimer saw it as the VM, and is gone. Another start can take its place. The start of
    /// the VM may be on record although no process runs it.
    Failed,
    /// The spare is the VM, or why the VM did not come up: something went wrong when the guest already was this VM.
    Granted(Box<Result<(Lifeline, BootInfo), StartError>>),
}

/// Makes the spare in `dir` the VM of `spec`, whose lock is `lock`.
pub async fn claim(dir: &Path, spec: &LaunchSpec, lock: &OwnerLock) -> Claim {
    match client::claim(dir, spec.clone(), lock).await {
        None => Claim::NotGranted,
        Some(Err(error)) if is_harmless(&error, spec) => {
            tracing::warn!(%error, dir = %dir.display(), "a spare failed");
            // The spare may have been killed half-way.
            server::clear_claimed(&spec.dir);
            Claim::Failed
        }
        Some(claimed) => Claim::Granted(Box::new(claimed)),
    }
}

/// Returns whether the spare failed before it became the VM, so that another start can take its place.
fn is_harmless(error: &StartError, spec: &LaunchSpec) -> bool {
    match error {
        StartError::Boot(failure) => failure.stage == BootStage::Identity,
        StartError::Lost | StartError::Unresponsive => spec.dir.exists(),
        StartError::Ended(_) | StartError::Spawn(_) | StartError::OtherVersion { .. } => false,
    }
}

/// Ends the spare in `dir` if it waits to be claimed, and returns whether it has ended. One that accepts connections and
/// does not answer within a second is killed. A spare that is booting or being claimed goes on.
pub async fn dismiss(dir: &Path) -> bool {
    let ended = async {
        let stream = dir::connect(dir).await.ok()?;
        // Supervisors of every version understand this request.
        let mut stream: Framed<_, FrameCodec<Reply, Legacy>> = Framed::new(stream, FrameCodec::default());
        stream.send(Frame::Control(Legacy::Delete)).await.ok()?;
        matches!(stream.next().await, Some(Ok(Frame::Control(Reply::Done)))).then_some(())
    };
    match tokio::time::timeout(client::SPARE_LIMIT, ended).await {
        Ok(ended) => ended.is_some(),
        Err(_) => client::kill_silent_spare(dir).await,
    }
}

#[cfg(test)]
mod tests;
