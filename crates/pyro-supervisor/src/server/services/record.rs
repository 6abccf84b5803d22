//! Records what becomes of a service, in order, before it is reported.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::dir;
use crate::server::Store;
use crate::service::ServiceStatus;

/// Pause after the store has failed. It doubles each time, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Pauses between attempts to use a store that fails.
pub(super) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// Waits for the next attempt. Returns whether one makes sense: not if `end` is done.
    pub(super) async fn wait(&mut self, end: impl Future<Output = ()>) -> bool {
        let pause = self.0;
        self.0 = MAX_PAUSE.min(pause * 2);
        timeout(pause, end).await.is_err()
    }
}

/// What one start of a service writes to its record, and when it must not any more.
#[derive(Default)]
pub(super) struct Turn {
    taken: Mutex<()>,
    /// Cancelled when the record is that of a later start, or removed.
    pub(super) superseded: CancellationToken,
    /// Why the latest status is not recorded.
    pub(super) failure: RefCell<Option<String>>,
}

impl Turn {
    /// Keeps this start from writing to the record.
    pub(super) async fn take(&self) -> MutexGuard<'_, ()> {
        self.taken.lock().await
    }
}

/// Writes the status of one service to the store.
pub(super) struct Recorder<S> {
    pub(super) store: Rc<S>,
    pub(super) vm_id: String,
    pub(super) name: String,
    pub(super) turn: Rc<Turn>,
    /// Cancelled when the VM ends: a status that is not recorded by then never will be.
    pub(super) ending: CancellationToken,
}

impl<S: Store> Recorder<S> {
    /// Records each status until the service has ended. States that follow each other quickly are recorded as one.
    pub(super) async fn run(
        self,
        mut actual: watch::Receiver<ServiceStatus>,
        recorded: &watch::Sender<ServiceStatus>,
    ) {
        let mut pauses = Pauses::default();
        loop {
            let status = actual.borrow_and_update().clone();
            if *recorded.borrow() != status && !self.record(&status).await {
                let superseded = self.turn.superseded.cancelled();
                let end = async {
                    tokio::select! { () = self.ending.cancelled() => {}, () = superseded => {} }
                };
                if pauses.wait(end).await {
                    continue;
                }
                // The status is not recorded any more.
            }
            pauses = Pauses::default();
            recorded.send_replace(status);
            if actual.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns false if another attempt may help.
    async fn record(&self, status: &ServiceStatus) -> bool {
        let _turn = self.turn.take().await;
        if self.turn.superseded.is_cancelled() {
            return true;
        }
        let recorded = self.store.record_service_status(&self.vm_id, &self.name, status).await;
        let Err(error) = recorded else {
            *self.turn.failure.borrow_mut() = None;
            return true;
        };
        dir::bound_log();
        tracing::error!(name = self.name, %error, "the state of a service cannot be recorded");
        *self.turn.failure.borrow_mut() = Some(error.cause);
        error.is_permanent
    }
}
