//! One supervisor process per VM.
//!
//! It is the parent of the VMM, the only holder of the guest channel, and the one that ends the VM: when asked,
//! when its time is over, when the process it is bound to goes away, or when the VMM dies by itself. On every
//! way out it removes what it made. Its own death takes the VMM with it (the kernel sees to that), and releases
//! the lock by which others notice.
//!
//! ```text
//!  starter                      supervisor
//!    │ spawn; stdin = lifeline,      │
//!    │ stdout = locked file          │
//!    │ LaunchSpec ─────────────────► │ disks, VMM, guest
//!    │ ◄──────────── Booted | Failed │
//!    │                               │ serves control.sock
//!    │ ◄────────────────────── Ended │ last words, after everything is cleaned up
//! ```

mod commands;
pub mod control;
mod handover;
mod lock;
mod machine;
mod serve;
mod spare;
mod stages;
mod start;
mod timer;

use pyro_machine::Accelerator;
use pyro_machine::network::NetworkDescription;
use serde::{Deserialize, Serialize};

use crate::Retention;

pub use commands::{CommandEnd, CommandLog, STREAM_LIMIT, file_name, room};
pub use lock::OwnerLock;
pub(crate) use machine::chain;
pub use serve::{Recorder, run};
pub(crate) use spare::clear_claimed;
pub(crate) use start::spawn;
pub use start::{Lifeline, StartError, claim, make_template, start};

/// Names of the files in a VM's directory.
pub mod files {
    /// What the guest's serial console and the VMM printed.
    pub const SERIAL_LOG: &str = "serial.log";
    /// What the supervisor itself had to say.
    pub const SUPERVISOR_LOG: &str = "supervisor.log";
    /// Locked while the VM's owner lives.
    pub const OWNER_LOCK: &str = "owner.lock";
    /// Where the supervisor is reached.
    pub const CONTROL_SOCKET: &str = "control.sock";
    /// Directory of what the commands of a journal wrote.
    pub const COMMANDS: &str = "commands";
    pub(crate) const INITRD: &str = "initrd.img";
    /// What the guest has written to its disk.
    pub const LAYER: &str = "layer.img";
}

/// From the supervisor to whoever started it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The guest takes commands.
    Booted(BootInfo),
    /// There is a template now; [`Purpose::Template`](crate::Purpose::Template) is done.
    TemplateReady,
    /// The VM did not come up. Everything is cleaned up.
    Failed(BootFailure),
    /// The VM is gone. Everything that does not stay is cleaned up and the end is recorded.
    Ended(EndReason),
}

/// Facts about a VM that came up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootInfo {
    /// `uname -r` in the guest.
    pub kernel_release: String,
    /// Time from the supervisor's start, or the claim of a spare, to the guest's readiness, in milliseconds.
    pub boot_ms: u64,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// The guest's network, if it has one.
    pub network: Option<NetworkDescription>,
    /// Where it started from.
    pub start_mode: StartMode,
    /// Why it was booted although templates were wanted.
    pub warning: Option<String>,
    /// What the start consisted of, in order.
    pub stages: Vec<StageTime>,
}

/// Where a VM started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// Its kernel.
    Cold,
    /// The saved state of another machine.
    Template,
    /// It was running already, as a spare.
    Spare,
}

impl std::fmt::Display for StartMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Template => "template",
            Self::Spare => "spare",
        })
    }
}

/// How long one step of a start took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// The step.
    pub stage: BootStage,
    /// Milliseconds.
    pub ms: f64,
}

/// A VM that did not come up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootFailure {
    /// Where it stopped.
    pub stage: BootStage,
    /// Why, in words.
    pub cause: String,
    /// The latest lines of the console.
    pub console: Vec<String>,
}

/// Steps from nothing to a guest that takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootStage {
    /// Initrd and writable layer are being made.
    Disks,
    /// The network helper is being started.
    Network,
    /// The VMM is being started.
    Vmm,
    /// The kernel boots; the agent has not spoken yet.
    Kernel,
    /// The agent mounts disks and configures the machine.
    Guest,
    /// The saved state is being loaded.
    Restore,
    /// The guest is given its clock, its randomness, its names and its network.
    Identity,
}

impl BootStage {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Guest => "guest",
            Self::Restore => "restore",
            Self::Identity => "identity",
        }
    }
}

impl std::fmt::Display for BootStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disks => "preparing the disks",
            Self::Network => "starting the network",
            Self::Vmm => "starting the VMM",
            Self::Kernel => "booting the kernel",
            Self::Guest => "setting up the guest",
            Self::Restore => "restoring the template",
            Self::Identity => "giving the guest its identity",
        })
    }
}

/// Why a VM that was up is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Someone asked for it and wants the files gone too.
    Deleted,
    /// Someone asked for it; the files stay.
    Stopped,
    /// Its time was over.
    Expired,
    /// The process it was bound to went away.
    CallerGone,
    /// The supervisor got SIGTERM, SIGINT or SIGHUP.
    Terminated,
    /// The VMM ended by itself: the guest powered off or crashed, or someone killed it.
    VmmEnded {
        /// Exit status in words and the latest lines of the console.
        description: String,
    },
}

impl EndReason {
    /// Whether the VM's directory goes with the VM.
    fn removes_files(&self, retention: Retention) -> bool {
        match (self, retention) {
            (Self::Deleted, _) | (_, Retention::Caller) | (Self::Expired, Retention::Lifetime) => true,
            (_, Retention::Lifetime | Retention::Deletion) => false,
        }
    }

    /// Whether the guest is to write everything out before it goes.
    fn halts_guest(&self, retention: Retention) -> bool {
        match self {
            Self::Stopped | Self::Expired | Self::Terminated => !self.removes_files(retention),
            Self::Deleted | Self::CallerGone | Self::VmmEnded { .. } => false,
        }
    }
}
