//! The agent: boots the machine, then serves requests, one yamux stream each, until the channel closes.

use std::fs::File;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::poll_fn;
use pyro_wire::{Bootstrap, ExecFailure, Frame, FrameCodec, Preparation, Reply, Request};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio_util::codec::Framed;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use crate::fault::{During, Fault};
use crate::identity::NameFiles;
use crate::port::Port;
use crate::{boot, copy, exec, halt, handshake, identity, memory, network, root, warm_up};

/// A stream to the host, as frames.
pub(crate) type HostStream = Framed<tokio_util::compat::Compat<yamux::Stream>, FrameCodec<Request, Reply>>;

/// Runs until the host is gone.
pub(crate) fn run() -> ExitCode {
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("starting the runtime")
        .and_then(|runtime| runtime.block_on(live()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("pyro-guest: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn live() -> Result<(), Fault> {
    let mut channel = boot::open_channel()?;
    exec::prepare_agent()?;
    memory::prevent_thrashing()?;
    handshake::greet(&mut channel)?;
    let preparation = handshake::receive(&mut channel)?;
    let names = handshake::answer(&mut channel, prepare(&preparation).await)?;
    // A restored machine wakes up here, with all that it has read and mounted so far.
    let bootstrap = handshake::receive(&mut channel)?;
    handshake::answer(&mut channel, apply(&bootstrap, &names).await)?;
    serve(channel, Arc::new(Mutex::new(Some(names)))).await
}

/// What takes time and is the same in every machine of a kind.
async fn prepare(preparation: &Preparation) -> Result<NameFiles, Fault> {
    root::enter(preparation)?;
    let names = NameFiles::open()?;
    network::bring_up_loopback().await?;
    if preparation.warm_up {
        warm_up::run();
    }
    Ok(names)
}

/// What makes this machine different from its siblings.
async fn apply(bootstrap: &Bootstrap, names: &NameFiles) -> Result<(), Fault> {
    identify(bootstrap, names)?;
    match &bootstrap.network {
        Some(config) => network::configure(config).await,
        None => Ok(()),
    }
}

fn identify(bootstrap: &Bootstrap, names: &NameFiles) -> Result<(), Fault> {
    identity::apply_clock_and_seed(bootstrap)?;
    names.fill(bootstrap)
}

/// Shared by the requests; taken by the one that halts the machine, whose root cannot be sealed while they are open.
type SharedNames = Arc<Mutex<Option<NameFiles>>>;

async fn serve(channel: File, names: SharedNames) -> Result<(), Fault> {
    let step = "preparing the channel";
    fcntl_setfl(&channel, fcntl_getfl(&channel).during(step)? | OFlags::NONBLOCK).during(step)?;
    let port = Port::new(channel).during(step)?;
    let mut connection = Connection::new(port.compat(), Config::default(), Mode::Server);
    loop {
        match poll_fn(|context| connection.poll_next_inbound(context)).await {
            Some(Ok(stream)) => {
                tokio::spawn(handle(Framed::new(stream.compat(), FrameCodec::default()), Arc::clone(&names)));
            }
            Some(Err(error)) => {
                return Err(Fault { step: "serving the channel".into(), cause: error.to_string(), errno: 0 });
            }
            None => return Ok(()),
        }
    }
}

async fn handle(mut stream: HostStream, names: SharedNames) {
    use futures::StreamExt;
    match stream.next().await {
        Some(Ok(Frame::Control(Request::Exec(request)))) => exec::serve(request, stream).await,
        Some(Ok(Frame::Control(Request::Pack(request)))) => copy::pack(request, stream).await,
        Some(Ok(Frame::Control(Request::Unpack(request)))) => copy::unpack(request, stream).await,
        Some(Ok(Frame::Control(Request::Identify(bootstrap)))) => {
            let outcome = match &*names.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(names) => identify(&bootstrap, names),
                None => {
                    Err(Fault { step: "naming the machine".into(), cause: "it is halting".into(), errno: 0 })
                }
            };
            exec::finish(stream, reply_to(outcome, Reply::Identified)).await;
        }
        Some(Ok(Frame::Control(Request::Halt))) => {
            drop(names.lock().unwrap_or_else(PoisonError::into_inner).take());
            exec::finish(stream, reply_to(halt::halt(), Reply::Halted)).await;
        }
        // The host gave up or does not speak the protocol; dropping the stream resets it.
        Some(Ok(Frame::Control(Request::Terminate) | Frame::Output(..)) | Err(_)) | None => {}
    }
}

fn reply_to(outcome: Result<(), Fault>, done: Reply) -> Reply {
    match outcome {
        Ok(()) => done,
        Err(Fault { step, cause, errno }) => Reply::NotStarted(ExecFailure { step, errno, cause }),
    }
}
