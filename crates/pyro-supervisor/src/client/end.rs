//! Ends a VM whatever state its processes are in, and waits until no process holds it. Nothing here blocks a thread: a
//! process descriptor reports that a supervisor is gone, after which its lock is free. No event reports that a process
//! is frozen, so a supervisor that is silent is asked whether it responds to anything; one that a signal has stopped is not
//! asked.

use std::io;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_machine::file_lock::{LOOK_AGAIN, Retry};
use pyro_wire::{Frame, FrameCodec};
use rustix::process::Signal;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::Framed;

use super::{ANSWER_LIMIT, Client, ConnectError, EXIT_LIMIT, PROBE_AFTER, Process, ask};
use crate::OwnerLock;
use crate::dir::{self, LockFile, Owner};
use crate::protocol::{Legacy, Reply, Request};

/// Time limit for a new supervisor to listen. One that does not listen by then has lost its socket.
const LISTEN_LIMIT: Duration = Duration::from_secs(2);
/// Time limit for a supervisor that was continued to take a request, before it is signalled.
const CONTINUE_LIMIT: Duration = Duration::from_secs(3);
/// Time that is kept for killing a supervisor, of the time that is left.
const KILL_RESERVE: Duration = Duration::from_secs(3);

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
    /// The same, but its supervisor did not respond and was killed: the guest may not have written everything to its
    /// disk, and the end is not recorded.
    Killed(OwnerLock),
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
    /// Ends the VM: asks its supervisor, or signals it if it does not respond, and waits until it is gone.
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
            Ended::Killed(lock) => Ok(Some(lock)),
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
        let mut was_killed = false;
        // When a lock that is still held means that another process has taken the VM. One that only checks whether it
        // is held holds it for an instant.
        let mut taken_again = None;
        loop {
            match try_lock() {
                Ok(Some(lock)) if was_killed => return Ok(Ended::Killed(lock)),
                Ok(Some(lock)) => return Ok(Ended::Released(Some(lock))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ended::Released(None)),
                Err(error) => return Err(EndError::Lock(error)),
                Ok(None) => {}
            }
            let now = Instant::now();
            match taken_again {
                Some(at) if now >= at => return Ok(Ended::TakenAgain),
                _ if now >= deadline => return Err(EndError::Held),
                Some(at) => {
                    retry.wait(deadline.min(at)).await;
                    continue;
                }
                None => {}
            }
            let step = async {
                match how {
                    None => self.gone().await,
                    Some(how) => self.end_once(how, began, deadline).await,
                }
            };
            match timeout_at(deadline, step).await {
                Ok(step @ (Step::Ended | Step::Killed)) => {
                    was_killed = step == Step::Killed;
                    taken_again = Some(Instant::now() + LOOK_AGAIN);
                }
                Ok(Step::Gone) => {}
                Ok(Step::NoSupervisor) => retry.wait(deadline).await,
                Err(_) => return Err(EndError::Held),
            }
        }
    }

    /// Waits for the end of the supervisor, if there is one.
    async fn gone(&self) -> Step {
        let process = match dir::connect(&self.dir).await {
            Ok(stream) => Process::behind(&stream).ok(),
            Err(_) => Process::holding(&self.dir),
        };
        let Some(process) = process else { return Step::NoSupervisor };
        process.ended().await;
        Step::Gone
    }

    /// Has the supervisor end the VM, and waits until it is gone.
    async fn end_once(&self, how: EndRequest, began: Instant, deadline: Instant) -> Step {
        // The kernel accepts connections for it, but it would not answer.
        if Process::stopped(&self.dir).is_some() {
            return self.end_by_signal(how, deadline).await;
        }
        match self.connect().await {
            Ok(mut connected) => {
                match ask(&mut connected.stream, how.into()).await {
                    Ok(()) => {}
                    Err(ConnectError::Unresponsive) => return self.end_by_signal(how, deadline).await,
                    Err(_) => return Step::NoSupervisor,
                }
                let Some(answer) = self.while_responsive(PROBE_AFTER, connected.stream.next()).await else {
                    return self.end_by_signal(how, deadline).await;
                };
                let Ok(process) = connected.process else { return Step::NoSupervisor };
                let has_exited = timeout(EXIT_LIMIT, process.ended()).await.is_ok();
                match answer {
                    Some(Ok(Frame::Control(Reply::Done))) if has_exited => Step::Ended,
                    _ => Step::Gone,
                }
            }
            Err(ConnectError::OtherVersion { .. }) => self.end_legacy(how, deadline).await,
            Err(ConnectError::Unresponsive) => self.end_by_signal(how, deadline).await,
            Err(ConnectError::Unreachable(_)) => {
                // A supervisor that has announced itself listened before that; a new one may be about to listen.
                let has_listened = Owner::of(&self.dir).is_some() || began.elapsed() > LISTEN_LIMIT;
                if has_listened { self.end_by_signal(how, deadline).await } else { Step::NoSupervisor }
            }
        }
    }

    /// Does the same for a supervisor of another version. All versions understand these requests.
    async fn end_legacy(&self, how: EndRequest, deadline: Instant) -> Step {
        let Ok(stream) = dir::connect(&self.dir).await else { return Step::NoSupervisor };
        let Ok(process) = Process::behind(&stream) else { return Step::NoSupervisor };
        let mut stream: Framed<_, FrameCodec<Reply, Legacy>> = Framed::new(stream, FrameCodec::default());
        let answer = async {
            stream.send(Frame::Control(how.into())).await.ok()?;
            stream.next().await
        };
        let answer = match how {
            // It has nothing to wait for.
            EndRequest::Delete => timeout(ANSWER_LIMIT, answer).await.ok().flatten(),
            EndRequest::Stop | EndRequest::Expire => answer.await,
        };
        let has_exited = timeout(EXIT_LIMIT, process.ended()).await.is_ok();
        match answer {
            _ if has_exited => Step::Ended,
            Some(Ok(Frame::Control(Reply::Done))) => Step::NoSupervisor,
            // It does not do what it was asked.
            _ => self.end_by_signal(how, deadline).await,
        }
    }

    /// Ends a supervisor that cannot be asked, by signals. To end its VM in order, it has all of the time that is left,
    /// except [`KILL_RESERVE`].
    async fn end_by_signal(&self, how: EndRequest, deadline: Instant) -> Step {
        let Some(process) = Process::holding(&self.dir) else { return Step::NoSupervisor };
        if how != EndRequest::Delete {
            let patience = deadline.saturating_duration_since(Instant::now()).saturating_sub(KILL_RESERVE);
            if timeout(patience, self.end_in_order(how, &process)).await.is_ok() {
                return Step::Ended;
            }
        }
        // The kernel kills the VMM with its supervisor.
        process.signal(Signal::KILL);
        process.ended().await;
        if how == EndRequest::Delete { Step::Ended } else { Step::Killed }
    }

    /// Has a supervisor that did not respond end its VM in order. One that was only stopped by a signal is asked, so that it
    /// records the end that its user requested; any other is terminated.
    async fn end_in_order(&self, how: EndRequest, process: &Process) {
        process.signal(Signal::CONT);
        let request = async {
            match self.connect().await {
                Ok(mut connected) => {
                    ask(&mut connected.stream, how.into()).await.ok()?;
                    Some(connected.stream.into_inner())
                }
                Err(ConnectError::OtherVersion { .. }) => {
                    let stream = dir::connect(&self.dir).await.ok()?;
                    let mut stream: Framed<_, FrameCodec<Reply, Legacy>> =
                        Framed::new(stream, FrameCodec::default());
                    stream.send(Frame::Control(how.into())).await.ok()?;
                    Some(stream.into_inner())
                }
                Err(ConnectError::Unresponsive | ConnectError::Unreachable(_)) => None,
            }
        };
        let asked = timeout(CONTINUE_LIMIT, request).await.ok().flatten();
        if asked.is_none() {
            process.signal(Signal::TERM);
        }
        process.ended().await;
    }
}

/// What came of one attempt to end a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It ended because of this.
    Ended,
    /// Its supervisor did not respond and was killed.
    Killed,
    /// Its supervisor was ending it already, or is gone.
    Gone,
    /// The holder of the lock is not a supervisor, or not yet one that can be asked.
    NoSupervisor,
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
