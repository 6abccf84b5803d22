//! Ends a VM whatever state its processes are in, and waits until no process holds it. Nothing here polls or blocks a
//! thread: a process descriptor reports that a supervisor is gone, after which its lock is free.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use rustix::process::Signal;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::Framed;

use super::retry::Retry;
use super::{Client, ConnectError, Process, ask};
use crate::OwnerLock;
use crate::dir::{self, LockFile, Owner};
use crate::protocol::{Legacy, Reply, Request};

/// Time limit for a new supervisor to listen. One that does not listen by then has lost its socket.
const LISTEN_LIMIT: Duration = Duration::from_secs(2);
/// Time limit for a supervisor to exit after its last message.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How to end a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndRequest {
    /// The guest writes everything out; the directory stays.
    Stop,
    /// At once, and the directory is removed.
    Delete,
    /// As at the end of its lifetime.
    Expire,
}

/// Result of ending a VM.
#[derive(Debug)]
pub enum Ended {
    /// No process holds the VM, and none can until this is dropped. `None`: its directory is gone.
    Released(Option<OwnerLock>),
    /// It ended, and another process has taken it since, for instance to start it again.
    TakenAgain,
}

/// The VM could not be ended in time, or its end could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// A process that does not react holds it.
    #[error("timed out waiting for the process that holds the VM")]
    Held,
    /// Its lock cannot be opened.
    #[error("cannot lock the VM's directory")]
    Lock(#[source] io::Error),
}

impl Client {
    /// Ends the VM: asks its supervisor, or signals it if it cannot be asked, and waits until it is gone.
    ///
    /// # Errors
    /// [`EndError`].
    pub async fn end(&self, how: EndRequest, limit: Duration) -> Result<Ended, EndError> {
        self.release(Some(how), Instant::now() + limit).await
    }

    /// Waits until no process holds the VM. `None`: its directory is gone.
    ///
    /// # Errors
    /// [`EndError`].
    pub async fn released(&self, limit: Duration) -> Result<Option<OwnerLock>, EndError> {
        match self.release(None, Instant::now() + limit).await? {
            Ended::Released(lock) => Ok(lock),
            // No supervisor was asked to end, so none was waited for.
            Ended::TakenAgain => Err(EndError::Held),
        }
    }

    async fn release(&self, how: Option<EndRequest>, deadline: Instant) -> Result<Ended, EndError> {
        match LockFile::open(&self.dir) {
            Ok(mut lock) => self.release_by(how, deadline, || lock.try_lock()).await,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ended::Released(None)),
            Err(error) => Err(EndError::Lock(error)),
        }
    }

    async fn release_by(
        &self,
        how: Option<EndRequest>,
        deadline: Instant,
        mut try_lock: impl FnMut() -> io::Result<Option<OwnerLock>>,
    ) -> Result<Ended, EndError> {
        let began = Instant::now();
        let mut retry = Retry::in_dir(&self.dir);
        let mut has_ended = false;
        loop {
            match try_lock() {
                Ok(Some(lock)) => return Ok(Ended::Released(Some(lock))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ended::Released(None)),
                Err(error) => return Err(EndError::Lock(error)),
                Ok(None) if has_ended => return Ok(Ended::TakenAgain),
                Ok(None) => {}
            }
            if Instant::now() >= deadline {
                return Err(EndError::Held);
            }
            let step = async {
                match how {
                    None => self.gone().await,
                    Some(how) => self.end_once(how, began).await,
                }
            };
            match timeout_at(deadline, step).await {
                Ok(Some(true)) => has_ended = how.is_some(),
                Ok(Some(false)) => {}
                // The holder is not a supervisor, or not yet one that can be asked.
                Ok(None) => retry.wait(deadline).await,
                Err(_) => return Err(EndError::Held),
            }
        }
    }

    /// Waits for the end of the supervisor, if there is one.
    async fn gone(&self) -> Option<bool> {
        let process = match dir::connect(&self.dir).await {
            Ok(stream) => Process::behind(&stream).ok()?,
            Err(_) => Process::holding(&self.dir)?,
        };
        process.ended().await;
        Some(true)
    }

    /// Has the supervisor end the VM, and waits until it is gone. True if it ended because of this; `None` if there is
    /// no supervisor that could be asked.
    async fn end_once(&self, how: EndRequest, began: Instant) -> Option<bool> {
        match self.connect().await {
            Ok(mut connected) => {
                ask(&mut connected.stream, how.into()).await.ok()?;
                let answer = connected.stream.next().await;
                let process = connected.process.ok()?;
                let exited = timeout(EXIT_LIMIT, process.ended()).await.is_ok();
                Some(exited && matches!(answer, Some(Ok(Frame::Control(Reply::Done)))))
            }
            Err(ConnectError::OtherVersion { .. }) => self.end_legacy(how).await,
            Err(ConnectError::Unresponsive) => self.take_over(how).await,
            Err(ConnectError::Unreachable(_)) => {
                // A supervisor that has announced itself listened before that; a new one may be about to listen.
                let has_listened = Owner::of(&self.dir).is_some() || began.elapsed() > LISTEN_LIMIT;
                if has_listened { self.take_over(how).await } else { None }
            }
        }
    }

    /// Does the same for a supervisor of another version. All versions understand these requests.
    async fn end_legacy(&self, how: EndRequest) -> Option<bool> {
        let stream = dir::connect(&self.dir).await.ok()?;
        let process = Process::behind(&stream).ok()?;
        let mut stream: Framed<_, FrameCodec<Reply, Legacy>> = Framed::new(stream, FrameCodec::default());
        let asked = stream.send(Frame::Control(how.into())).await;
        match asked {
            Ok(()) => match stream.next().await {
                Some(Ok(Frame::Control(Reply::Done))) => {}
                // It is ending for another reason, or does not do what it was asked.
                _ if timeout(EXIT_LIMIT, process.ended()).await.is_ok() => {}
                _ => return self.take_over(how).await,
            },
            Err(_) => return self.take_over(how).await,
        }
        timeout(EXIT_LIMIT, process.ended()).await.ok().map(|()| true)
    }

    /// Ends a supervisor that cannot be asked, by signals. It ends its VM in order after the first.
    async fn take_over(&self, how: EndRequest) -> Option<bool> {
        let dir = self.dir.clone();
        let process = Process::holding(&dir)?;
        match how {
            EndRequest::Delete => process.signal(Signal::KILL),
            EndRequest::Stop | EndRequest::Expire => process.signal(Signal::TERM),
        }
        process.ended().await;
        Some(true)
    }
}

impl From<EndRequest> for Request {
    fn from(how: EndRequest) -> Self {
        match how {
            EndRequest::Stop => Self::Stop,
            EndRequest::Delete => Self::Delete,
            EndRequest::Expire => Self::Expire,
        }
    }
}

impl From<EndRequest> for Legacy {
    fn from(how: EndRequest) -> Self {
        match how {
            EndRequest::Stop => Self::Stop,
            EndRequest::Delete => Self::Delete,
            EndRequest::Expire => Self::Expire,
        }
    }
}

#[cfg(test)]
mod tests;
