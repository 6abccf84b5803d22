//! The protocol between host and guest.
//!
//! One byte channel joins them. It goes through two phases:
//!
//! ```text
//! guest                                host
//!   │ Hello ───────────────────────────► │   plain frames, in strict alternation
//!   │ ◄───────────────────── Preparation │   what all VMs of a kind share
//!   │ Done or Failed  ─────────────────► │
//!   ┆                                    ┆   here a guest may be saved, and others start from it
//!   │ ◄─────────────────────── Bootstrap │   what makes this one different
//!   │ Done or Failed  ─────────────────► │
//!   ├────────────────────────────────────┤
//!   │   yamux; the host opens a stream per request, which carries
//!   │ ◄───────────────────────── Request │   frames again
//!   │ Output* then one reply ──────────► │   of the request's own type, see [`Call`]
//! ```
//!
//! The guest is hostile: every decoder checks the length of a frame before it allocates and never panics, and every
//! number and text in a guest's message is within a stated bound once it is decoded. This crate does no I/O;
//! [`FrameCodec`] plugs into `tokio_util::codec::Framed`.
//!
//! The schema has one [`GENERATION`]. The agent is embedded in the host program, so both ends normally
//! agree; a host that meets an older guest (a long-lived VM started by the previous release) must refuse
//! with a clear message rather than guess.

mod bounded;
mod command;
mod failure;
mod files;
mod frame;
mod mount;
mod probe;
mod reply;
mod request;
mod setup;
mod text;

pub use bounded::{MAX_COUNT, MAX_EXAMPLE_BYTES, MAX_EXAMPLES, MAX_LABEL_BYTES, MAX_TEXT_BYTES, to_label};
pub use command::{
    Exec, ExecInput, Input, InputEnd, MAX_COMMAND_BYTES, Program, Resize, Signal, TerminalSize,
};
pub use failure::{Failure, FailureKind};
pub use files::{
    ChangeReply, FileChange, FileInfo, FileKind, LineDecoder, LineError, List, ListReply, MAX_LINE_BYTES,
    MAX_LISTED, MAX_WATCHED_DIRS, MakeDirectory, Move, Remove, Stat, StatReply, Watch, WatchReply,
    append_line,
};
pub use frame::{
    Frame, FrameCodec, FrameError, MAX_CONTROL_BYTES, MAX_OUTPUT_BYTES, MAX_REPLY_BYTES, OutputStream,
    bytes_missing,
};
pub use mount::{FuseMessages, InvalidFuseMessage, MAX_FUSE_MESSAGE_BYTES, Mount, MountInput, MountReply};
pub use probe::{Probe, ProbeReply};
pub use reply::{
    ArchiveReply, ArchiveReport, ConnectReply, ExecReply, Exit, HaltReply, IdentifyReply, InputReply, Status,
    SteerReply,
};
pub use request::{
    ArchiveLimits, Call, Connect, ConnectInput, Halt, Identify, NoInput, Pack, Request, Unpack,
};
pub use setup::{
    Bootstrap, GENERATION, Hello, HostSettings, Ipv6Config, MAX_HOST_SETTINGS_BYTES, NetworkConfig,
    Preparation, SetupReply,
};
pub use text::steers;

/// Name of the virtio-serial port that carries the channel.
pub const PORT_NAME: &str = "pyro.agent";

/// Argument of the guest's kernel with the host's vsock port that carries the channel, where the VMM has no virtio-serial
/// ports. The agent connects to it. A saved machine loses the connection: when it is restored, the agent connects again. To the
/// next port, the agent connects for the packets of a guest that has a network: Ethernet frames, each behind its length as
/// four bytes in network order.
pub const VSOCK_PORT_ARGUMENT: &str = "pyro.vsock_port";

/// Maximum number of bytes that are written to the channel at once, as many as the guest's driver takes. Each write costs an
/// interrupt or, in the guest, an exit to the VMM, so a yamux frame is written together with its header.
pub const CHANNEL_WRITE_BYTES: usize = 32 << 10;

/// Where commands start; exists in every guest.
pub const WORKSPACE: &str = "/workspace";

/// `serial` property of the disk with the read-only base image. Disks are found by serial because the order
/// in which a guest numbers them depends on the VMM. Where the VMM cannot set it, the base image is the only disk that
/// is read-only, and the layer the only other one.
pub const BASE_DISK_SERIAL: &str = "pyro-base";
/// `serial` property of the disk with the private writable ext4 layer.
pub const LAYER_DISK_SERIAL: &str = "pyro-layer";

/// Directory inside the initrd that holds the kernel modules, and the file in it that lists them in load
/// order, one file name per line.
pub const MODULE_DIR: &str = "/lib/modules/pyro";
/// See [`MODULE_DIR`].
pub const MODULE_ORDER_FILE: &str = "order";
