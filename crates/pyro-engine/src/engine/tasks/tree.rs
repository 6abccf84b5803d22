//! The tree of a task's files: looks at it, changes it, and watches it.

use std::future::pending;

use futures::FutureExt;
use futures::future::FusedFuture;
use pyro_supervisor::{Client, CopyError, List, MakeDirectory, Move, Remove, Stat, Watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::files::{check_path, copy_error};
use crate::engine::{Engine, unless_cancelled};
use crate::{
    Error, ErrorKind, Event, Events, FileChange, FileMove, FileRemoval, FileWatch, Hint, Listing,
    TaskFileChanged, TaskFileChanges, TaskFileInfo, TaskFileList, TaskFileMoved, VmId, WatchEnd, WatchLimits,
    convert,
};

impl Engine {
    /// Describes a file or directory of a task. A symbolic link is not followed.
    ///
    /// # Errors
    /// `FileFailed` if it does not exist or cannot be reached; otherwise as [`Engine::copy_from_task`].
    pub async fn stat_task_file(
        &self,
        task_id: &str,
        path: String,
        cancel: &CancellationToken,
    ) -> Result<TaskFileInfo, Error> {
        let (task_id, guest) = self.guest_for(task_id, [&path]).await?;
        let file = unless_lost(&task_id, cancel, Hint::Retry, guest.stat_file(Stat { path })).await?;
        Ok(TaskFileInfo { task_id, file: convert::file_info(file) })
    }

    /// Lists a directory of a task.
    ///
    /// # Errors
    /// As [`Engine::stat_task_file`]; `InvalidInput` if `max_entries` is beyond its limit.
    pub async fn list_task_files(
        &self,
        task_id: &str,
        listing: Listing,
        cancel: &CancellationToken,
    ) -> Result<TaskFileList, Error> {
        listing.check()?;
        let Listing { path, recursive, max_entries } = listing;
        let (task_id, guest) = self.guest_for(task_id, [&path]).await?;
        let list = List { path: path.clone(), recursive, max_entries };
        let (entries, truncated) = unless_lost(&task_id, cancel, Hint::Retry, guest.list_files(list)).await?;
        let entries = entries.into_iter().map(convert::file_info).collect();
        Ok(TaskFileList { task_id, path, entries, truncated })
    }

    /// Moves a file or a directory of a task.
    ///
    /// # Errors
    /// `FileFailed` if it cannot be moved, or something has the new path and `replace` is false; otherwise as
    /// [`Engine::copy_to_task`].
    pub async fn move_task_file(
        &self,
        task_id: &str,
        FileMove { source, destination, replace }: FileMove,
        cancel: &CancellationToken,
    ) -> Result<TaskFileMoved, Error> {
        let (task_id, guest) = self.guest_for(task_id, [&source, &destination]).await?;
        let change = Move { from: source.clone(), to: destination.clone(), replace };
        unless_lost(&task_id, cancel, Hint::MayHaveChanged, guest.change_files(change)).await?;
        Ok(TaskFileMoved { task_id, source, destination })
    }

    /// Removes a file or a directory of a task.
    ///
    /// # Errors
    /// `FileFailed` if it does not exist, is a directory that is not empty and `recursive` is false, or the guest needs it;
    /// otherwise as [`Engine::copy_to_task`].
    pub async fn remove_task_file(
        &self,
        task_id: &str,
        FileRemoval { path, recursive }: FileRemoval,
        cancel: &CancellationToken,
    ) -> Result<TaskFileChanged, Error> {
        let (task_id, guest) = self.guest_for(task_id, [&path]).await?;
        let change = Remove { path: path.clone(), recursive };
        unless_lost(&task_id, cancel, Hint::MayHaveChanged, guest.change_files(change)).await?;
        Ok(TaskFileChanged { task_id, path })
    }

    /// Makes a directory in a task, with its missing parents.
    ///
    /// # Errors
    /// `FileFailed` if something else has that path; otherwise as [`Engine::copy_to_task`].
    pub async fn make_task_directory(
        &self,
        task_id: &str,
        path: String,
        cancel: &CancellationToken,
    ) -> Result<TaskFileChanged, Error> {
        let (task_id, guest) = self.guest_for(task_id, [&path]).await?;
        unless_lost(
            &task_id,
            cancel,
            Hint::MayHaveChanged,
            guest.change_files(MakeDirectory { path: path.clone() }),
        )
        .await?;
        Ok(TaskFileChanged { task_id, path })
    }

    /// Watches a file or a directory of a task, and sends what changes as events, after [`Event::Watching`].
    ///
    /// # Errors
    /// `FileFailed` if it does not exist or has too many directories; `InvalidInput` if a limit is beyond its own; otherwise as
    /// [`Engine::copy_from_task`].
    pub async fn watch_task_files(
        &self,
        task_id: &str,
        watch: FileWatch,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<TaskFileChanges, Error> {
        let limits = watch.limits()?;
        let FileWatch { path, recursive, .. } = watch;
        let (task_id, guest) = self.guest_for(task_id, [&path]).await?;
        let watched = collect(&guest, Watch { path: path.clone(), recursive }, limits, events);
        let (changes, reason) = unless_lost(&task_id, cancel, Hint::Retry, watched).await?;
        Ok(TaskFileChanges { task_id, path, changes, reason })
    }

    async fn guest_for<const N: usize>(
        &self,
        task_id: &str,
        paths: [&String; N],
    ) -> Result<(VmId, Client), Error> {
        paths.into_iter().try_for_each(|path| check_path(path))?;
        self.guest_of_task(task_id).await
    }
}

/// Waits for the guest. The hint is for a guest that is lost meanwhile.
async fn unless_lost<T>(
    task_id: &VmId,
    cancel: &CancellationToken,
    hint: Hint,
    asked: impl Future<Output = Result<T, CopyError>>,
) -> Result<T, Error> {
    unless_cancelled(cancel, async { asked.await.map_err(|error| not_answered(task_id, error, hint)) }).await
}

/// As [`copy_error`], of what is not a copy.
fn not_answered(id: &VmId, error: CopyError, hint: Hint) -> Error {
    let (kind, message, hint) = match error {
        CopyError::Lost => (ErrorKind::OutcomeUnknown, format!("connection to task {id} was lost"), hint),
        CopyError::Stalled => {
            (ErrorKind::OutcomeUnknown, format!("the guest of task {id} stopped responding"), hint)
        }
        CopyError::Refused { cause } => (ErrorKind::NotDelivered, cause, Hint::NothingWasDone),
        error => return copy_error(id, error),
    };
    Error::new(kind, message).hint(hint)
}

/// Maximum size of the paths of the changes that one watch returns, in bytes.
const MAX_CHANGED_BYTES: usize = 16 << 20;

/// Watches until a limit is reached. Without a maximum of changes, they are sent and not returned.
async fn collect(
    guest: &Client,
    watch: Watch,
    limits: WatchLimits,
    events: &Events,
) -> Result<(Vec<FileChange>, WatchEnd), CopyError> {
    let (sender, mut received) = tokio::sync::mpsc::channel(1);
    let watching = guest
        .watch_files(watch, async move |change| {
            // The receiver is dropped only together with this future.
            let _ = sender.send(change).await;
        })
        .fuse();
    tokio::pin!(watching);
    let end = Instant::now() + limits.time;
    let mut idle_end = None;
    let (mut changes, mut bytes) = (Vec::new(), 0);
    loop {
        let idle = async {
            match idle_end {
                Some(end) => sleep_until(end).await,
                None => pending().await,
            }
        };
        let change = tokio::select! {
            biased;
            change = received.recv() => change,
            ended = &mut watching, if !watching.is_terminated() => {
                ended?;
                continue;
            }
            () = idle => return Ok((changes, WatchEnd::Idle)),
            () = sleep_until(end) => return Ok((changes, WatchEnd::Time)),
        };
        // The channel is closed after the last change.
        let Some(change) = change else { return Ok((changes, WatchEnd::Gone)) };
        let Some(change) = convert::file_change(change) else {
            events.send(Event::Watching).await;
            continue;
        };
        idle_end = limits.idle.map(|idle| Instant::now() + idle);
        events.send(Event::FileChange(change.clone())).await;
        if let Some(maximum) = limits.changes {
            bytes += change.path.len() + change.old_path.as_ref().map_or(0, String::len);
            changes.push(change);
            if changes.len() as u64 >= maximum || bytes >= MAX_CHANGED_BYTES {
                return Ok((changes, WatchEnd::Full));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_guest_is_not_described_as_a_copy() {
        let id = VmId::parse("9775b3af1eeb").unwrap();
        for (error, kind, hint) in [
            (CopyError::Lost, ErrorKind::OutcomeUnknown, Hint::MayHaveChanged),
            (CopyError::Stalled, ErrorKind::OutcomeUnknown, Hint::MayHaveChanged),
            (CopyError::Refused { cause: "full".to_owned() }, ErrorKind::NotDelivered, Hint::NothingWasDone),
        ] {
            let error = not_answered(&id, error, Hint::MayHaveChanged);
            let text = format!("{error:?}");
            assert!(!text.contains("cop") && !text.contains("60 seconds"), "{text}");
            assert_eq!((error.kind, error.hints), (kind, vec![hint]));
        }
    }
}
