//! QEMU's control protocol, as far as pyro needs it: five commands and four events, one JSON document a line.
//!
//! Every machine has such a connection, because that is the only place where QEMU says that it has paused its machine. A
//! task of its own reads it at any time: QEMU keeps what is not read in its memory.
//!
//! The crate that generates types for all of QMP would add a few hundred types to the build for these few.

mod pause;

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use self::pause::DiskError;
pub(crate) use self::pause::Pauses;
use crate::console::Console;
use crate::platform::MachineError;

/// Longest line that QEMU may send: a guest may have taken it over.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Lines that are read before a [`PAUSE`]. A VMM that sends events without end keeps the supervisor busy for a small part
/// of the time only.
const LINES_AT_ONCE: usize = 256;
/// The pause.
const PAUSE: Duration = Duration::from_millis(50);

/// Gives commands to a VMM, one at a time. Without it the connection goes on and reports pauses.
#[derive(Debug)]
pub(crate) struct Qmp(mpsc::Sender<Order>);

/// A command, and where to say what became of it.
#[derive(Debug)]
struct Order {
    job: Job,
    answer: oneshot::Sender<Result<(), MachineError>>,
}

#[derive(Debug)]
enum Job {
    Prepare,
    Save(PathBuf),
    Load(PathBuf),
}

/// Takes over the connection to a VMM. The future must be polled for anything to happen; it ends with the connection, or
/// when no one is left who wants to know of its failure. Nothing waits for the VMM's greeting until a command is given.
/// What the VMM reports about disks is added to the console, once.
pub(crate) fn connect(stream: UnixStream, console: Console) -> (Qmp, Pauses, impl Future<Output = ()>) {
    let (sender, mut orders) = mpsc::channel(1);
    let (pause, pauses) = watch::channel(None);
    let mut connection = Connection {
        lines: Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES)),
        lines_left: LINES_AT_ONCE,
        pause,
        console,
        // The machine may have been paused before this end asked for events.
        is_status_known: false,
        disk_error: None,
        migration: None,
    };
    let serve = async move {
        let Err(error) = connection.converse(&mut orders).await;
        match error {
            MachineError::Closed => tracing::debug!("the VMM has closed its control connection"),
            _ => tracing::warn!(%error, "a machine that its VMM pauses is not noticed any more"),
        }
        drop(connection);
        if let Some(Order { answer, .. }) = orders.recv().await {
            // Its sender may have given up.
            let _ = answer.send(Err(error));
        }
    };
    (Qmp(sender), Pauses::new(pauses), serve)
}

impl Qmp {
    /// Prepares the VMM for memory that lives in a file and is not part of the saved state.
    pub(crate) async fn prepare(&self) -> Result<(), MachineError> {
        self.order(Job::Prepare).await
    }

    /// Saves the state of the devices; the machine is stopped afterwards.
    pub(crate) async fn save(&self, file: &Path) -> Result<(), MachineError> {
        self.order(Job::Save(file.to_owned())).await
    }

    /// Loads the state of the devices; the machine runs as soon as that is done.
    pub(crate) async fn load(&self, file: &Path) -> Result<(), MachineError> {
        self.order(Job::Load(file.to_owned())).await
    }

    async fn order(&self, job: Job) -> Result<(), MachineError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Order { job, answer }).await.map_err(|_| MachineError::Closed)?;
        answered.await.unwrap_or(Err(MachineError::Closed))
    }
}

struct Connection {
    lines: Framed<UnixStream, LinesCodec>,
    lines_left: usize,
    pause: watch::Sender<Option<String>>,
    console: Console,
    /// No event since the last look says that the machine may have been paused.
    is_status_known: bool,
    /// The latest error of a disk.
    disk_error: Option<DiskError>,
    /// The latest status of saving or loading.
    migration: Option<String>,
}

impl Connection {
    /// Carries out orders and follows events until the connection fails.
    async fn converse(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Infallible, MachineError> {
        // The greeting.
        self.receive().await?;
        self.execute("qmp_capabilities", json!({})).await?;
        loop {
            let is_status_known = self.is_status_known;
            tokio::select! {
                biased;
                // A start waits for it.
                Some(order) = orders.recv() => self.carry_out(order).await?,
                () = std::future::ready(()), if !is_status_known => self.look().await?,
                message = self.receive() => self.note(&message?),
            }
        }
    }

    async fn carry_out(&mut self, Order { job, answer }: Order) -> Result<(), MachineError> {
        let done = match job {
            Job::Prepare => self.prepare().await,
            Job::Save(file) => self.save(&file).await,
            Job::Load(file) => self.execute("migrate-incoming", channel_to(&file)).await.map(drop),
        };
        let is_usable =
            matches!(done, Ok(()) | Err(MachineError::Refused { .. } | MachineError::NotSaved { .. }));
        // Its sender may have given up.
        let _ = answer.send(done);
        if is_usable { Ok(()) } else { Err(MachineError::Closed) }
    }

    async fn prepare(&mut self) -> Result<(), MachineError> {
        let capabilities = json!([
            { "capability": "x-ignore-shared", "state": true },
            { "capability": "events", "state": true },
        ]);
        self.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await.map(drop)
    }

    async fn save(&mut self, file: &Path) -> Result<(), MachineError> {
        self.migration = None;
        self.execute("migrate", channel_to(file)).await?;
        loop {
            match self.migration.take().as_deref() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    return Err(MachineError::NotSaved { status: status.to_owned() });
                }
                _ => {}
            }
            let message = self.receive().await?;
            self.note(&message);
        }
    }

    /// Asks whether the machine is paused, and why. Events do not say it.
    async fn look(&mut self) -> Result<(), MachineError> {
        self.is_status_known = true;
        let status = match self.execute("query-status", json!({})).await {
            Err(MachineError::Refused { reason, .. }) => {
                tracing::warn!(reason, "the VMM does not report whether its machine is paused");
                return Ok(());
            }
            status => status?,
        };
        let cause = status["status"].as_str().and_then(|status| pause::cause(status, self.disk_error));
        if let Some(cause) = cause {
            self.pause.send_replace(Some(cause));
        }
        Ok(())
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, MachineError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.lines.send(line).await.map_err(connection)?;
        loop {
            let mut message = self.receive().await?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(MachineError::Refused { command: command.to_owned(), reason });
            }
            self.note(&message);
        }
    }

    /// Takes note of an event.
    fn note(&mut self, message: &Value) {
        let data = &message["data"];
        match message["event"].as_str() {
            // Also when a machine is saved. Its status tells these apart.
            Some("STOP" | "GUEST_PANICKED") => self.is_status_known = false,
            Some("BLOCK_IO_ERROR") => {
                let error = DiskError::from_event(data);
                if self.disk_error.replace(error).is_none() {
                    tracing::warn!(%error, "a disk of the machine has failed");
                    self.console.print(format!("\n[a disk has failed: {error}]\n").as_bytes());
                }
            }
            Some("MIGRATION") => self.migration = data["status"].as_str().map(str::to_owned),
            // A machine that is shut down or reset ends its VMM (`-no-reboot`), which says more.
            _ => {}
        }
    }

    /// Dropping the future loses nothing.
    async fn receive(&mut self) -> Result<Value, MachineError> {
        if self.lines_left == 0 {
            tokio::time::sleep(PAUSE).await;
            self.lines_left = LINES_AT_ONCE;
        }
        let line = self.lines.next().await.ok_or(MachineError::Closed)?.map_err(connection)?;
        self.lines_left -= 1;
        serde_json::from_str(&line).map_err(MachineError::Malformed)
    }
}

fn connection(error: LinesCodecError) -> MachineError {
    match error {
        // It ended before it had read everything.
        LinesCodecError::Io(error)
            if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
        {
            MachineError::Closed
        }
        LinesCodecError::Io(error) => MachineError::Connection(error),
        other @ LinesCodecError::MaxLineLengthExceeded => MachineError::Connection(io::Error::other(other)),
    }
}

/// JSON, because a comma in a path would start another option in the short form.
fn channel_to(file: &Path) -> Value {
    json!({ "channels": [{
        "channel-type": "main",
        "addr": { "transport": "file", "filename": file, "offset": 0 },
    }] })
}

/// Saves and loads with a VMM that sends these bytes, whatever it is asked, and follows its events.
#[cfg(fuzzing)]
pub(crate) async fn converse(bytes: Vec<u8>) {
    use tokio::io::AsyncWriteExt as _;

    for loads in [None, Some(false), Some(true)] {
        let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
        let answer = async {
            let _ = theirs.write_all(&bytes).await;
            // Not dropped: the fuzzer does not ignore SIGPIPE.
            let _ = theirs.shutdown().await;
        };
        let (qmp, mut pauses, serve) = connect(ours, Console::in_memory());
        let ask = async {
            if let Some(loads) = loads
                && qmp.prepare().await.is_ok()
            {
                let _ = match loads {
                    true => qmp.load(Path::new("state")).await,
                    false => qmp.save(Path::new("state")).await,
                };
            }
            drop(qmp);
        };
        futures::join!(answer, ask, serve);
        // Its end is known.
        tokio::select! {
            biased;
            _ = pauses.next() => {}
            () = std::future::ready(()) => {}
        }
    }
}

#[cfg(test)]
mod tests;
