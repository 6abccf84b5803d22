//! The warm pool: spares, VMs that are started before a caller asks for one, and wait to be claimed.
//!
//! ```text
//! spares/lock          held while spares are counted, reserved, or cleared away
//!        <key>/<id>/   one spare: its files, its socket, its lock
//! ```
//!
//! Spares with the same key can take each other's place. No process owns the pool: each spare has its own supervisor,
//! and any process that uses spares counts them and starts what is missing.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use pyro_machine::file_lock::unlocked;
use pyro_machine::snapshot::SnapshotError;
use pyro_supervisor::spares::{self, Claim};
use pyro_supervisor::{Client, LaunchSpec, MountSockets, OwnerLock, StartError, files, remove_dir};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::supervise::SupervisorCommand;
use crate::{Error, VmId, state_dir};

/// Time limit for all spares to take a new lifetime.
const RENEW_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for other processes to count spares, which takes them less than a millisecond.
const COUNT_LIMIT: Duration = Duration::from_secs(2);
const LOCK: &str = "lock";

/// How many spares there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// How many of one kind.
    pub(crate) of_kind: u32,
    /// Maximum number of all kinds together.
    pub(crate) of_all: u32,
    /// How long a new one waits.
    pub(crate) idle: Duration,
}

/// Why there are fewer spares than there should be. Nothing depends on a spare, so callers only log it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("the kind of the VM cannot be determined")]
    Kind(#[source] SnapshotError),
    #[error("cannot use {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("timed out waiting for another process to count the spares")]
    Locked,
    #[error(transparent)]
    Id(Error),
    #[error("a background operation was lost")]
    Background(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// The spares of one state directory.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    dir: PathBuf,
}

impl Pool {
    /// Returns the pool of this state directory. Does no I/O.
    pub(crate) fn new(base_dir: &Path) -> Self {
        Self { dir: state_dir::spares(base_dir) }
    }

    /// Makes a spare the VM of `spec`, whose lock is `lock`. It is not granted if the VM has a disk from an earlier start, or
    /// no spare of its kind can be claimed. After [`Claim::Failed`] there may be other spares.
    pub(crate) async fn claim(&self, spec: &LaunchSpec, lock: &OwnerLock) -> Claim {
        if spec.dir.join(files::LAYER).exists() || !self.dir.exists() {
            return Claim::NotGranted;
        }
        let Ok(key) = self.key(spec).await else { return Claim::NotGranted };
        for spare in subdirectories(&self.dir.join(key)) {
            match spares::claim(&spare, spec, lock).await {
                Claim::NotGranted => {}
                claim => return claim,
            }
        }
        Claim::NotGranted
    }

    /// Starts spares for VMs like `model` until there are as many as `target` says. Does not wait until they are up.
    ///
    /// Other processes that do the same at that time are waited for until `stop_waiting` is cancelled: they may want fewer, or
    /// spares of another kind. Dropping the future keeps the spares that have been started.
    ///
    /// # Errors
    /// [`PoolError`]. Spares that have been started by then stay.
    pub(crate) async fn fill(
        &self,
        supervisor: &SupervisorCommand,
        model: &LaunchSpec,
        target: Target,
        stop_waiting: &CancellationToken,
    ) -> Result<(), PoolError> {
        let key = self.key(model).await.map_err(PoolError::Kind)?;
        fill(self.reserve(&key, target, stop_waiting).await?, supervisor, model, target.idle).await
    }

    /// Ends spares of any kind, the oldest first, until at most `most` are left. Those that cannot be ended now,
    /// because they are booting or being claimed, are left alone, and others are ended in their place.
    pub(crate) async fn trim(&self, most: usize) {
        if !self.dir.exists() {
            return;
        }
        // Another holder of the lock is clearing away as well.
        if let Ok(Some(_counting)) = self.try_lock() {
            self.clear_away();
        }
        let mut spares: Vec<_> = self
            .all()
            .into_iter()
            .filter_map(|spare| Some((fs::metadata(&spare).ok()?.modified().ok()?, spare)))
            .collect();
        spares.sort();
        let mut surplus = spares.len().saturating_sub(most);
        for (_, spare) in spares {
            if surplus == 0 {
                break;
            }
            if spares::dismiss(&spare).await {
                surplus -= 1;
            }
        }
    }

    /// Extends the wait of all waiting spares to at least `idle` from now.
    pub(crate) async fn renew(&self, idle: Duration) {
        let expires_at = now() + idle.as_secs_f64();
        let renewals = self.all().into_iter().map(async |spare| {
            // One that is starting has its whole wait ahead of it, and one that is being claimed needs none.
            let _ = timeout(RENEW_LIMIT, Client::new(spare).extend(expires_at)).await;
        });
        join_all(renewals).await;
    }

    async fn key(&self, spec: &LaunchSpec) -> Result<String, SnapshotError> {
        let key = spares::key(spec, spec.template_dir.as_deref().unwrap_or(&self.dir)).await?;
        // A spare that was started without that requirement may not meet it.
        Ok(if spec.requires_full_confinement { format!("{key}-confined") } else { key })
    }

    /// Reserves places for the spares of one kind that are missing.
    async fn reserve(
        &self,
        key: &str,
        target: Target,
        stop_waiting: &CancellationToken,
    ) -> Result<Vec<Place>, PoolError> {
        let reserve = async {
            loop {
                let (pool, key) = (self.clone(), key.to_owned());
                let reserved = tokio::task::spawn_blocking(move || pool.try_reserve(&key, target)).await?;
                if let Some(places) = reserved? {
                    return Ok(places);
                }
                let lock = self.dir.join(LOCK);
                let waited =
                    stop_waiting.run_until_cancelled(unlocked(&lock)).await.ok_or(PoolError::Locked)?;
                waited.map_err(|source| unusable(&lock, source))?;
            }
        };
        timeout(COUNT_LIMIT, reserve).await.map_err(|_| PoolError::Locked)?
    }

    /// Does the same; `None` if another process has locked the pool.
    fn try_reserve(&self, key: &str, target: Target) -> Result<Option<Vec<Place>>, PoolError> {
        let kind = self.dir.join(key);
        make_dir(&self.dir)?;
        let Some(_counting) = self.try_lock().map_err(|source| unusable(&self.dir, source))? else {
            return Ok(None);
        };
        self.clear_away();
        let missing = (target.of_kind as usize).saturating_sub(subdirectories(&kind).len());
        let free = (target.of_all as usize).saturating_sub(self.all().len());
        (0..missing.min(free)).map(|_| Place::reserve(&kind)).collect::<Result<_, _>>().map(Some)
    }

    /// Locks the pool; `None` if another process has.
    fn try_lock(&self) -> io::Result<Option<File>> {
        let file = File::create(self.dir.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns the directories of the spares of all kinds.
    fn all(&self) -> Vec<PathBuf> {
        subdirectories(&self.dir).iter().flat_map(|kind| subdirectories(kind)).collect()
    }

    /// Removes the directories of spares that no process holds. The caller has the lock, without which a place that is
    /// being reserved would look dead.
    fn clear_away(&self) {
        for kind in subdirectories(&self.dir) {
            for spare in subdirectories(&kind) {
                if !OwnerLock::is_held(&spare) {
                    let _ = remove_dir(&spare);
                }
            }
            // Fails if there are any left.
            let _ = fs::remove_dir(&kind);
        }
    }
}

/// Starts spares like `model` in these places.
async fn fill(
    places: Vec<Place>,
    supervisor: &SupervisorCommand,
    model: &LaunchSpec,
    idle: Duration,
) -> Result<(), PoolError> {
    for place in places {
        place.fill(supervisor, model, idle).await?;
    }
    Ok(())
}

/// A directory for a spare that is not started yet. To other processes it counts as a spare. Dropping it removes it.
#[derive(Debug)]
struct Place {
    id: VmId,
    dir: PathBuf,
    lock: OwnerLock,
    is_filled: bool,
}

impl Place {
    /// The caller has the pool's lock.
    fn reserve(kind: &Path) -> Result<Self, PoolError> {
        let id = VmId::random().map_err(PoolError::Id)?;
        let dir = kind.join(id.as_str());
        make_dir(&dir)?;
        let lock = OwnerLock::try_acquire(&dir)
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::ResourceBusy.into()))
            .map_err(|source| unusable(&dir, source))?;
        Ok(Self { id, dir, lock, is_filled: false })
    }

    /// Starts a spare like `model` here.
    async fn fill(
        mut self,
        supervisor: &SupervisorCommand,
        model: &LaunchSpec,
        idle: Duration,
    ) -> Result<(), PoolError> {
        let spec = LaunchSpec {
            vm_id: self.id.to_string(),
            dir: self.dir.clone(),
            expires_at: now() + idle.as_secs_f64(),
            ports: Vec::new(),
            mounts: Vec::new(),
            mount_sockets: MountSockets::default(),
            ..model.clone()
        };
        spares::start(&supervisor.program, &supervisor.args(), spec, &self.lock).await?;
        self.is_filled = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            let _ = remove_dir(&self.dir);
        }
    }
}

fn unusable(path: &Path, source: io::Error) -> PoolError {
    PoolError::Directory { path: path.to_owned(), source }
}

fn make_dir(dir: &Path) -> Result<(), PoolError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| unusable(dir, source))
}

/// Returns the directories in `dir`. Nothing depends on a spare, so a directory that cannot be read has none.
fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = state_dir::entries(dir).unwrap_or_else(|error| {
        tracing::warn!(dir = %dir.display(), %error, "spares cannot be listed");
        Vec::new()
    });
    entries.iter().filter(|entry| state_dir::is_dir(entry)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests;
