//! One QEMU process.

use std::path::Path;
use std::sync::Arc;

use pyro_confine::{Confinement, Group};
use tokio::net::UnixStream;

use super::process::VmmProcess;
use super::qmp::{Pauses, Qmp};
use crate::channel::Channel;
use crate::console::Console;
use crate::exit::{Exit, Interrupted, Interruption};
use crate::meter::Meter;
use crate::network::{Network, NetworkDescription};
use crate::platform::{END_LIMIT, Machine, MachineError, while_alive};

/// A QEMU process with what carries its network. Dropping it kills both.
#[derive(Debug)]
pub struct QemuMachine {
    process: VmmProcess,
    confinement: Confinement,
    channel: Option<UnixStream>,
    /// Where it can be saved or restored.
    control: Option<Qmp>,
    pauses: Pauses,
    network: Option<Network>,
    /// The network failed after the start, and the console says so.
    network_lost: bool,
    console: Console,
    /// Its control group. Dropped after the processes.
    group: Option<Arc<Group>>,
}

impl QemuMachine {
    /// For a process that was just started. What it prints is read by tasks of the `LocalSet` that this is called in.
    pub(super) fn new(
        (mut process, confinement): (VmmProcess, Confinement),
        channel: UnixStream,
        pauses: Pauses,
        network: Option<Network>,
        console: Console,
    ) -> Self {
        for pipe in process.output.drain(..) {
            tokio::task::spawn_local(console.follow(pipe));
        }
        let channel = Some(channel);
        Self {
            process,
            confinement,
            channel,
            control: None,
            pauses,
            network,
            network_lost: false,
            console,
            group: None,
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

    /// Sets the control group, which is removed with the machine.
    pub(super) fn end_with(&mut self, group: Option<Arc<Group>>) {
        self.group = group;
    }

    /// Adds the control connection, for a machine that can be saved or restored.
    pub(super) fn control_with(&mut self, qmp: Qmp) {
        self.control = Some(qmp);
    }
}

impl Machine for QemuMachine {
    fn take_channel(&mut self) -> Option<Channel> {
        self.channel.take().map(Channel::Open)
    }

    async fn restore(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        // If this is cancelled half-way, the machine's state is unknown, and it cannot be sent another command.
        let control = self.control.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        while_alive(self, control.load(state)).await?;
        self.control = Some(control);
        Ok(())
    }

    async fn save(&mut self, state: &Path) -> Result<(), Interrupted<MachineError>> {
        let control = self.control.take().ok_or(Interrupted::Failed(MachineError::NoControl))?;
        while_alive(self, control.save(state)).await
    }

    async fn exited(&mut self) -> Exit {
        if !self.network_lost {
            let error = match self.interrupted().await {
                Interruption::Exit(exit) => return exit,
                Interruption::Network(error) => error,
            };
            // A machine that ends closes the link before its process is gone. That is not a loss of the network.
            let ended = exited(&mut self.process, &mut self.pauses);
            if let Ok(exit) = tokio::time::timeout(END_LIMIT, ended).await {
                return exit;
            }
            self.network_lost = true;
            tracing::warn!(%error, "a running machine has lost its network");
            self.console.print(format!("\n[the network is lost: {error}]\n").as_bytes());
        }
        exited(&mut self.process, &mut self.pauses).await
    }

    async fn interrupted(&mut self) -> Interruption {
        let Self { process, pauses, network, .. } = self;
        let network_failed = async {
            match network {
                Some(network) => network.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Its end closes the link, which ends what carries the network.
            biased;
            exit = exited(process, pauses) => Interruption::Exit(exit),
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

/// Waits for the end of the process, and ends it if it has paused its machine. Dropping the future loses nothing.
async fn exited(process: &mut VmmProcess, pauses: &mut Pauses) -> Exit {
    tokio::select! {
        biased;
        cause = pauses.next() => {
            // Fails only if it has ended already.
            let _ = process.kill().await;
            Exit::Paused { cause }
        }
        ended = process.wait() => match ended {
            Ok(status) => Exit::Status(status),
            Err(error) => Exit::Lost { reason: error.to_string() },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::OwnedFd;

    use pyro_confine::{Access, Identity, Policy, Program, Visible};
    use tokio::task::LocalSet;

    use super::*;

    /// A process that lives until the pipe's writer is closed.
    fn cat() -> ((VmmProcess, Confinement), io::PipeWriter) {
        let (stdin, writer) = io::pipe().unwrap();
        let visible = [("/bin/cat", Access::Execute), ("/lib", Access::Execute), ("/lib64", Access::Execute)];
        let null = || OwnedFd::from(std::fs::File::options().write(true).open("/dev/null").unwrap());
        let dir = tempfile::tempdir().unwrap();
        let policy = Policy {
            files: visible.map(|(path, access)| Visible::optional(path, access)).into(),
            staging: dir.path().to_owned(),
            identity: Identity::for_program(),
            syscalls: crate::qemu::cage::syscalls(),
            limits: Vec::new(),
            oom_score_adj: 0,
        };
        let program = Program {
            program: "/bin/cat".into(),
            arguments: Vec::new(),
            descriptors: vec![(OwnedFd::from(stdin), 0), (null(), 1), (null(), 2)],
            blocked_signals: Vec::new(),
            huge_pages: true,
        };
        let started = pyro_confine::start(program, &policy).unwrap();
        ((VmmProcess::new(started.process, []).unwrap(), started.confinement), writer)
    }

    #[tokio::test]
    async fn the_loss_of_the_network_interrupts_a_machine_that_no_caller_has() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let network = Network::with_script(dir.path(), "echo out of memory >&2; exit 9");
            let (process, _stdin) = cat();
            let (channel, _guest) = UnixStream::pair().unwrap();
            let mut machine =
                QemuMachine::new(process, channel, Pauses::none(), Some(network), Console::in_memory());
            for _ in 0..2 {
                let Interruption::Network(error) = machine.interrupted().await else { panic!("it is alive") };
                assert_eq!(error.to_string(), "the network process ended (exit status: 9): out of memory");
            }
            machine.kill().await;
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn the_loss_of_the_network_is_reported_and_does_not_end_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let work = async {
            let network = Network::with_script(dir.path(), "echo out of memory >&2; exit 9");
            let (process, stdin) = cat();
            let (channel, _guest) = UnixStream::pair().unwrap();
            let console = Console::in_memory();
            let mut machine =
                QemuMachine::new(process, channel, Pauses::none(), Some(network), console.clone());
            let lost = async {
                loop {
                    match console.tail().pop() {
                        Some(line) => break line,
                        None => tokio::task::yield_now().await,
                    }
                }
            };
            tokio::select! {
                exit = machine.exited() => panic!("{exit}"),
                line = lost => {
                    assert_eq!(line, "[the network is lost: the network process ended (exit status: 9): out of memory]");
                }
            }
            drop(stdin);
            assert_eq!(machine.exited().await.status(), "exit status: 0");
            assert_eq!(console.last_words().await.len(), 1, "it is reported once");
        };
        LocalSet::new().run_until(work).await;
    }
}
