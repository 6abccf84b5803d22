//! How commands run.

use std::fs::File;
use std::path::PathBuf;

use pyro_wire::WORKSPACE;

/// Where and how an agent runs commands.
#[derive(Debug)]
pub struct CommandSettings {
    /// The directory that is made if a command starts there, and that relative paths of copies are in.
    pub workspace: PathBuf,
    /// The shell, which takes `-lc` and a command.
    pub shell: PathBuf,
    /// The kernel's file with the OOM score of the agent, open for writing. The agent is exempt from the OOM killer, and
    /// gives that up while it starts a command. `None`: it is not exempt.
    pub oom_score_adj: Option<File>,
}

impl CommandSettings {
    /// Returns the settings of every guest.
    pub(crate) fn of_guest(oom_score_adj: File) -> Self {
        Self { workspace: WORKSPACE.into(), shell: "/bin/sh".into(), oom_score_adj: Some(oom_score_adj) }
    }
}
