//! The messages between a supervisor and its clients.
//!
//! ```text
//!  client                                supervisor
//!    │ Hello { generation, version } ───────► │
//!    │ ◄─────── Hello { generation, version } │   other generations part here: nothing was requested yet
//!    │ Request ─────────────────────────────► │
//!    │ ◄─────────────────────── Reply, output │
//! ```
//!
//! A supervisor is older or newer than its clients when the program was replaced while it ran. So no client sends a
//! request before both ends have announced their [`GENERATION`], and a client of another generation knows that nothing
//! was done. Supervisors that were built before generations close a connection whose first frame they do not
//! understand; clients that were built before generations send their request as the first frame, see [`Legacy`].

mod shells;

use std::net::IpAddr;
use std::time::Duration;

use pyro_wire::{Exec, FrameCodec, TerminalSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::codec::Framed;

pub use self::shells::{MAX_OPEN_SHELLS, ReadReason, ReadShell, SCROLLBACK_BYTES, ShellPart, ShellState};
use super::conversation::CommandOutcome;
use super::{BootFailure, BootInfo, BootStage, EndReason};
use crate::mount::MountPoint;
use crate::service::{ServiceDefinition, ServiceStatus};
use crate::spec::{LaunchSpec, PortMapping, PublishedPort};

/// Number of this protocol; both ends must use the same. The schema test documents when to raise it.
pub const GENERATION: u32 = 5;

/// Time limit for the guest of a spare to take its new identity, and for a claimer to hand over its lock.
pub(crate) const CLAIM_LIMIT: Duration = Duration::from_secs(10);

/// Time limit for a guest to send or to take the next piece of a copy, and to confirm the copy. A supervisor that is asked
/// for its greeting says nothing about its guest.
pub(crate) const COPY_STEP_LIMIT: Duration = Duration::from_secs(60);

/// The version of this program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The program at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Greeting {
    /// Its [`GENERATION`].
    pub generation: u32,
    /// Its package version.
    pub version: String,
}

impl Greeting {
    /// Returns the greeting of this program.
    pub fn own() -> Self {
        Self { generation: GENERATION, version: VERSION.to_owned() }
    }
}

/// First frame on every connection, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Opening {
    /// The program at this end.
    Hello(Greeting),
}

/// A request of a client. One per connection, except [`Request::Cancel`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Become a stream to the guest, which carries one request to copy files. Answered by [`Reply::Done`]; what follows
    /// is between the client and the guest.
    Copy,
    /// To a spare: become this VM, and use the connection as its lifeline. The first client gets the spare, and then
    /// passes on the lock of the VM's directory.
    Claim(Box<LaunchSpec>),
    /// Run a command. Answered by [`Reply::Accepted`], its output, and [`Reply::Ended`]. A client that disconnects before
    /// the command is accepted has withdrawn it.
    Run {
        /// The command.
        exec: Exec,
        /// Number the command, keep its output, and record how it ends. It then continues when its client disconnects,
        /// which ends it otherwise.
        journal: bool,
        /// The client does not wait: no output, no end.
        detach: bool,
    },
    /// On the connection of a [`Request::Run`]: do not begin it, or end it.
    Cancel,
    /// Write to the standard input of a running command. The bytes follow in frames of the standard output. Answered by
    /// [`Reply::Input`]. A client that disconnects before [`Request::InputFinished`] leaves the input open for another.
    Input(CommandKey),
    /// On the connection of a [`Request::Input`]: the standard input ends; of a [`Request::WriteShell`]: the keys do.
    InputFinished,
    /// Change the size of a running command's terminal. Answered by [`Reply::Done`] or [`Reply::NotRunning`].
    Resize {
        /// The command.
        command: CommandKey,
        /// The new size.
        size: TerminalSize,
    },
    /// Send a signal to a running command. Answered by [`Reply::Done`] or [`Reply::NotRunning`].
    Signal {
        /// The command.
        command: CommandKey,
        /// Number of the signal, 1 to 31.
        signal: i32,
    },
    /// Report how a command ends. Answered by [`Reply::Ended`] or [`Reply::NotRunning`].
    Watch {
        /// Its number.
        sequence: u64,
        /// Send what it has written, and what it writes, before that.
        output: bool,
    },
    /// End a command. Answered as [`Request::Watch`].
    Kill {
        /// Its number.
        sequence: u64,
    },
    /// Run a command on a terminal that belongs to no client, with an input; it is in the journal. Answered by
    /// [`Reply::Accepted`].
    OpenShell(Exec),
    /// List the shells that run, and the latest that have ended. Answered by [`Reply::Shells`].
    ListShells,
    /// Read what a shell wrote. Answered by the bytes and [`Reply::ShellPart`], or by [`Reply::NotRunning`].
    ReadShell(ReadShell),
    /// Type into a shell, and read what it writes then. The keys follow in frames of the standard output, and then
    /// [`Request::InputFinished`]. Answered by [`Reply::Input`] when the shell has taken them, and if it has, as
    /// a [`Request::ReadShell`] of what is fresh.
    WriteShell(ReadShell),
    /// Send what a shell has written since a cursor, and what it writes. Answered by the bytes and [`Reply::Ended`], or by
    /// [`Reply::NotRunning`].
    AttachShell {
        /// Its number in the journal.
        sequence: u64,
        /// Where to begin.
        cursor: u64,
    },
    /// Change the end of the VM's lifetime, in seconds since the epoch.
    Extend {
        /// The new end.
        expires_at: f64,
    },
    /// Publish a port of the guest on the host. Answered by [`Reply::Published`].
    Publish(PortMapping),
    /// Close the published ports with this number on the host. Answered by [`Reply::Done`] or [`Reply::NotPublished`].
    Unpublish {
        /// The number.
        host_port: u16,
        /// Only the one on this address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_ip: Option<IpAddr>,
    },
    /// Start, stop, remove, or follow a service. Answered by [`Reply::Service`].
    Service {
        /// Its name.
        name: String,
        /// What to do.
        request: ServiceRequest,
    },
    /// Mount a directory of the host in the guest. Answered by [`Reply::Done`], after which the client passes the socket of the
    /// directory's server, and then by [`Reply::Mounted`].
    Mount(MountPoint),
    /// Unmount the directory that the guest has there. Answered by [`Reply::Done`] or [`Reply::NotMounted`].
    Unmount {
        /// Path in the guest.
        guest: String,
    },
    /// Let the guest write everything out, then end the VM; its directory stays.
    Stop,
    /// End the VM at once and remove its directory.
    Delete,
    /// Do what the end of its lifetime does.
    Expire,
}

/// A running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandKey {
    /// By its number in the journal.
    Sequence(u64),
    /// By its number in the guest.
    Id(u64),
}

/// What became of the input that was sent to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputOutcome {
    /// The command was given all of it, and its standard input has ended.
    Taken,
    /// The command closed its standard input, or ended, before that.
    Closed,
    /// No such command runs.
    NotRunning,
    /// The command takes no input.
    NoInput,
    /// Another client sends input to the command.
    Busy,
}

/// What to do with a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceRequest {
    /// Start it. Answered by [`ServiceReply::Status`], and with `wait` not before it is ready or cannot become ready by this
    /// run of its command. It goes on when the client disconnects.
    Start {
        /// What it is from now on. Absent: what it is already.
        definition: Option<Box<ServiceDefinition>>,
        /// Wait until it is ready.
        wait: bool,
    },
    /// End its command and do not run it again. Answered by [`ServiceReply::Status`] when nothing of it runs.
    Stop,
    /// Stop it and forget it, with its output. Answered by [`ServiceReply::Removed`].
    Remove,
    /// Send what it has written since this offset of its log, and what it writes, until it ends for good. Answered by its
    /// output and [`ServiceReply::Status`].
    Follow {
        /// The offset in bytes.
        offset: u64,
    },
}

/// What became of a request about a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceReply {
    /// It is done, and this is its recorded status.
    Status(ServiceStatus),
    /// It is forgotten.
    Removed,
    /// There is no such service.
    NotFound,
    /// It runs already. Nothing was done.
    Running,
    /// It has not been started since its VM was started.
    NotStarted,
    /// The output that follows begins at this offset of the log: what was before it is not kept.
    Skipped {
        /// The offset.
        offset: u64,
    },
    /// It, or what became of it, cannot be recorded.
    NotRecorded {
        /// Why.
        cause: String,
        /// Trying again does not help.
        is_permanent: bool,
    },
}

/// A reply of the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It is done; to a claim or a copy: it is granted.
    Done,
    /// The command is about to run.
    Accepted {
        /// Its number, from 1 without gaps, if it is in the journal.
        sequence: Option<u64>,
        /// Its number in the guest, which every command has.
        id: u64,
    },
    /// What became of the input of a command.
    Input(InputOutcome),
    /// Nothing was done, and nothing will be.
    Refused {
        /// Why.
        cause: String,
    },
    /// The command is not running any longer, or there never was one with this number.
    NotRunning,
    /// The command has ended, and that is recorded if it is in the journal.
    Ended(CommandOutcome),
    /// The shells, in the order of their numbers.
    Shells(Vec<ShellState>),
    /// What follows the bytes of a shell.
    ShellPart(ShellPart),
    /// The port is published, and that is recorded.
    Published(PublishedPort),
    /// No such port is published.
    NotPublished,
    /// The directory is mounted, and that is recorded.
    Mounted,
    /// No directory of the host is mounted there.
    NotMounted,
    /// The host cannot listen where the port would be published. Nothing was done.
    CannotListen {
        /// Why.
        cause: String,
    },
    /// The change of the published ports or the mounted directories cannot be recorded. Nothing was done.
    NotRecorded {
        /// Why.
        cause: String,
    },
    /// What became of a request about a service.
    Service(ServiceReply),
    /// This supervisor does not know the request. Nothing was done.
    Unknown(Greeting),
}

/// From the starter to the supervisor, on its standard input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Launch {
    /// The starter. First.
    Hello(Greeting),
    /// What to start.
    Start(Box<LaunchSpec>),
}

/// From the supervisor to its starter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The supervisor. First, unless a spare was claimed: then both ends have greeted already.
    Hello(Greeting),
    /// The start is at this step. Sent when another one begins and every few seconds, to those who asked for it by
    /// [`LaunchSpec::reports_stages`].
    Stage(BootStage),
    /// The guest takes commands.
    Booted(BootInfo),
    /// The template exists; [`Purpose::Template`](crate::Purpose::Template) is done.
    TemplateReady,
    /// The VM did not come up. Everything is cleaned up.
    Failed(BootFailure),
    /// The VM has ended. Everything that does not stay is cleaned up, and the end is recorded.
    Ended(EndReason),
}

/// The requests of clients that were built before generations, sent as the first frame. Those that end or extend a VM
/// still have their meaning, and are answered by [`Reply::Done`]; the answer to the others is one that such a client
/// understands as "not delivered".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Legacy {
    /// [`Request::Stop`].
    Stop,
    /// [`Request::Delete`].
    Delete,
    /// [`Request::Expire`].
    Expire,
    /// [`Request::Extend`].
    Extend {
        /// The new end.
        expires_at: f64,
    },
    /// A stream to the guest for any request; what follows is meant for the guest.
    Guest,
}

impl Legacy {
    /// Returns the request with the same meaning, if there is one.
    pub(crate) fn modern(self) -> Option<Request> {
        match self {
            Self::Stop => Some(Request::Stop),
            Self::Delete => Some(Request::Delete),
            Self::Expire => Some(Request::Expire),
            Self::Extend { expires_at } => Some(Request::Extend { expires_at }),
            Self::Guest => None,
        }
    }
}

/// Returns the reason for not serving a request of another generation.
pub(crate) fn other_version(version: Option<&str>) -> String {
    let version = version.map_or("an older version".to_owned(), |version| format!("version {version}"));
    format!("not delivered: the supervisor of this task runs {version}")
}

/// The supervisor's end of a connection.
pub(crate) type ServerStream = Framed<UnixStream, FrameCodec<Request, Reply>>;

/// A client's end.
pub(crate) type ClientStream = Framed<UnixStream, FrameCodec<Reply, Request>>;

/// The supervisor's end of the connection to its starter.
pub(crate) type LifelineServer = Framed<UnixStream, FrameCodec<Launch, Event>>;

/// The starter's end.
pub(crate) type LifelineClient = Framed<UnixStream, FrameCodec<Event, Launch>>;

#[cfg(test)]
mod tests;
