//! The ways to execute guest code, and the verdict on this host's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::costs::Costs;

/// A way to execute guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The kernel's hardware virtualisation.
    Kvm,
    /// Translation of guest code, which works everywhere.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The text is neither `kvm` nor `tcg`.
#[derive(Debug, thiserror::Error)]
#[error("unknown accelerator; expected kvm or tcg")]
pub struct UnknownAccelerator;

impl FromStr for Accelerator {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(UnknownAccelerator),
        }
    }
}

/// Which accelerator is used, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The chosen accelerator.
    pub accelerator: Accelerator,
    /// The reason, for people.
    pub reason: String,
    /// Shortest time that the probe's loop took in a guest, in milliseconds, if it ran to completion.
    pub measured_ms: Option<f64>,
    /// The lowest figures of the probe.
    pub costs: Option<Costs>,
    /// The verdict is from an earlier measurement since the host's boot.
    #[serde(skip)]
    pub cached: bool,
}
