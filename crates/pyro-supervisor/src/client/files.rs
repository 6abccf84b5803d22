//! What files in a guest are, changes to its tree, and reports of what changes there.

use std::time::Duration;

use futures::StreamExt;
use pyro_wire::{
    Call, ChangeReply, FileChange, FileInfo, Frame, LineDecoder, LineError, List, ListReply, OutputStream,
    Stat, StatReply, Watch, WatchReply,
};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::copy::{CopyError, not_delivered};
use super::{Client, WATCH_PROBE_AFTER};
use crate::mux::{CallStream, call};
use crate::protocol::COPY_STEP_LIMIT;

/// Maximum size of the paths of a listing together, in bytes.
const MAX_LISTED_BYTES: usize = 16 << 20;
/// Time limit for a guest to change its tree: a directory with many files is removed file by file.
const CHANGE_LIMIT: Duration = Duration::from_secs(600);

impl Client {
    /// Describes one file of the guest.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn stat_file(&self, stat: Stat) -> Result<FileInfo, CopyError> {
        match self.ask_guest(stat, COPY_STEP_LIMIT).await? {
            StatReply::Found(info) => Ok(info),
            StatReply::Failed(failure) => Err(CopyError::Guest { cause: failure.cause }),
        }
    }

    /// Changes the tree of the guest. A removal of many files ends when the future is dropped, and after ten minutes.
    ///
    /// # Errors
    /// [`CopyError`]. The change may have been made if the guest was lost, and of a tree to remove, part may be gone.
    pub async fn change_files<C: Call<Reply = ChangeReply>>(&self, change: C) -> Result<(), CopyError> {
        match self.ask_guest(change, CHANGE_LIMIT).await? {
            ChangeReply::Done => Ok(()),
            ChangeReply::Failed(failure) => Err(CopyError::Guest { cause: failure.cause }),
        }
    }

    /// Lists a directory of the guest. Returns its entries, and whether there are more: than were asked for, or than those whose paths
    /// have 16 MiB.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn list_files(&self, list: List) -> Result<(Vec<FileInfo>, bool), CopyError> {
        let maximum = usize::try_from(list.max_entries).unwrap_or(usize::MAX);
        let mut lines = Lines::new(self, list).await?;
        let mut entries = Vec::new();
        let mut left = MAX_LISTED_BYTES;
        let listed = async {
            loop {
                match timeout(COPY_STEP_LIMIT, lines.next()).await.map_err(|_| CopyError::Stalled)?? {
                    Next::Values(values) => {
                        if !extend(&mut entries, values, &mut left) {
                            return Ok(true);
                        }
                    }
                    Next::Reply(ListReply::Listed { truncated }) => return Ok(truncated),
                    Next::Reply(ListReply::Failed(failure)) => {
                        return Err(CopyError::Guest { cause: failure.cause });
                    }
                }
                if entries.len() > maximum {
                    return Err(CopyError::Unexpected);
                }
            }
        };
        let truncated =
            self.while_responsive(WATCH_PROBE_AFTER, listed).await.unwrap_or(Err(CopyError::Lost))?;
        Ok((entries, truncated))
    }

    /// Gives `on_change` what changes in a directory of the guest, first [`FileChange::Watching`]. Returns when the directory is
    /// gone. Dropping the future ends the watch.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn watch_files(
        &self,
        watch: Watch,
        mut on_change: impl AsyncFnMut(FileChange),
    ) -> Result<(), CopyError> {
        let mut lines = Lines::new(self, watch).await?;
        let watched = async {
            loop {
                match lines.next().await? {
                    Next::Values(values) => {
                        for change in values {
                            on_change(change).await;
                        }
                    }
                    Next::Reply(WatchReply::Gone) => return Ok(()),
                    Next::Reply(WatchReply::Failed(failure)) => {
                        return Err(CopyError::Guest { cause: failure.cause });
                    }
                }
            }
        };
        self.while_responsive(WATCH_PROBE_AFTER, watched).await.unwrap_or(Err(CopyError::Lost))
    }

    /// Asks the guest something to which nothing but a reply comes.
    async fn ask_guest<C: Call>(&self, request: C, limit: Duration) -> Result<C::Reply, CopyError> {
        let mut stream = call(self.guest_stream().await?, request).await.map_err(not_delivered)?;
        let answer = async {
            match timeout(limit, stream.next()).await {
                Ok(Some(Ok(Frame::Control(reply)))) => Ok(reply),
                Ok(Some(Ok(Frame::Output(..)))) => Err(CopyError::Unexpected),
                Ok(Some(Err(_)) | None) => Err(CopyError::Lost),
                Err(_) => Err(CopyError::Stalled),
            }
        };
        self.while_responsive(WATCH_PROBE_AFTER, answer).await.unwrap_or(Err(CopyError::Lost))
    }
}

/// Adds entries as long as there are bytes left for their paths. Returns whether all were added.
fn extend(entries: &mut Vec<FileInfo>, more: Vec<FileInfo>, left: &mut usize) -> bool {
    for entry in more {
        let bytes = entry.path.len() + entry.target.as_ref().map_or(0, String::len);
        match left.checked_sub(bytes) {
            Some(rest) => *left = rest,
            None => return false,
        }
        entries.push(entry);
    }
    true
}

/// The lines that answer a request, and then the reply.
struct Lines<C: Call> {
    stream: CallStream<UnixStream, C>,
    decoder: LineDecoder,
}

enum Next<T, R> {
    Values(Vec<T>),
    Reply(R),
}

impl<C: Call> Lines<C> {
    async fn new(client: &Client, request: C) -> Result<Self, CopyError> {
        let stream = call(client.guest_stream().await?, request).await.map_err(not_delivered)?;
        Ok(Self { stream, decoder: LineDecoder::default() })
    }

    async fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<Next<T, C::Reply>, CopyError> {
        match self.stream.next().await {
            Some(Ok(Frame::Output(OutputStream::Stdout, piece))) => {
                self.decoder.take(&piece).map(Next::Values).map_err(|_: LineError| CopyError::Unexpected)
            }
            Some(Ok(Frame::Control(reply))) => Ok(Next::Reply(reply)),
            Some(Ok(Frame::Output(OutputStream::Stderr, _))) => Err(CopyError::Unexpected),
            Some(Err(_)) | None => Err(CopyError::Lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use pyro_wire::FileKind;

    use super::*;

    #[test]
    fn the_paths_of_a_listing_are_bounded_together() {
        let entry = |path: usize, target: Option<usize>| FileInfo {
            path: "p".repeat(path),
            kind: FileKind::File,
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            modified_ms: 0,
            target: target.map(|bytes| "t".repeat(bytes)),
        };
        let (mut entries, mut left) = (Vec::new(), 10);
        assert!(extend(&mut entries, vec![entry(4, None), entry(1, Some(4))], &mut left));
        assert!(!extend(&mut entries, vec![entry(1, None), entry(1, None)], &mut left));
        assert_eq!((entries.len(), left), (3, 0));
    }
}
