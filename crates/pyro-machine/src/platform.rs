//! What can run machines, and what a running machine can do.
//!
//! Both traits are dispatched statically. Their futures need not be `Send`: a machine belongs to one thread, whose
//! `tokio::task::LocalSet` runs its tasks. See `docs/design/0014-platform-trait.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyro_confine::Confinement;

use crate::channel::Channel;
use crate::console::Console;
use crate::exit::{Exit, Interrupted, Interruption};
use crate::hardware::{Hardware, Launch};
use crate::meter::Meter;
use crate::network::{Network, NetworkDescription, NetworkError, Provider};

/// Prefix of the names of the files in which [`Platform::fingerprint`] caches its results.
pub const CACHED_FINGERPRINT_PREFIX: &str = "vmm-";

/// Time limit for noticing that a machine whose connections have closed has ended.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(1);

/// Runs machines: a virtual machine monitor, or a fake in tests.
#[expect(
    async_fn_in_trait,
    reason = "machines live on one thread; callers are generic, so no future must be Send"
)]
pub trait Platform {
    /// A machine on this platform.
    type Machine: Machine;

    /// Returns what the platform can do at all, whatever its version.
    fn capabilities(&self) -> Capabilities;

    /// Returns what a machine's saved state depends on. `cache` is a directory, created when needed, that caches
    /// results that take long to find, in files whose names start with [`CACHED_FINGERPRINT_PREFIX`].
    ///
    /// # Errors
    /// The platform cannot be queried.
    async fn fingerprint(&self, hardware: &Hardware, cache: &Path) -> Result<Fingerprint, FingerprintError>;

    /// Returns whether [`Platform::fingerprint`] answers without starting a process.
    fn is_fingerprint_cached(&self, hardware: &Hardware, cache: &Path) -> bool;

    /// Starts what carries a machine's packets, for [`Launch::network`].
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left running then.
    fn start_network(&self, provider: Provider) -> Result<Network, NetworkError>;

    /// Starts a machine. Returns when the machine executes its kernel, or is ready for [`Machine::restore`]. Call it
    /// within a `LocalSet`, on a thread that lives as long as the process: the machine is killed when the thread that
    /// started it ends. Dropping the future leaves no process behind.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left running then. The machine's output is in [`Launch::console`].
    async fn launch(&self, launch: Launch) -> Result<Self::Machine, LaunchError>;
}

/// A machine that was started. Dropping it kills it, without waiting for its end.
#[expect(
    async_fn_in_trait,
    reason = "machines live on one thread; callers are generic, so no future must be Send"
)]
pub trait Machine {
    /// Returns what delivers the byte stream to the guest agent. `None` from the second call on.
    fn take_channel(&mut self) -> Option<Channel>;

    /// Loads the state of the devices from the file `state`. The machine, launched with
    /// [`Start::Saved`](crate::Start::Saved), runs afterwards.
    ///
    /// # Errors
    /// [`MachineError`], explained by the machine's end as [`while_alive`] does; the machine is unusable then.
    async fn restore(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>>;

    /// Saves the state of the devices in the file `state`. The machine, launched from its kernel with memory in a file,
    /// is stopped permanently afterwards; memory and disk are in their files.
    ///
    /// # Errors
    /// As [`Machine::restore`]; the file's content is unusable then.
    async fn save(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>>;

    /// Waits for the machine's end. Dropping the future loses nothing, and later calls return the same. A machine that its
    /// VMM has paused by itself is ended.
    ///
    /// If the network fails meanwhile, the machine continues without it, and its console says why.
    async fn exited(&mut self) -> Exit;

    /// Waits for the first event that prevents a machine from becoming the VM of a caller: its end, or the end of what
    /// carries its network. Dropping the future loses nothing.
    async fn interrupted(&mut self) -> Interruption;

    /// Kills the machine and what carries its network, and waits until both are gone. Further calls have no effect.
    async fn kill(&mut self);

    /// Returns the machine's console.
    fn console(&self) -> &Console;

    /// Returns its network. `None`: it has none that leads anywhere.
    fn network(&self) -> Option<&NetworkDescription>;

    /// Returns what confines the process that runs it.
    fn confinement(&self) -> &Confinement;

    /// Returns what confines the process that carries its packets, if there is one and it has reported that.
    fn network_confinement(&self) -> Option<Confinement> {
        None
    }

    /// Returns the meter of the process that runs it, if there is one.
    fn meter(&self) -> Option<Meter> {
        None
    }
}

/// What a platform can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Machines can be saved, and started from their saved state.
    pub snapshots: bool,
}

/// What must be equal for saved state to fit another machine, as far as the platform determines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// How the platform assembles such a machine, without the paths of one machine.
    pub arrangement: Vec<String>,
    /// The version that the platform reports.
    pub version: String,
    /// Machines of this version can be saved.
    pub saves_machines: bool,
}

/// Does `work`, which needs a living machine. If the machine ends at the same time, its end explains the failure of the
/// work: when the machine dies, the closed connection may be noticed first, but the exit says more.
///
/// # Errors
/// [`Interrupted`].
pub async fn while_alive<M: Machine, T, E: std::error::Error + 'static>(
    machine: &mut M,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Interrupted<E>> {
    let cause = tokio::select! {
        done = work => match done {
            Ok(value) => return Ok(value),
            Err(cause) => cause,
        },
        interruption = machine.interrupted() => return Err(match interruption {
            Interruption::Exit(exit) => Interrupted::Exited(exit),
            Interruption::Network(error) => Interrupted::Network(error),
        }),
    };
    Err(match tokio::time::timeout(END_LIMIT, machine.exited()).await {
        // The work failed because the machine was ended.
        Ok(exit @ Exit::Paused { .. }) => Interrupted::Exited(exit),
        Ok(exit) => Interrupted::FailedByExit { exit, cause },
        Err(_) => Interrupted::Failed(cause),
    })
}

/// Why the platform's fingerprint is unknown.
#[derive(Debug, thiserror::Error)]
pub enum FingerprintError {
    /// The program was not found.
    #[error("cannot examine {}", path.display())]
    Examine {
        /// The program.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The program does not report its version, or not in time.
    #[error("cannot determine the version of {}", program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
    },
    /// The directory for cached results could not be created.
    #[error("cannot make {}", path.display())]
    Cache {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Why a machine was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A connection to the machine could not be created.
    #[error("cannot make a socket pair")]
    Connection(#[source] io::Error),
    /// Its program could not be started.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file that it needs cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The platform has only machines with KVM.
    #[error("Firecracker needs KVM")]
    NeedsKvm,
    /// Its process could not be set up.
    #[error("cannot confine {}", program.display())]
    Confine {
        /// The program.
        program: PathBuf,
        /// Why it failed.
        #[source]
        source: pyro_confine::StartError,
    },
    /// The launch requires a full confinement, and this host does not give all of it.
    #[error("this host cannot confine the VMM fully: {missing}")]
    NotFullyConfined {
        /// What is missing, and why.
        missing: String,
    },
    /// It was started, and then failed.
    #[error(transparent)]
    Failed(#[from] Interrupted<MachineError>),
}

/// Why a machine did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It was not started in a way that lets it be saved or restored.
    #[error("no control connection")]
    NoControl,
    /// It no longer listens.
    #[error("the VMM closed its control connection")]
    Closed,
    /// The connection to it failed.
    #[error("the VMM's control connection failed")]
    Connection(#[source] io::Error),
    /// It sent an invalid message.
    #[error("unexpected message from the VMM on its control connection")]
    Malformed(#[source] serde_json::Error),
    /// It refused.
    #[error("the VMM refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// Why it refused, as it reported.
        reason: String,
    },
    /// It failed while saving its state.
    #[error("the VMM could not save its state: {status}")]
    NotSaved {
        /// How saving ended, as it reported.
        status: String,
    },
}
