//! The agent: sets the machine up, then serves requests, one yamux stream each, until the channel closes.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::poll_fn;
use pyro_wire::{
    CHANNEL_WRITE_BYTES, Connect, Exec, Failure, Frame, FrameCodec, Halt, HaltReply, Identify, IdentifyReply,
    Input, List, MakeDirectory, Mount, Move, Pack, Probe, Remove, Request, Resize, Signal, Stat, Unpack,
    Watch,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio_util::codec::Framed;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, Mode};

use crate::blocking::blocking;
use crate::exec::{CommandSettings, Commands};
use crate::failure::{During, refused};
use crate::machine::VirtualMachine;
use crate::memory::Pressure;
use crate::mount::Mounts;
use crate::port::Port;
use crate::proc::Proc;
use crate::stream::{RequestStream, accept, answer, finish};
use crate::{HandshakeError, Machine, boot, connect, copy, exec, files, handshake, mount, probe};

/// Time limit for processes to end while directories of the host are still mounted.
const PROCESS_LIMIT: Duration = Duration::from_secs(4);

/// Why the agent ended, if not because the host closed the channel.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A step before the first request failed.
    #[error(transparent)]
    Start(#[from] Failure),
    /// The machine was not set up.
    #[error("setting the machine up: {0}")]
    Handshake(#[from] HandshakeError),
    /// The channel failed, or the host does not follow the protocol.
    #[error("serving the channel: {0}")]
    Channel(#[from] ConnectionError),
}

/// Runs in the guest until the host is gone.
pub(crate) fn run() -> ExitCode {
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("starting the runtime")
        .map_err(AgentError::from)
        .and_then(|runtime| {
            let result = runtime.block_on(live());
            // A thread may wait for a file system that does not respond.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pyro-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn live() -> Result<(), AgentError> {
    let mut channel = boot::open_channel()?;
    let proc = Proc::open()?;
    let exempted = exec::prepare_agent(&proc)?;
    if let Some(pressure) = Pressure::of_machine(&proc)? {
        tokio::spawn(relieve(pressure));
    }
    let settings = CommandSettings::of_guest(exempted).during("opening the agent's executable")?;
    let commands = Arc::new(Commands::new(settings));
    let own_proc = Arc::new(proc.try_clone().during("opening /proc")?);
    let mut machine = VirtualMachine::new(proc, Arc::clone(&commands), channel.packet_port());
    handshake::set_up(&mut channel, &mut machine).await?;
    Agent::with(machine, commands, Some(own_proc)).serve(port(channel.into_file())?).await
}

/// Keeps a lack of memory from holding the machine up forever.
async fn relieve(pressure: Pressure) {
    let Err(error) = pressure.relieve().await;
    eprintln!("pyro-guest: watching the memory's pressure: {error}");
}

fn port(channel: File) -> Result<Port, Failure> {
    let step = "preparing the channel";
    fcntl_setfl(&channel, fcntl_getfl(&channel).during(step)? | OFlags::NONBLOCK).during(step)?;
    Port::new(channel).during(step)
}

/// Serves the requests of a host.
#[derive(Debug)]
pub struct Agent<M> {
    shared: Arc<Shared<M>>,
}

#[derive(Debug)]
struct Shared<M> {
    commands: Arc<Commands>,
    mounts: Mounts,
    /// Absent where nothing can be mounted.
    proc: Option<Arc<Proc>>,
    state: Mutex<State<M>>,
}

#[derive(Debug)]
struct State<M> {
    machine: M,
    /// A halt was begun; the machine can no longer become another one.
    halting: bool,
}

impl<M: Machine> Agent<M> {
    /// An agent of a machine that is set up. It mounts nothing, because it has no view of the mounts.
    pub fn new(machine: M, settings: CommandSettings) -> Self {
        Self::with(machine, Arc::new(Commands::new(settings)), None)
    }

    /// An agent whose commands may have begun.
    pub(crate) fn with(machine: M, commands: Arc<Commands>, proc: Option<Arc<Proc>>) -> Self {
        let state = Mutex::new(State { machine, halting: false });
        Self { shared: Arc::new(Shared { commands, mounts: Mounts::default(), proc, state }) }
    }

    /// Serves requests until the host closes the channel, which ends all running commands.
    ///
    /// # Errors
    /// The channel failed, or the host does not follow the protocol.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, channel: S) -> Result<(), AgentError> {
        // yamux flushes it after each of its frames.
        let channel = BufWriter::with_capacity(CHANNEL_WRITE_BYTES, channel);
        let mut connection = Connection::new(channel.compat(), Config::default(), Mode::Server);
        while let Some(stream) = poll_fn(|context| connection.poll_next_inbound(context)).await {
            let stream = Framed::new(stream?.compat(), FrameCodec::default());
            tokio::spawn(Arc::clone(&self.shared).handle(stream));
        }
        Ok(())
    }
}

impl<M: Machine> Shared<M> {
    async fn handle<S>(self: Arc<Self>, mut stream: RequestStream<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A host that gives up or does not follow the protocol gets no answer; dropping the stream resets it.
        let Some(Ok(Frame::Control(request))) = stream.next().await else { return };
        match request {
            Request::Exec(request) => {
                let request = exec::with_variables(request, self.state().machine.variables());
                exec::serve(request, &self.commands, accept::<_, Exec>(stream)).await;
            }
            Request::Input(request) => {
                exec::serve_input(request, self.commands.running(), accept::<_, Input>(stream)).await;
            }
            Request::Resize(request) => {
                answer(accept::<_, Resize>(stream), self.commands.running().resize(request)).await;
            }
            Request::Signal(request) => {
                answer(accept::<_, Signal>(stream), self.commands.running().signal(request)).await;
            }
            Request::Pack(request) => {
                copy::pack(request, &self.commands.settings.workspace, accept::<_, Pack>(stream)).await;
            }
            Request::Unpack(request) => {
                copy::unpack(request, &self.commands.settings.workspace, accept::<_, Unpack>(stream)).await;
            }
            Request::Stat(request) => {
                answer(accept::<_, Stat>(stream), files::stat(request, self.workspace())).await;
            }
            Request::List(request) => {
                files::list(request, &self.workspace(), accept::<_, List>(stream)).await;
            }
            Request::Move(request) => {
                answer(accept::<_, Move>(stream), files::moves::rename(request, self.workspace())).await;
            }
            Request::Remove(request) => {
                answer(accept::<_, Remove>(stream), files::remove::remove(request, self.workspace())).await;
            }
            Request::MakeDirectory(request) => {
                let made = files::make_directory(request, self.workspace());
                answer(accept::<_, MakeDirectory>(stream), made).await;
            }
            Request::Watch(request) => {
                files::watch::serve(request, &self.workspace(), accept::<_, Watch>(stream)).await;
            }
            Request::Connect(request) => connect::serve(request, accept::<_, Connect>(stream)).await,
            Request::Probe(request) => {
                answer(accept::<_, Probe>(stream), probe::answer(request)).await;
            }
            Request::Mount(request) => {
                mount::serve(request, &self.mounts, self.proc.clone(), accept::<_, Mount>(stream)).await;
            }
            Request::Identify(request) => {
                let reply = self.identify(&request);
                finish(accept::<_, Identify>(stream), reply).await;
            }
            Request::Halt => {
                // The agent passes on what is written to the directories of the host, which it cannot do once it halts. What
                // processes write before their end must not land below them on the machine's own disk.
                self.end_processes().await;
                self.mounts.end_all().await;
                let reply = self.halt();
                finish(accept::<_, Halt>(stream), reply).await;
            }
        }
    }

    fn workspace(&self) -> PathBuf {
        self.commands.settings.workspace.clone()
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identify(&self, Identify(bootstrap): &Identify) -> IdentifyReply {
        let mut state = self.state();
        let identified = if state.halting {
            Err(refused("naming the machine", "the machine is halting"))
        } else {
            state.machine.identify(bootstrap)
        };
        match identified {
            Ok(()) => IdentifyReply::Identified,
            Err(failure) => IdentifyReply::Failed(failure),
        }
    }

    /// Ends all processes, for a limited time: one that waits for a directory of the host ends when that is unmounted.
    async fn end_processes(&self) {
        let end = {
            let mut state = self.state();
            state.halting = true;
            state.machine.process_end()
        };
        let ended = blocking(move || {
            end();
            Ok::<_, Failure>(())
        });
        let _ = tokio::time::timeout(PROCESS_LIMIT, ended).await;
    }

    fn halt(&self) -> HaltReply {
        let mut state = self.state();
        state.halting = true;
        match state.machine.halt() {
            Ok(()) => HaltReply::Halted,
            Err(failure) => HaltReply::Failed(failure),
        }
    }
}
