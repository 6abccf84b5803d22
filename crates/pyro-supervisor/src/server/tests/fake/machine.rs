//! Starts machines that are not there.

use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use pyro_machine::network::{NetworkDescription, NetworkError};
use pyro_machine::{
    Accelerator, Channel, Confinement, Console, Exit as MachineExit, Interrupted, Interruption, Machine,
    MachineError, Vmm,
};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::guest::run_guest;
use super::{Fact, World};
use crate::machine::RunningMachine;
use crate::mux;
use crate::server::Boot;
use crate::spec::LaunchSpec;
use crate::stages::Reporter;
use crate::{BootFailure, BootInfo, BootStage, StartMode, files};

pub(super) struct FakeBoot(pub(super) Rc<World>);

impl Boot for FakeBoot {
    type Machine = FakeMachine;

    async fn boot(
        &self,
        spec: &LaunchSpec,
        reporter: Reporter,
    ) -> Result<RunningMachine<FakeMachine>, BootFailure> {
        let world = Rc::clone(&self.0);
        reporter(BootStage::Kernel);
        sleep(Duration::from_millis(world.conditions.boot_ms)).await;
        if world.conditions.boot_fails {
            return Err(BootFailure::at(BootStage::Kernel, "panic"));
        }
        let (host, guest) = UnixStream::pair().unwrap();
        let (streams, driver) = mux::drive(host, spec.pace);
        spawn_local(driver);
        let guest = spawn_local(run_guest(guest, Rc::clone(&world)));
        world.is_alive.set(true);
        world.note(Fact::MachineUp);
        let info = BootInfo {
            kernel_release: "6.1".to_owned(),
            boot_ms: 1,
            accelerator: Accelerator::Tcg,
            vmm: Vmm::Qemu,
            network: None,
            ports: Vec::new(),
            confinement: None,
            network_confinement: None,
            supervisor_restricted: None,
            start_mode: StartMode::Cold,
            warning: None,
            stages: Vec::new(),
        };
        let console = Console::create(&spec.dir.join(files::SERIAL_LOG)).unwrap();
        let confinement = Confinement::none("there is no process");
        Ok(RunningMachine { machine: FakeMachine { world, guest, console, confinement }, streams, info })
    }
}

pub(super) struct FakeMachine {
    world: Rc<World>,
    guest: JoinHandle<()>,
    console: Console,
    confinement: Confinement,
}

impl FakeMachine {
    fn end(&self) {
        self.guest.abort();
        if self.world.is_alive.replace(false) {
            self.world.note(Fact::MachineGone);
        }
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.end();
    }
}

impl Machine for FakeMachine {
    fn take_channel(&mut self) -> Option<Channel> {
        None
    }

    async fn restore(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        unreachable!("no driver restores a machine")
    }

    async fn save(&mut self, _state: &Path) -> Result<(), Interrupted<MachineError>> {
        unreachable!("no driver saves a machine")
    }

    async fn exited(&mut self) -> MachineExit {
        self.world.machine_exit.notified().await;
        self.console.print(self.world.last_words.borrow().as_bytes());
        self.end();
        MachineExit::Status(ExitStatus::default())
    }

    async fn interrupted(&mut self) -> Interruption {
        let world = Rc::clone(&self.world);
        tokio::select! {
            biased;
            exit = self.exited() => Interruption::Exit(exit),
            () = world.network_loss.cancelled() => Interruption::Network(NetworkError::Ended {
                status: "signal: 9 (SIGKILL)".to_owned(),
                messages: "none".to_owned(),
            }),
        }
    }

    async fn kill(&mut self) {
        self.end();
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn network(&self) -> Option<&NetworkDescription> {
        None
    }

    fn confinement(&self) -> &Confinement {
        &self.confinement
    }
}
