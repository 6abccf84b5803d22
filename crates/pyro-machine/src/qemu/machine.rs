//! One QEMU process.

use std::path::Path;

use tokio::net::UnixStream;
use tokio::process::Child;

use super::qmp::Qmp;
use crate::console::Console;
use crate::exit::{Exit, Interrupted, Interruption};
use crate::network::{Network, NetworkDescription};
use crate::platform::{Machine, MachineError, while_alive};

/// A QEMU process with what carries its network. Dropping it kills both.
#[derive(Debug)]
pub struct QemuMachine {
    process: Child,
    channel: Option<UnixStream>,
    control: Option<Qmp>,
    network: Option<Network>,
    console: Console,
}

impl QemuMachine {
    /// For a process that was just started. What it prints is read by tasks of the `LocalSet` that this is called in.
    pub(super) fn new(
        mut process: Child,
        channel: UnixStream,
        network: Option<Network>,
        console: Console,
    ) -> Self {
        if let Some(stdout) = process.stdout.take() {
            tokio::task::spawn_local(console.follow(stdout));
        }
        if let Some(stderr) = process.stderr.take() {
            tokio::task::spawn_local(console.follow(stderr));
        }
        Self { process, channel: Some(channel), control: None, network, console }
    }

    /// Adds the control connection.
    pub(super) fn control_with(&mut self, qmp: Qmp) {
        self.control = Some(qmp);
    }
}

impl Machine for QemuMachine {
    fn take_channel(&mut self) -> Option<UnixStream> {
        self.channel.take()
    }

    async fn restore(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        // If this is given up half-way, nobody knows what the machine does: it cannot be sent another command.
        let mut control = self.control.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        while_alive(self, control.load(state)).await?;
        self.control = Some(control);
        Ok(())
    }

    async fn save(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        let mut control = self.control.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        while_alive(self, control.save(state)).await
    }

    async fn exited(&mut self) -> Exit {
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
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn network(&self) -> Option<&NetworkDescription> {
        self.network.as_ref()?.description()
    }
}

async fn exited(process: &mut Child) -> Exit {
    match process.wait().await {
        Ok(status) => Exit::Status(status),
        Err(error) => Exit::Lost { reason: error.to_string() },
    }
}
