//! The supervisor process: it owns one machine from its start to its end.
//!
//! [`driver::Driver`] has the only event loop and performs what [`state::Life`] decides. It is generic over the
//! machine's boot, the store of records, and the wall clock, so that tests can try every order of events.

mod adoption;
mod commands;
mod driver;
mod mounts;
mod ports;
mod receive;
mod services;
mod state;
mod store;
#[cfg(test)]
pub(super) mod tests;
mod timer;

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_confine::Layer;
use pyro_machine::network::NetworkHelper;
use pyro_machine::{Firecracker, Machine, Platform, Qemu, Vmm};
use pyro_wire::{Frame, FrameCodec};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_util::codec::Framed;

pub(crate) use self::adoption::clear_claimed;
pub use self::commands::{CommandLog, STREAM_LIMIT, file_name, room};
use self::driver::{Driver, Message};
pub use self::ports::MAX_PORTS;
pub use self::store::{Store, StoreError};
use self::timer::WallClock;
use super::machine::{self, RunningMachine};
use super::protocol::{Event, GENERATION, Greeting, Launch, LifelineServer};
use super::{BootFailure, BootStage, EndReason};
use super::{dir, handover};
use crate::mount::MountSockets;
use crate::spec::{LaunchSpec, Purpose};
use crate::stages::Reporter;

/// Time limit for a client or a starter to take a message of a few bytes.
const REPLY_LIMIT: Duration = Duration::from_secs(3);

/// Boots machines.
pub(crate) trait Boot {
    /// A running machine.
    type Machine: Machine;

    /// Boots a machine until its guest takes commands, and reports which step it is at. Dropping the future, or an error,
    /// leaves no process behind.
    async fn boot(
        &self,
        spec: &LaunchSpec,
        reporter: Reporter,
    ) -> Result<RunningMachine<Self::Machine>, BootFailure>;
}

/// A wall clock.
pub(crate) trait Clock: 'static {
    /// Returns when the wall clock reaches this time, in seconds since the epoch.
    async fn reaches(&self, unix_seconds: f64) -> io::Result<()>;
}

impl Clock for WallClock {
    async fn reaches(&self, unix_seconds: f64) -> io::Result<()> {
        timer::wall_clock_reaches(unix_seconds).await
    }
}

/// Boots machines of a platform, with the steps that a VM needs.
struct Booter<'a, P> {
    platform: P,
    tasks: &'a LocalSet,
}

impl<P: Platform> Boot for Booter<'_, P> {
    type Machine = P::Machine;

    async fn boot(
        &self,
        spec: &LaunchSpec,
        reporter: Reporter,
    ) -> Result<RunningMachine<P::Machine>, BootFailure> {
        let mut up = machine::boot(spec, &self.platform, self.tasks, reporter).await?;
        // No other program is started from now on.
        let restricted = pyro_confine::restrict_running_supervisor();
        match &restricted {
            Layer::Active => tracing::debug!("the supervisor has given up what only a start needs"),
            Layer::Unavailable { reason } => {
                tracing::warn!(reason, "the supervisor keeps rights that only a start needs");
            }
        }
        up.info.supervisor_restricted = Some(restricted);
        Ok(up)
    }
}

/// Runs the supervisor of one VM to its end. `lifeline` is the standard input that [`super::start`] made; it delivers
/// the [`LaunchSpec`]; `network_helper` carries the packets of the VM. Runs on a single-threaded runtime whose thread lives as long as the process: the machine is
/// killed when the thread that started it ends.
///
/// # Errors
/// The lifeline is invalid; nothing was started then.
pub async fn run<S: Store + 'static>(
    lifeline: OwnedFd,
    store: S,
    network_helper: NetworkHelper,
) -> io::Result<()> {
    pyro_confine::harden_supervisor();
    // A session of its own: keys typed at the caller's terminal are meant for the caller.
    let _ = rustix::process::setsid();
    let lifeline = std::os::unix::net::UnixStream::from(lifeline);
    lifeline.set_nonblocking(true)?;
    let Some((mut spec, lifeline)) = receive_launch(UnixStream::from_std(lifeline)?).await? else {
        return Ok(());
    };
    let mount_sockets = MountSockets::inherited(spec.mounts.len())?;
    spec.guest = handover::artifacts(&spec)?;
    // The environment must stay as long as a VM runs from it.
    let _in_use = spec.in_use_lock.as_deref().map(dir::use_shared).transpose().inspect_err(|error| {
        tracing::warn!(%error, "the VM's environment is not protected against removal");
    });
    let starter = Starter { lifeline, mount_sockets, signals: Signals::new()? };
    match spec.vmm {
        Vmm::Qemu => own(spec, Qemu::new().with_network_helper(network_helper), store, starter).await,
        Vmm::Firecracker => {
            own(spec, Firecracker::new().with_network_helper(network_helper), store, starter).await;
        }
    }
    Ok(())
}

/// What a supervisor gets from the process that starts it, besides the specification.
struct Starter {
    lifeline: LifelineServer,
    mount_sockets: Vec<OwnedFd>,
    signals: Signals,
}

/// Owns one machine of this platform until its end, or makes the template of such machines.
async fn own<P: Platform, S: Store + 'static>(spec: LaunchSpec, platform: P, store: S, starter: Starter) {
    let Starter { mut lifeline, mount_sockets, signals } = starter;
    let tasks = LocalSet::new();
    let owning = async {
        if spec.purpose == Purpose::Template {
            let event = make_template(&spec, &platform, &mut lifeline, &tasks, signals).await;
            // The starter may be gone, or may not read.
            let _ = lifeline.send(Frame::Control(event)).await;
            return;
        }
        let booter = Booter { platform, tasks: &tasks };
        let mut driver = Driver::new(spec, Rc::new(booter), Rc::new(store), Rc::new(WallClock))
            .with_mount_sockets(mount_sockets);
        driver.follow(lifeline);
        tokio::task::spawn_local(signals.forward(driver.inbox()));
        driver.run().await;
    };
    tasks.run_until(owning).await;
}

/// Receives the specification of what to start. Returns `None` if the starter is of another generation, after reporting
/// that to it.
async fn receive_launch(stream: UnixStream) -> io::Result<Option<(LaunchSpec, LifelineServer)>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no launch specification on standard input");
    let mut lifeline: LifelineServer = Framed::new(stream, FrameCodec::default());
    let hello = match lifeline.next().await {
        Some(Ok(Frame::Control(Launch::Hello(hello)))) => Some(hello),
        // A starter from before generations begins with something else.
        Some(Err(_)) => None,
        Some(Ok(_)) | None => return Err(invalid()),
    };
    if hello.is_none_or(|hello| hello.generation != GENERATION) {
        // A starter of any generation understands this.
        let own = Greeting::own();
        let cause = format!(
            "its supervisor runs version {}, and the process that starts it another one",
            own.version
        );
        let failure = BootFailure::at(BootStage::Vmm, cause);
        let _ = lifeline.send(Frame::Control(Event::Failed(failure))).await;
        return Ok(None);
    }
    // The process that started a spare may be gone already.
    let _ = lifeline.send(Frame::Control(Event::Hello(Greeting::own()))).await;
    match lifeline.next().await {
        Some(Ok(Frame::Control(Launch::Start(spec)))) => Ok(Some((*spec, lifeline))),
        _ => Err(invalid()),
    }
}

/// Ensures that there is a template for VMs like this one.
async fn make_template<P: Platform>(
    spec: &LaunchSpec,
    platform: &P,
    lifeline: &mut LifelineServer,
    tasks: &LocalSet,
    mut signals: Signals,
) -> Event {
    let (sender, mut stages) = mpsc::unbounded_channel();
    let reporter: Reporter = Rc::new(move |stage| {
        let _ = sender.send(stage);
    });
    let mut making = pin!(machine::make_template(spec, platform, tasks, reporter));
    let event = loop {
        tokio::select! {
            made = &mut making => break match made {
                Ok(()) => Event::TemplateReady,
                Err(failure) => Event::Failed(failure),
            },
            Some(stage) = stages.recv() => if spec.reports_stages {
                // The starter may not read.
                let _ = timeout(REPLY_LIMIT, lifeline.send(Frame::Control(Event::Stage(stage)))).await;
            },
            _ = lifeline.next() => break Event::Ended(EndReason::CallerGone),
            () = signals.any() => break Event::Ended(EndReason::Terminated),
        }
    };
    driver::remove_dir(&spec.dir);
    event
}

struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }

    async fn forward(mut self, inbox: driver::Inbox) {
        loop {
            self.any().await;
            inbox.post(Message::Input(state::Input::Signal));
        }
    }
}
