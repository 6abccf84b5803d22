//! The services of one VM: commands that are kept running without a client.
//!
//! ```text
//!  client ── start ──► Runner ── converse ──► guest        one run of the command after another
//!                        │ status      │ output
//!                        ▼             ▼
//!                     Recorder      ServiceLog ◄── other clients follow
//!                        │
//!  client ◄── status ── Store
//! ```
//!
//! Every client sees a status after it is recorded. A client that disconnects changes nothing.

mod backoff;
mod ready;
mod record;
mod run;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, OutputStream};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::record::Recorder;
use self::run::Runner;
use super::Store;
use super::commands::{Counted, SETTLE_LIMIT, SETTLE_STEP, is_withdrawn, reply};
use super::driver::remove_dir;
use crate::files;
use crate::mux::Streams;
use crate::protocol::{Reply, ServerStream, ServiceReply, ServiceRequest};
use crate::service::{ServiceDefinition, ServiceState, ServiceStatus};
use crate::service_log::{ServiceLog, read_service_log};

/// Time in which services end one after another when their VM is stopped. Those that are left then end at once.
const ORDER_LIMIT: Duration = Duration::from_millis(1500);
/// Bytes to read from a log at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// The services of one VM. Cheap to clone.
pub(super) struct Services<S>(Rc<Shared<S>>);

impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Shared<S> {
    vm_id: String,
    /// Directory that holds the services' logs.
    dir: PathBuf,
    streams: Streams,
    store: Rc<S>,
    /// Those that were started since the VM was, by name.
    started: RefCell<BTreeMap<String, Started>>,
    /// Held while what is on record about services changes, and what they are.
    changing: Mutex<()>,
    latest: Cell<u64>,
    closed: Cell<bool>,
    ending: CancellationToken,
    /// Number of services that have not both ended and been recorded.
    count: watch::Sender<usize>,
}

/// A service that was started.
#[derive(Clone)]
struct Started {
    /// Later ones have larger numbers.
    number: u64,
    stop: CancellationToken,
    /// The recorded status.
    status: watch::Receiver<ServiceStatus>,
    /// Where its log ends.
    written: watch::Receiver<u64>,
    /// Cancelled when it has ended, and that is recorded.
    done: CancellationToken,
}

impl<S: Store + 'static> Services<S> {
    pub(super) fn new(vm_id: &str, vm_dir: &std::path::Path, streams: Streams, store: Rc<S>) -> Self {
        Self(Rc::new(Shared {
            vm_id: vm_id.to_owned(),
            dir: vm_dir.join(files::SERVICES),
            streams,
            store,
            started: RefCell::default(),
            changing: Mutex::default(),
            latest: Cell::new(0),
            closed: Cell::new(false),
            ending: CancellationToken::new(),
            count: watch::Sender::new(0),
        }))
    }

    /// Serves a client's request.
    pub(super) async fn serve(&self, name: String, request: ServiceRequest, mut client: ServerStream) {
        match request {
            ServiceRequest::Start { definition, wait } => self.start(name, definition, wait, client).await,
            ServiceRequest::Follow { offset } => self.follow(&name, offset, client).await,
            ServiceRequest::Stop => {
                let answer = self.stop(&name).await;
                reply(&mut client, Reply::Service(answer)).await;
            }
            ServiceRequest::Remove => {
                let answer = self.remove(&name).await;
                reply(&mut client, Reply::Service(answer)).await;
            }
        }
    }

    /// Starts the services that start with their VM.
    pub(super) async fn start_with_vm(&self) {
        let _changing = self.0.changing.lock().await;
        let services = match self.0.store.services(&self.0.vm_id).await {
            Ok(services) => services,
            Err(error) => return tracing::error!(%error, "the services of the VM cannot be read"),
        };
        for definition in services.into_iter().filter(|definition| definition.start_with_vm) {
            let name = definition.name.clone();
            if let Err(answer) = self.begin(definition).await {
                tracing::error!(name, ?answer, "a service is not started with its VM");
            }
        }
    }

    async fn start(
        &self,
        name: String,
        definition: Option<Box<ServiceDefinition>>,
        wait: bool,
        mut client: ServerStream,
    ) {
        // The request may have waited in the socket's buffer for longer than its client did.
        if is_withdrawn(&mut client) {
            return;
        }
        let begun = async {
            let _changing = self.0.changing.lock().await;
            let definition = match definition {
                Some(definition) => *definition,
                None => self.recorded(&name).await?,
            };
            self.begin(definition).await
        };
        let Started { mut status, .. } = match begun.await {
            Ok(started) => started,
            Err(answer) => return reply(&mut client, answer).await,
        };
        if wait {
            tokio::select! {
                // An error: it has ended.
                _ = status.wait_for(|status| status.state != ServiceState::Starting) => {}
                // The client sends nothing more, so this is its disconnect.
                _ = client.next() => return,
            }
        }
        let status = status.borrow().clone();
        reply(&mut client, Reply::Service(ServiceReply::Status(status))).await;
    }

    async fn recorded(&self, name: &str) -> Result<ServiceDefinition, Reply> {
        let services = self.0.store.services(&self.0.vm_id).await.map_err(not_recorded)?;
        let found = services.into_iter().find(|definition| definition.name == name);
        found.ok_or(Reply::Service(ServiceReply::NotFound))
    }

    /// Starts a service that does not run, once it is on record.
    async fn begin(&self, definition: ServiceDefinition) -> Result<Started, Reply> {
        let name = definition.name.clone();
        if self.find(&name).is_some_and(|started| !started.done.is_cancelled()) {
            return Err(Reply::Service(ServiceReply::Running));
        }
        let refused = || Reply::Refused { cause: "the VM is being stopped".to_owned() };
        if self.0.closed.get() {
            return Err(refused());
        }
        // From here on the end of the VM waits for this service.
        let counted = Counted::new(&self.0.count);
        let starting = ServiceStatus::starting();
        self.0.store.record_service(&self.0.vm_id, &definition, &starting).await.map_err(not_recorded)?;
        let stop = CancellationToken::new();
        if self.0.closed.get() {
            // Its record must not say that it starts.
            stop.cancel();
        }
        let log = ServiceLog::new(self.0.dir.join(&name));
        let (actual, recorded) = (watch::Sender::new(starting.clone()), watch::Sender::new(starting));
        self.0.latest.set(self.0.latest.get() + 1);
        let started = Started {
            number: self.0.latest.get(),
            stop: stop.clone(),
            status: recorded.subscribe(),
            written: log.end(),
            done: CancellationToken::new(),
        };
        let recorder = Recorder {
            store: Rc::clone(&self.0.store),
            vm_id: self.0.vm_id.clone(),
            name: name.clone(),
            ending: self.0.ending.clone(),
        };
        let (watched, done) = (actual.subscribe(), started.done.clone());
        spawn_local(async move {
            recorder.run(watched, &recorded).await;
            done.cancel();
            drop((recorded, counted));
        });
        let streams = self.0.streams.clone();
        spawn_local(Runner { definition: Rc::new(definition), streams, stop, status: actual, log }.run());
        self.0.started.borrow_mut().insert(name, started.clone());
        Ok(started)
    }

    fn find(&self, name: &str) -> Option<Started> {
        self.0.started.borrow().get(name).cloned()
    }

    /// Ends a service for good, also for a client that disconnects.
    async fn stop(&self, name: &str) -> ServiceReply {
        let Some(started) = self.find(name) else {
            return match self.recorded(name).await {
                Ok(_) => ServiceReply::NotStarted,
                Err(Reply::Service(answer)) => answer,
                Err(_) => ServiceReply::NotFound,
            };
        };
        started.stop.cancel();
        started.done.cancelled().await;
        let status = started.status.borrow().clone();
        ServiceReply::Status(status)
    }

    async fn remove(&self, name: &str) -> ServiceReply {
        let _changing = self.0.changing.lock().await;
        match self.stop(name).await {
            ServiceReply::Status(_) | ServiceReply::NotStarted => {}
            other => return other,
        }
        if let Err(error) = self.0.store.forget_service(&self.0.vm_id, name).await {
            return ServiceReply::NotRecorded { cause: error.cause, is_permanent: error.is_permanent };
        }
        self.0.started.borrow_mut().remove(name);
        remove_dir(&self.0.dir.join(name));
        ServiceReply::Removed
    }

    /// Sends a client what a service writes until it ends for good. A client that does not read misses what is dropped
    /// meanwhile, and holds nothing up.
    async fn follow(&self, name: &str, offset: u64, mut client: ServerStream) {
        let Some(Started { mut written, status, done, .. }) = self.find(name) else {
            return reply(&mut client, Reply::Service(ServiceReply::NotStarted)).await;
        };
        let dir = self.0.dir.join(name);
        let mut next = offset;
        loop {
            let is_done = done.is_cancelled();
            let end = *written.borrow_and_update();
            while next < end {
                let Ok(piece) = read_service_log(&dir, next, CHUNK_BYTES) else { return };
                if piece.bytes.is_empty() {
                    break;
                }
                next = piece.offset + piece.bytes.len() as u64;
                let frame = Frame::Output(OutputStream::Stdout, piece.bytes);
                if client.send(frame).await.is_err() {
                    return;
                }
            }
            if is_done {
                let status = status.borrow().clone();
                return reply(&mut client, Reply::Service(ServiceReply::Status(status))).await;
            }
            tokio::select! {
                () = done.cancelled() => {}
                // Its log is closed a moment before its end is recorded.
                changed = written.changed() => if changed.is_err() { done.cancelled().await },
                // The client sends nothing more, so this is its disconnect.
                _ = client.next() => return,
            }
        }
    }

    /// Starts no more services and ends those that run, the latest first.
    pub(super) async fn end_all(&self) {
        self.0.closed.set(true);
        self.0.ending.cancel();
        let mut running: Vec<_> = self.0.started.borrow().values().cloned().collect();
        running.retain(|started| !started.done.is_cancelled());
        running.sort_unstable_by_key(|started| std::cmp::Reverse(started.number));
        let (began, limit) = (Instant::now(), self.settle_limit());
        for started in &running {
            started.stop.cancel();
            let _ = timeout_at(began + ORDER_LIMIT, started.done.cancelled()).await;
        }
        self.wait_for_all(began + limit).await;
    }

    /// Waits until no service runs, either because all were ended or because the guest is gone.
    pub(super) async fn settle(&self) {
        self.0.closed.set(true);
        self.0.ending.cancel();
        self.0.started.borrow().values().for_each(|started| started.stop.cancel());
        self.wait_for_all(Instant::now() + self.settle_limit()).await;
    }

    fn settle_limit(&self) -> Duration {
        let running = *self.0.count.borrow();
        SETTLE_LIMIT + SETTLE_STEP * u32::try_from(running).unwrap_or(u32::MAX)
    }

    async fn wait_for_all(&self, limit: Instant) {
        let mut count = self.0.count.subscribe();
        if timeout_at(limit, count.wait_for(|count| *count == 0)).await.is_err() {
            tracing::warn!("services did not end in time");
        }
    }
}

fn not_recorded(error: super::StoreError) -> Reply {
    Reply::Service(ServiceReply::NotRecorded { cause: error.cause, is_permanent: error.is_permanent })
}
