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
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, OutputStream};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::record::{Pauses, Recorder, Turn};
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
/// Time for which a client waits until what became of a service is recorded.
const RECORD_LIMIT: Duration = Duration::from_secs(10);
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
    /// Held while what is on record about services changes, and what they are. Never held until a service ends or is ready.
    changing: Mutex<()>,
    /// Services that a client has started, stopped, or removed since the VM was started: they do not start with it any more.
    /// `None` when those that start with it were started.
    decided: RefCell<Option<BTreeSet<String>>>,
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
    /// The status, which may not be recorded yet.
    actual: watch::Receiver<ServiceStatus>,
    /// The recorded status.
    status: watch::Receiver<ServiceStatus>,
    /// Where its log ends.
    written: watch::Receiver<u64>,
    /// The recording of its status.
    turn: Rc<Turn>,
    /// Cancelled when it has ended for good.
    ended: CancellationToken,
    /// Cancelled when it has ended, and that is recorded.
    done: CancellationToken,
}

impl Started {
    fn is_running(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Why its latest status is not on record.
    fn unrecorded(&self) -> ServiceReply {
        let cause = self.turn.failure.borrow().clone();
        let cause = cause.unwrap_or_else(|| "recording takes too long".to_owned());
        ServiceReply::NotRecorded {
            cause: format!("the state of the service cannot be recorded: {cause}"),
            is_permanent: false,
        }
    }

    /// Returns when it is ready, has failed, or has ended, and that is recorded.
    async fn settled(&mut self) -> ServiceReply {
        let has_settled = |status: &ServiceStatus| status.state != ServiceState::Starting;
        // An error: it has ended.
        let _ = self.actual.wait_for(has_settled).await;
        // An error: it has ended, which is recorded.
        match timeout(RECORD_LIMIT, self.status.wait_for(has_settled)).await.map(drop) {
            Ok(()) => ServiceReply::Status(self.status.borrow().clone()),
            Err(_) => self.unrecorded(),
        }
    }
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
            decided: RefCell::new(Some(BTreeSet::new())),
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

    /// Starts the services that start with their VM, each once it can be recorded.
    pub(super) async fn start_with_vm(&self) {
        let mut pauses = Pauses::default();
        let services = loop {
            match self.0.store.services(&self.0.vm_id).await {
                Ok(services) => break services,
                Err(error) => tracing::error!(%error, "the services of the VM cannot be read"),
            }
            if !pauses.wait(self.0.ending.cancelled()).await {
                return;
            }
        };
        for definition in services.into_iter().filter(|definition| definition.start_with_vm) {
            if !self.start_one_with_vm(definition).await {
                break;
            }
        }
        *self.0.decided.borrow_mut() = None;
    }

    /// Returns whether the VM runs on.
    async fn start_one_with_vm(&self, definition: ServiceDefinition) -> bool {
        let mut pauses = Pauses::default();
        loop {
            let changing = self.0.changing.lock().await;
            let name = &definition.name;
            if self.0.decided.borrow().as_ref().is_none_or(|decided| decided.contains(name)) {
                return true;
            }
            let answer = match self.begin(definition.clone()).await {
                Ok(_) => return true,
                Err(Reply::Refused { .. }) => return false,
                Err(answer) => answer,
            };
            tracing::error!(name, ?answer, "a service is not started with its VM");
            if let Reply::Service(ServiceReply::NotRecorded { cause, is_permanent: true }) = answer {
                let failed = ServiceStatus {
                    state: ServiceState::Failed,
                    reason: Some(format!("it cannot be recorded: {cause}")),
                    ..ServiceStatus::starting()
                };
                let recorded = self.0.store.record_service_status(&self.0.vm_id, name, &failed).await;
                recorded
                    .unwrap_or_else(|error| tracing::error!(name, %error, "nor can its failure be recorded"));
                return true;
            }
            drop(changing);
            if !pauses.wait(self.0.ending.cancelled()).await {
                return false;
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
        let begun = {
            let _changing = self.0.changing.lock().await;
            // The request may have waited for longer than its client did.
            if is_withdrawn(&mut client) {
                return;
            }
            let definition = match definition {
                Some(definition) => Ok(*definition),
                None => self.recorded(&name).await,
            };
            match definition {
                Ok(definition) => self.begin(definition).await,
                Err(answer) => Err(answer),
            }
        };
        let mut started = match begun {
            Ok(started) => started,
            Err(answer) => return reply(&mut client, answer).await,
        };
        self.decide(&name);
        let answer = match wait {
            false => ServiceReply::Status(started.status.borrow().clone()),
            true => tokio::select! {
                answer = started.settled() => answer,
                // The client sends nothing more, so this is its disconnect.
                _ = client.next() => return,
            },
        };
        reply(&mut client, Reply::Service(answer)).await;
    }

    /// Remembers that a client has decided what becomes of a service.
    fn decide(&self, name: &str) {
        if let Some(decided) = self.0.decided.borrow_mut().as_mut() {
            decided.insert(name.to_owned());
        }
    }

    async fn recorded(&self, name: &str) -> Result<ServiceDefinition, Reply> {
        let services = self.0.store.services(&self.0.vm_id).await.map_err(not_recorded)?;
        let found = services.into_iter().find(|definition| definition.name == name);
        found.ok_or(Reply::Service(ServiceReply::NotFound))
    }

    /// Starts a service that does not run, once it is on record.
    async fn begin(&self, definition: ServiceDefinition) -> Result<Started, Reply> {
        let name = definition.name.clone();
        let earlier = self.find(&name);
        if earlier.as_ref().is_some_and(Started::is_running) {
            return Err(Reply::Service(ServiceReply::Running));
        }
        let refused = || Reply::Refused { cause: "the VM is being stopped".to_owned() };
        if self.0.closed.get() {
            return Err(refused());
        }
        // From here on the end of the VM waits for this service.
        let counted = Counted::new(&self.0.count);
        let starting = ServiceStatus::starting();
        {
            let _turn = match &earlier {
                Some(earlier) => Some(earlier.turn.take().await),
                None => None,
            };
            self.0.store.record_service(&self.0.vm_id, &definition, &starting).await.map_err(not_recorded)?;
            if let Some(earlier) = &earlier {
                earlier.turn.superseded.cancel();
            }
        }
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
            actual: actual.subscribe(),
            status: recorded.subscribe(),
            written: log.end(),
            turn: Rc::default(),
            ended: CancellationToken::new(),
            done: CancellationToken::new(),
        };
        let recorder = Recorder {
            store: Rc::clone(&self.0.store),
            vm_id: self.0.vm_id.clone(),
            name: name.clone(),
            turn: Rc::clone(&started.turn),
            ending: self.0.ending.clone(),
        };
        let (watched, done) = (actual.subscribe(), started.done.clone());
        spawn_local(async move {
            recorder.run(watched, &recorded).await;
            done.cancel();
            drop((recorded, counted));
        });
        let (streams, ended) = (self.0.streams.clone(), started.ended.clone().drop_guard());
        spawn_local(async move {
            Runner { definition, streams, stop, status: actual, log }.run().await;
            drop(ended);
        });
        self.0.started.borrow_mut().insert(name, started.clone());
        Ok(started)
    }

    fn find(&self, name: &str) -> Option<Started> {
        self.0.started.borrow().get(name).cloned()
    }

    /// Ends a service for good, also for a client that disconnects.
    async fn stop(&self, name: &str) -> ServiceReply {
        let started = match self.end(name).await {
            Ok(started) => started,
            Err(answer) => return answer,
        };
        match timeout(RECORD_LIMIT, started.done.cancelled()).await {
            Ok(()) => ServiceReply::Status(started.status.borrow().clone()),
            Err(_) => started.unrecorded(),
        }
    }

    /// Returns when the service has ended for good, which may not be recorded yet.
    async fn end(&self, name: &str) -> Result<Started, ServiceReply> {
        let started = {
            // One that is being started is there afterwards.
            let _changing = self.0.changing.lock().await;
            let started = match self.find(name) {
                Some(started) => Ok(started),
                None => match self.recorded(name).await {
                    Ok(_) => Err(ServiceReply::NotStarted),
                    Err(Reply::Service(answer)) => return Err(answer),
                    Err(_) => return Err(ServiceReply::NotFound),
                },
            };
            self.decide(name);
            started?
        };
        started.stop.cancel();
        started.ended.cancelled().await;
        Ok(started)
    }

    async fn remove(&self, name: &str) -> ServiceReply {
        match self.end(name).await {
            Ok(_) | Err(ServiceReply::NotStarted) => {}
            Err(answer) => return answer,
        }
        let _changing = self.0.changing.lock().await;
        let started = self.find(name);
        if started.as_ref().is_some_and(Started::is_running) {
            // Another client has started it again.
            return ServiceReply::Running;
        }
        let _turn = match &started {
            Some(started) => Some(started.turn.take().await),
            None => None,
        };
        if let Err(error) = self.0.store.forget_service(&self.0.vm_id, name).await {
            return ServiceReply::NotRecorded { cause: error.cause, is_permanent: error.is_permanent };
        }
        if let Some(started) = &started {
            started.turn.superseded.cancel();
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
        let mut is_closed = false;
        loop {
            let is_done = done.is_cancelled();
            let end = *written.borrow_and_update();
            while next < end {
                let Ok(piece) = read_service_log(&dir, next, CHUNK_BYTES) else { return };
                if piece.bytes.is_empty() {
                    break;
                }
                let skipped = (piece.offset != next)
                    .then(|| Frame::Control(Reply::Service(ServiceReply::Skipped { offset: piece.offset })));
                next = piece.offset + piece.bytes.len() as u64;
                let output = Frame::Output(OutputStream::Stdout, piece.bytes);
                let frames = skipped.into_iter().chain([output]).map(Ok);
                if client.send_all(&mut futures::stream::iter(frames)).await.is_err() {
                    return;
                }
            }
            if is_done {
                let status = status.borrow().clone();
                return reply(&mut client, Reply::Service(ServiceReply::Status(status))).await;
            }
            tokio::select! {
                () = done.cancelled() => {}
                // Its log is closed before its end is recorded.
                changed = written.changed(), if !is_closed => is_closed = changed.is_err(),
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
