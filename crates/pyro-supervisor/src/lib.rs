//! The supervisor: the process that owns one machine, and its client. The machine itself is in `pyro-machine`.
//!
//! The supervisor is the parent of the VMM, the only holder of the guest channel, and the process that ends the VM: on
//! request, at the end of its lifetime, when the process it is bound to exits, or when the VMM dies by itself. On every
//! exit path it removes what it made. If the supervisor itself dies, the kernel kills the VMM and releases the lock by
//! which other processes notice.
//!
//! ```text
//!  starter                      supervisor
//!    │ spawn; stdin = lifeline,      │
//!    │ stdout = locked file          │
//!    │ Hello, LaunchSpec ──────────► │
//!    │ ◄─────────────────────  Hello │ disks, machine, guest
//!    │ ◄──────────── Booted | Failed │
//!    │                               │ serves control.sock
//!    │ ◄────────────────────── Ended │ last message, after everything is cleaned up
//! ```
//!
//! The supervisor knows nothing about environments or registries: it gets a [`LaunchSpec`] with paths and limits, and
//! records what happens through a [`Store`]. [`Client`] is the only client.

mod client;
mod conversation;
mod dir;
pub mod files;
mod handover;
mod machine;
mod mount;
mod mux;
mod pace;
mod protocol;
mod report;
mod server;
mod service;
mod service_log;
pub mod spares;
mod spec;
mod stages;
pub mod template;

pub use client::{
    AttachEnd, Client, CommandInput, ConnectError, CopyError, EndError, EndRequest, Ended, InputStream,
    Lifeline, MountError, PublishError, Ran, Run, RunError, ServiceError, ShellAnswer, ShellOutput,
    StartError, TYPE_LIMIT, make_template, start,
};
pub use conversation::{CommandEnd, CommandOutcome, OutputChunk, timeout_note};
pub use dir::{Owner, OwnerLock, Phase, network_denials, remove as remove_dir};
pub use machine::with_causes;
pub use mount::{MAX_MOUNTS, MountPoint, MountSockets};
pub use pace::Pace;
pub use protocol::{
    CommandKey, GENERATION, Greeting, InputOutcome, MAX_OPEN_SHELLS, ReadReason, ReadShell, SCROLLBACK_BYTES,
    ShellPart, ShellState,
};
pub use pyro_archive::{Report, destination};
pub use pyro_wire::{
    ArchiveLimits, Exec, FailureKind, FileChange, FileInfo, FileKind, HostSettings, List,
    MAX_HOST_SETTINGS_BYTES, MakeDirectory, Move, OutputStream, Pack, Program, Remove, Stat,
    Status as ExitStatus, TerminalSize, Unpack, WORKSPACE, Watch,
};
pub use report::{BootFailure, BootInfo, BootStage, EndReason, StageTime, StartMode};
pub use server::{CommandLog, MAX_PORTS, STREAM_LIMIT, Store, StoreError, file_name, room, run};
pub use service::{MAX_SERVICES, ReadyCheck, Restart, ServiceDefinition, ServiceState, ServiceStatus};
pub use service_log::{LogPiece, read_service_log, service_log_end, service_log_tail};
pub use spec::{LaunchSpec, PortMapping, PublishedPort, Purpose, Retention};

/// Entry points for the fuzz targets, present only in their builds.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use pyro_wire::{Exec, ExecReply};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use crate::mux;
    use crate::protocol::{Event, Legacy, Reply, Request};

    /// Reads a message as one that a supervisor may send.
    pub fn supervisor(message: &serde_json::Value) {
        let _ = serde_json::from_value::<Reply>(message.clone());
        let _ = serde_json::from_value::<Event>(message.clone());
    }

    /// Drives the channel of a guest that sends these bytes after the handshake, with a request on a stream of its own.
    pub async fn guest(bytes: Vec<u8>) {
        let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
        let (streams, driver) = mux::drive(ours, crate::Pace::USUAL);
        let answer = async {
            let _ = theirs.write_all(&bytes).await;
            // Not dropped: the fuzzer does not ignore SIGPIPE.
            let _ = theirs.shutdown().await;
        };
        let exec = Exec::new("true", std::time::Duration::from_millis(1));
        let ask = async {
            let _: Option<ExecReply> = streams.ask(exec).await;
        };
        futures::join!(driver, answer, ask);
    }

    /// Reads a message as one that a client of this or an older version may send.
    pub fn client(message: &serde_json::Value) {
        let _ = serde_json::from_value::<Request>(message.clone());
        let _ = serde_json::from_value::<Legacy>(message.clone()).map(Legacy::modern);
    }
}
