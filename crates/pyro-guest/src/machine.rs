//! What the agent does to its whole machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pyro_wire::{Bootstrap, Failure, Preparation};

use crate::exec::Commands;
use crate::failure::refused;
use crate::identity::{self, NameFiles};
use crate::proc::Proc;
use crate::{halt, host_settings, network, packets, root, warm_up};

/// The machine that the agent sets up, names and ends.
pub trait Machine: Send + 'static {
    /// Does what takes time and is the same in every machine of a kind.
    ///
    /// # Errors
    /// The step that failed; the machine is then of no use.
    fn prepare(&mut self, preparation: &Preparation) -> impl Future<Output = Result<(), Failure>>;

    /// Does what makes this machine different from its siblings. Only after [`Self::prepare`].
    ///
    /// # Errors
    /// The step that failed; the machine is then of no use.
    fn apply(&mut self, bootstrap: &Bootstrap) -> impl Future<Output = Result<(), Failure>>;

    /// Makes it another machine, with the network it has. Only after [`Self::apply`].
    ///
    /// # Errors
    /// The step that failed; the machine is then of no use.
    fn identify(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure>;

    /// Returns the variables of commands, which their callers may override.
    fn variables(&self) -> BTreeMap<String, String>;

    /// Returns what ends every other process. It blocks, and may be called on any thread before [`Self::halt`].
    fn process_end(&self) -> Box<dyn FnOnce() + Send>;

    /// Ends every other process, writes everything to disk and makes it read-only. Blocks.
    ///
    /// # Errors
    /// The step that failed; something may not be on disk.
    fn halt(&mut self) -> Result<(), Failure>;
}

/// The virtual machine that the agent runs in.
pub(crate) struct VirtualMachine {
    proc: Proc,
    commands: Arc<Commands>,
    /// Present from its preparation until it halts: its root cannot be sealed while they are open.
    names: Option<NameFiles>,
    /// Those of commands.
    variables: BTreeMap<String, String>,
    /// The host's vsock port for its packets. `None`: its VMM gives it an interface.
    packet_port: Option<u32>,
}

impl VirtualMachine {
    pub(crate) fn new(proc: Proc, commands: Arc<Commands>, packet_port: Option<u32>) -> Self {
        Self { proc, commands, names: None, variables: BTreeMap::new(), packet_port }
    }
}

impl Machine for VirtualMachine {
    async fn prepare(&mut self, preparation: &Preparation) -> Result<(), Failure> {
        root::enter(preparation)?;
        self.names = Some(NameFiles::open(Path::new("/etc"))?);
        network::bring_up_loopback().await?;
        if preparation.warm_up {
            warm_up::run(&self.commands).await;
        }
        Ok(())
    }

    async fn apply(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        self.identify(bootstrap)?;
        match &bootstrap.network {
            Some(config) => {
                self.packet_port.map_or(Ok(()), packets::start)?;
                network::configure(config).await
            }
            None => Ok(()),
        }
    }

    fn identify(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        let Some(names) = &self.names else {
            return Err(refused("naming the machine", "the machine is not running"));
        };
        // Those of a template were read before it had a clock, random numbers and a name of its own.
        self.commands.forget_environments();
        identity::apply_clock_and_seed(bootstrap)?;
        identity::set_host_name(bootstrap)?;
        names.fill(bootstrap)?;
        self.variables = host_settings::apply(Path::new(host_settings::DIR), &bootstrap.host)?;
        Ok(())
    }

    fn variables(&self) -> BTreeMap<String, String> {
        self.variables.clone()
    }

    fn process_end(&self) -> Box<dyn FnOnce() + Send> {
        let proc = self.proc.try_clone();
        Box::new(move || match proc {
            Ok(proc) => halt::end_all_processes(&proc),
            // They are ended by the halt itself.
            Err(error) => eprintln!("pyro-guest: opening /proc: {error}"),
        })
    }

    fn halt(&mut self) -> Result<(), Failure> {
        self.names = None;
        halt::halt(&self.proc)
    }
}
