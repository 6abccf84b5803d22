//! One Firecracker process.

use std::path::Path;
use std::sync::Arc;

use pyro_confine::{Confinement, Group};
use tokio::net::UnixListener;

use super::api::Api;
use super::scratch::Scratch;
use super::{Started, plan};
use crate::channel::Channel;
use crate::console::Console;
use crate::exit::{Exit, Interrupted, Interruption};
use crate::meter::Meter;
use crate::network::{Network, NetworkDescription};
use crate::platform::{END_LIMIT, Machine, MachineError, while_alive};
use crate::qemu::process::VmmProcess;

/// A Firecracker process with what carries its network. Dropping it kills both.
#[derive(Debug)]
pub struct FirecrackerMachine {
    process: VmmProcess,
    confinement: Confinement,
    agent: Option<UnixListener>,
    api: Option<Api>,
    network: Option<Network>,
    /// The network failed after the start, and the console says so.
    network_lost: bool,
    console: Console,
    /// Its control group. Dropped after the process.
    group: Option<Arc<Group>>,
    /// Removed after the process was killed.
    scratch: Option<Scratch>,
}

impl FirecrackerMachine {
    /// For a process that was just started. What it prints is read by tasks of the `LocalSet` that this is called in.
    pub(super) fn new(
        started: Started,
        network: Option<Network>,
        console: Console,
        group: Option<Arc<Group>>,
    ) -> Self {
        let Started { mut process, confinement, scratch, agent } = started;
        for pipe in process.output.drain(..) {
            tokio::task::spawn_local(console.follow(pipe));
        }
        Self {
            process,
            confinement,
            agent: Some(agent),
            api: None,
            network,
            network_lost: false,
            console,
            group,
            scratch: Some(scratch),
        }
    }

    /// Returns its process ID.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until both processes are confined.
    ///
    /// # Errors
    /// One is not fully confined, for these reasons.
    pub(super) async fn fully_confined(&self) -> Result<(), String> {
        if !self.confinement.is_full() {
            let missing = self.confinement.missing().into_iter();
            return Err(missing
                .map(|(layer, reason)| format!("{layer} ({reason})"))
                .collect::<Vec<_>>()
                .join(", "));
        }
        match &self.network {
            Some(network) => network.fully_confined().await,
            None => Ok(()),
        }
    }

    /// Adds the control connection.
    pub(super) fn control_with(&mut self, api: Api) {
        self.api = Some(api);
    }
}

impl Machine for FirecrackerMachine {
    fn take_channel(&mut self) -> Option<Channel> {
        self.agent.take().map(Channel::Awaited)
    }

    /// The file is the one that the machine was launched with.
    async fn restore(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        // If this is cancelled half-way, the machine's state is unknown, and it cannot be sent another command.
        let mut api = self.api.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        while_alive(self, api.request(plan::restore())).await?;
        self.api = Some(api);
        Ok(())
    }

    /// The file is the one that the machine was launched with.
    async fn save(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        let mut api = self.api.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        let save = async {
            for request in plan::save() {
                api.request(request).await?;
            }
            Ok(())
        };
        while_alive(self, save).await
    }

    async fn exited(&mut self) -> Exit {
        if !self.network_lost {
            let error = match self.interrupted().await {
                Interruption::Exit(exit) => return exit,
                Interruption::Network(error) => error,
            };
            // A machine that ends closes the link before its process is gone. That is not a loss of the network.
            if let Ok(exit) = tokio::time::timeout(END_LIMIT, exited(&mut self.process)).await {
                return exit;
            }
            self.network_lost = true;
            tracing::warn!(%error, "a running machine has lost its network");
            self.console.print(format!("\n[the network is lost: {error}]\n").as_bytes());
        }
        exited(&mut self.process).await
    }

    async fn interrupted(&mut self) -> Interruption {
        let Self { process, network, .. } = self;
        let network_failed = async {
            match network {
                Some(network) => network.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Its end closes the link, which ends what carries the network.
            biased;
            exit = exited(process) => Interruption::Exit(exit),
            error = network_failed => Interruption::Network(error),
        }
    }

    async fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill().await;
        if let Some(network) = &mut self.network {
            network.stop().await;
        }
        self.group = None;
        self.scratch = None;
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn network(&self) -> Option<&NetworkDescription> {
        self.network.as_ref()?.description()
    }

    fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    fn network_confinement(&self) -> Option<Confinement> {
        self.network.as_ref()?.confinement()
    }

    fn meter(&self) -> Option<Meter> {
        Some(Meter::of_process(self.id()))
    }
}

async fn exited(process: &mut VmmProcess) -> Exit {
    match process.wait().await {
        Ok(status) => Exit::Status(status),
        Err(error) => Exit::Lost { reason: error.to_string() },
    }
}
