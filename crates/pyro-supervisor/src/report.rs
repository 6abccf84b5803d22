//! What a supervisor reports about its VM: how it came up, why it did not, or why it ended.

use pyro_confine::Layer;
use pyro_machine::network::NetworkDescription;
use pyro_machine::{Accelerator, Confinement, Vmm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PublishedPort;

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
    /// The platform of the machine.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub vmm: Vmm,
    /// The guest's network, if it has one.
    #[schemars(with = "Option<serde_json::Value>")]
    pub network: Option<NetworkDescription>,
    /// Its ports that are published on the host.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// What confines its VMM. Absent in the report of an older supervisor.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub confinement: Option<Box<Confinement>>,
    /// What confines the process that carries its packets, if there is one and it has reported that.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub network_confinement: Option<Box<Confinement>>,
    /// Whether its supervisor gave up what only a start needs. Absent in the report of an older supervisor.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub supervisor_restricted: Option<Layer>,
    /// Where it started from.
    pub start_mode: StartMode,
    /// Why its kernel was booted although it could have started from a template.
    pub warning: Option<String>,
    /// The steps of the start, in order.
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

/// Why a VM did not come up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BootFailure {
    /// The step that failed.
    pub stage: BootStage,
    /// Why, in words.
    pub cause: String,
    /// The latest lines of the console.
    pub console: Vec<String>,
    /// It was given up because it took too long.
    #[serde(default)]
    pub timed_out: bool,
}

impl BootFailure {
    /// Returns the failure of a step that does not have to do with a machine.
    pub(crate) fn at(stage: BootStage, cause: impl Into<String>) -> Self {
        Self { stage, cause: cause.into(), console: Vec::new(), timed_out: false }
    }
}

/// Steps from nothing to a guest that takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootStage {
    /// Initrd and writable layer are being made.
    Disks,
    /// The network helper is being started.
    Network,
    /// Ports are being published on the host.
    Ports,
    /// The VMM is being started.
    Vmm,
    /// The kernel is booting; the agent has not sent anything yet.
    Kernel,
    /// The agent mounts disks and configures the machine.
    Guest,
    /// The saved state is being loaded.
    Restore,
    /// The guest is given its clock, its randomness, its names and its network.
    Identity,
    /// Directories of the host are being mounted in the guest.
    Mounts,
}

impl BootStage {
    /// Returns the step as one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Ports => "ports",
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Guest => "guest",
            Self::Restore => "restore",
            Self::Identity => "identity",
            Self::Mounts => "mounts",
        }
    }
}

impl std::fmt::Display for BootStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disks => "preparing the disks",
            Self::Network => "starting the network",
            Self::Ports => "publishing the ports",
            Self::Vmm => "starting the VMM",
            Self::Kernel => "booting the kernel",
            Self::Guest => "setting up the guest",
            Self::Restore => "restoring the template",
            Self::Identity => "giving the guest its identity",
            Self::Mounts => "mounting the directories",
        })
    }
}

/// Why a VM that was up has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// A client deleted it, with its files.
    Deleted,
    /// A client stopped it; the files stay.
    Stopped,
    /// Its lifetime ended.
    Expired,
    /// The process that it was bound to exited.
    CallerGone,
    /// The supervisor received SIGTERM, SIGINT or SIGHUP.
    Terminated,
    /// The VMM ended by itself: the guest powered off or crashed, or the VMM was killed.
    VmmEnded {
        /// Exit status in words and the latest lines of the console.
        description: String,
    },
    /// The connection to the guest was lost while its machine went on.
    ChannelLost,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// People read the sentence, programs the word.
    #[test]
    fn stages_and_modes_have_their_words() {
        let stages = [
            (BootStage::Disks, "disks", "preparing the disks"),
            (BootStage::Network, "network", "starting the network"),
            (BootStage::Ports, "ports", "publishing the ports"),
            (BootStage::Vmm, "vmm", "starting the VMM"),
            (BootStage::Kernel, "kernel", "booting the kernel"),
            (BootStage::Guest, "guest", "setting up the guest"),
            (BootStage::Restore, "restore", "restoring the template"),
            (BootStage::Identity, "identity", "giving the guest its identity"),
            (BootStage::Mounts, "mounts", "mounting the directories"),
        ];
        for (stage, word, sentence) in stages {
            assert_eq!((stage.name(), &*stage.to_string()), (word, sentence));
            assert_eq!(serde_json::to_value(stage).unwrap(), word);
        }
        for mode in [StartMode::Cold, StartMode::Template, StartMode::Spare] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.to_string());
        }
    }
}
