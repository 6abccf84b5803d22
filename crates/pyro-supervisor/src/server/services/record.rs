//! Records what becomes of a service, in order, before it is reported.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::dir;
use crate::server::Store;
use crate::service::ServiceStatus;

/// Pause after a status could not be recorded. It doubles each time, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Writes the status of one service to the store.
pub(super) struct Recorder<S> {
    pub(super) store: Rc<S>,
    pub(super) vm_id: String,
    pub(super) name: String,
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
        let mut pause = FIRST_PAUSE;
        loop {
            let status = actual.borrow_and_update().clone();
            if *recorded.borrow() != status
                && let Err(error) = self.store.record_service_status(&self.vm_id, &self.name, &status).await
            {
                dir::bound_log();
                tracing::error!(name = self.name, %error, "the state of a service cannot be recorded");
                if !error.is_permanent && !self.ending.is_cancelled() {
                    let _ = timeout(pause, self.ending.cancelled()).await;
                    pause = MAX_PAUSE.min(pause * 2);
                    continue;
                }
            }
            pause = FIRST_PAUSE;
            recorded.send_replace(status);
            if actual.changed().await.is_err() {
                return;
            }
        }
    }
}
