//! Spares: VMs that are started before any process asks for them, and wait.
//!
//! ```text
//! <dir>/lock             held while spares are counted, made or cleared away
//!       <key>/<id>/      one spare: its files, its socket, its lock
//! ```
//!
//! The key is that of the template they started from, so that spares with the same key are interchangeable. The spare's
//! supervisor decides which claim is the first, so no two processes can get the same one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyro_machine::{HostPlatform, snapshot};

use crate::machine::chain;
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootInfo, BootStage, Client, EndRequest, Lifeline, OwnerLock, StartError, files};

/// Time limit for a spare to do what it is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const LOCK: &str = "lock";

/// Makes a waiting spare the VM of `spec`, whose lock is `lock`. `None`: the VM has a layer from an earlier start, or
/// no suitable spare of its kind exists; nothing has changed then.
///
/// # Errors
/// As [`start`](crate::start): the guest already was this VM when something went wrong.
pub async fn claim(spec: &LaunchSpec, lock: &OwnerLock) -> Option<Result<(Lifeline, BootInfo), StartError>> {
    if spec.dir.join(files::LAYER).exists() || !spec.spares.dir.exists() {
        return None;
    }
    let key = key(spec).await.ok()?;
    for dir in subdirectories(&spec.spares.dir.join(key)) {
        match crate::claim(&dir, spec.clone(), lock).await {
            Some(Ok(claimed)) => return Some(Ok(claimed)),
            Some(Err(error)) if is_harmless(&error, spec) => {
                tracing::warn!(%error, dir = %dir.display(), "a spare failed");
                // The spare may have been killed half-way.
                crate::server::clear_claimed(&spec.dir);
            }
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
    }
    None
}

/// Returns whether the spare failed before it became the VM, so that another start can take its place.
fn is_harmless(error: &StartError, spec: &LaunchSpec) -> bool {
    match error {
        StartError::Boot(failure) => failure.stage == BootStage::Identity,
        StartError::Lost => spec.dir.exists(),
        StartError::Ended(_) | StartError::Spawn(_) | StartError::OtherVersion { .. } => false,
    }
}

/// Starts spares of the kind of `spec` until as many wait as are wanted. Errors are only logged: nothing depends on a
/// spare.
pub(crate) async fn replenish(spec: LaunchSpec) {
    if spec.spares.wanted == 0 {
        return;
    }
    if let Err(reason) = try_replenish(&spec).await {
        tracing::warn!(reason, "no spare was started");
    }
}

async fn try_replenish(spec: &LaunchSpec) -> Result<(), String> {
    let dir = spec.spares.dir.join(key(spec).await?);
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    make_dir(&dir).map_err(failed)?;
    let lock_file = lock_file(&spec.spares.dir).map_err(failed)?;
    let locked = tokio::task::spawn_blocking(move || lock_file.lock().map(|()| lock_file)).await;
    let _counting = locked.map_err(|error| error.to_string())?.map_err(failed)?;
    clear_away(&spec.spares.dir);
    let missing = (spec.spares.wanted as usize).saturating_sub(subdirectories(&dir).len());
    let missing = missing.min((spec.spares.room as usize).saturating_sub(all(&spec.spares.dir).len()));
    for _ in 0..missing {
        let mut id = [0; 6];
        getrandom::fill(&mut id).map_err(|error| error.to_string())?;
        let vm_id = hex::encode(id);
        let spare_dir = dir.join(&vm_id);
        make_dir(&spare_dir).map_err(failed)?;
        let Some(owner) = OwnerLock::try_acquire(&spare_dir).map_err(failed)? else { continue };
        let idle_limit = Duration::from_secs(spec.spares.idle_seconds.into());
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + idle_limit;
        let spare = LaunchSpec {
            vm_id,
            dir: spare_dir.clone(),
            purpose: Purpose::Spare,
            is_new: true,
            expires_at: expires.as_secs_f64(),
            ..spec.clone()
        };
        // The same program with the same arguments: another supervisor.
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a supervisor starts its like with the arguments it has"
        )]
        let args: Vec<_> = std::env::args_os().skip(1).collect();
        if let Err(error) = crate::client::spawn(&program, &args, spare, &owner).await {
            let _ = fs::remove_dir_all(&spare_dir);
            return Err(error.to_string());
        }
    }
    Ok(())
}

/// Returns the key that interchangeable VMs share, whether they start from templates or not.
async fn key(spec: &LaunchSpec) -> Result<String, String> {
    let cache = spec.template_dir.as_deref().unwrap_or(&spec.spares.dir);
    snapshot::key(cache, &spec.subject(), &HostPlatform::new()).await.map_err(|error| chain(&error))
}

/// Ends spares of any kind, the oldest first, until at most `most` are left, and clears away what dead ones left
/// behind.
pub async fn trim(dir: &Path, most: usize) {
    if !dir.exists() {
        return;
    }
    // The lock holder is clearing away as well.
    if let Ok(counting) = lock_file(dir)
        && counting.try_lock().is_ok()
    {
        clear_away(dir);
    }
    let mut spares: Vec<_> = all(dir)
        .into_iter()
        .filter_map(|spare| Some((fs::metadata(&spare).ok()?.modified().ok()?, spare)))
        .collect();
    spares.sort();
    let mut surplus = spares.len().saturating_sub(most);
    for (_, spare) in spares {
        if surplus == 0 {
            break;
        }
        // One that is starting or being claimed cannot be reached; another must be ended in its place.
        if Client::new(spare).end(EndRequest::Delete, ANSWER_LIMIT).await.is_ok() {
            surplus -= 1;
        }
    }
}

/// Extends the wait of all waiting spares to at least `idle` from now.
pub async fn renew(dir: &Path, idle: Duration) {
    let expires_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + idle;
    let asked = all(dir).into_iter().map(|spare| async move {
        // One that is starting has its whole wait ahead of it, and one that is being claimed needs none.
        let _ = tokio::time::timeout(ANSWER_LIMIT, Client::new(spare).extend(expires_at.as_secs_f64())).await;
    });
    futures::future::join_all(asked).await;
}

/// Returns the directories of the spares of all kinds.
fn all(dir: &Path) -> Vec<PathBuf> {
    subdirectories(dir).iter().flat_map(|kind| subdirectories(kind)).collect()
}

/// Removes the directories of spares that no process holds. The caller has the lock, without which a spare that is
/// being made would look dead.
fn clear_away(dir: &Path) {
    for kind in subdirectories(dir) {
        for spare in subdirectories(&kind) {
            if !OwnerLock::is_held(&spare) {
                let _ = fs::remove_dir_all(&spare);
            }
        }
        // Fails if there are any left.
        let _ = fs::remove_dir(&kind);
    }
}

/// Opens the file whose lock is held while spares are made or cleared away.
fn lock_file(dir: &Path) -> std::io::Result<File> {
    File::create(dir.join(LOCK))
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
