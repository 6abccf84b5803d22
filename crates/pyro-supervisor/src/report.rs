//! What a supervisor reports of its VM: how it came up, or why it did not, or why it is gone.

use pyro_machine::Accelerator;
use pyro_machine::network::NetworkDescription;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Facts about a VM that came up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BootInfo {
    /// `uname -r` in the guest.
    pub kernel_release: String,
    /// Time from the supervisor's start, or the claim of a spare, to the guest's readiness, in milliseconds.
    pub boot_ms: u64,
    /// How guest code is executed.
    #[schemars(with = "String")]
    pub accelerator: Accelerator,
    /// The guest's network, if it has one.
    #[schemars(with = "Option<serde_json::Value>")]
    pub network: Option<NetworkDescription>,
    /// Where it started from.
    pub start_mode: StartMode,
    /// Why it was booted although templates were wanted.
    pub warning: Option<String>,
    /// What the start consisted of, in order.
    pub stages: Vec<StageTime>,
}

/// Where a VM started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageTime {
    /// The step.
    pub stage: BootStage,
    /// Milliseconds.
    pub ms: f64,
}

/// A VM that did not come up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BootFailure {
    /// Where it stopped.
    pub stage: BootStage,
    /// Why, in words.
    pub cause: String,
    /// The latest lines of the console.
    pub console: Vec<String>,
}

/// Steps from nothing to a guest that takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deleted => f.write_str("the VM was deleted"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::Expired => f.write_str("the VM's lifetime ended"),
            Self::CallerGone => f.write_str("the process that the VM was bound to exited"),
            Self::Terminated => f.write_str("the VM's supervisor was terminated"),
            Self::VmmEnded { description } => write!(f, "the VM ended by itself: {description}"),
            Self::ChannelLost => f.write_str("the connection to the guest was lost"),
        }
    }
}

/// Why a VM that was up is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The connection to the guest was lost while its machine went on.
    ChannelLost,
}
