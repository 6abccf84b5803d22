//! How commands run.

use std::path::PathBuf;

use pyro_wire::WORKSPACE;

/// Where the kernel takes the OOM score of the process that writes it.
pub(super) const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Where and how an agent runs commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSettings {
    /// The directory that is made if a command starts there, and that relative paths of copies are in.
    pub workspace: PathBuf,
    /// The shell, which takes `-lc` and a command.
    pub shell: PathBuf,
    /// The kernel's file with the OOM score of the agent, which is exempt and gives that up while it starts a command.
    /// Absent: it is not exempt.
    pub oom_score_adj: Option<PathBuf>,
}

impl CommandSettings {
    /// Those of every guest.
    pub(crate) fn of_guest() -> Self {
        Self {
            workspace: WORKSPACE.into(),
            shell: "/bin/sh".into(),
            oom_score_adj: Some(OOM_SCORE_ADJ.into()),
        }
    }
}
