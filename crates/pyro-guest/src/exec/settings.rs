//! How commands run.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use pyro_wire::WORKSPACE;

use super::cgroup::ControlGroups;
use super::environment::LoginEnvironments;
use super::running::Running;

/// How long the profile of a login shell may take.
const PROFILE_LIMIT: Duration = Duration::from_secs(5);

/// Where and how an agent runs commands.
#[derive(Debug)]
pub struct CommandSettings {
    /// The directory that is made if a command starts there, and that relative paths of copies are in.
    pub workspace: PathBuf,
    /// The shell of commands that name none.
    pub shell: PathBuf,
    /// The directory with the accounts and the profile of login shells.
    pub etc: PathBuf,
    /// The executable of this program, which writes the environment of a login shell.
    pub agent: File,
    /// How long the profile of a login shell may take.
    pub profile_limit: Duration,
    /// Where the hierarchy of control groups is mounted. `None`: commands have none.
    pub control_groups: Option<PathBuf>,
    /// The process file system, where a command gives up the agent's exemption from the OOM killer. `None`: the agent is not
    /// exempt.
    pub proc: Option<OwnedFd>,
}

impl CommandSettings {
    /// Returns the settings of every guest, for a program with this executable.
    pub fn new(agent: File) -> Self {
        Self {
            workspace: WORKSPACE.into(),
            shell: "/bin/sh".into(),
            etc: "/etc".into(),
            agent,
            profile_limit: PROFILE_LIMIT,
            control_groups: None,
            proc: None,
        }
    }

    /// Returns the settings of a guest whose agent was exempted from the OOM killer.
    pub(crate) fn of_guest(proc: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            control_groups: Some("/sys/fs/cgroup".into()),
            proc: Some(proc),
            ..Self::new(File::open("/proc/self/exe")?)
        })
    }
}

/// What an agent knows of its commands.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) settings: CommandSettings,
    pub(super) environments: LoginEnvironments,
    pub(super) running: Running,
    groups: OnceLock<ControlGroups>,
}

impl Commands {
    pub(crate) fn new(settings: CommandSettings) -> Self {
        Self {
            settings,
            environments: LoginEnvironments::default(),
            running: Running::default(),
            groups: OnceLock::new(),
        }
    }

    /// Returns the commands that run.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Forgets what must differ between machines that were made from the same template.
    pub(crate) fn forget_environments(&self) {
        self.environments.clear();
    }

    /// Returns the control groups, which are opened for the first command.
    pub(super) fn groups(&self) -> &ControlGroups {
        self.groups.get_or_init(|| match &self.settings.control_groups {
            None => ControlGroups::default(),
            Some(hierarchy) => ControlGroups::open(hierarchy).unwrap_or_else(|error| {
                eprintln!("pyro-guest: commands run without control groups: {error}");
                ControlGroups::default()
            }),
        })
    }
}
