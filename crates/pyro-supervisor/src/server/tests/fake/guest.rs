//! The guest's side of the channel.

mod commands;
pub(super) mod mounts;
pub(super) mod services;

use std::rc::Rc;
use std::time::Duration;

use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_wire::{
    ArchiveReply, ArchiveReport, Connect, Failure, FailureKind, Frame, FrameCodec, HaltReply, IdentifyReply,
    Input, NoInput, Pack, Request, Resize, Signal, SteerReply, Unpack,
};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::codec::Framed;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use super::super::hostile_agent;
use super::{Fact, World};

/// The stream of a request, once that is read.
type GuestStream<In, Reply> = Framed<Compat<yamux::Stream>, FrameCodec<In, Reply>>;

/// A guest that understands `sleep MS`, `fail MS`, which ends with exit code 3, `stubborn MS`, which does not end when asked to, `print BYTES`, which then waits
/// to be ended and is slow to end, `flood BYTES`, which prints and ends at once when asked to, `burst BYTES`, which prints and ends, `late`, which reaches its
/// time limit, `missing`, which cannot be started, `chatter`, which prints until its stream is closed, `leave`, which
/// closes its stream, `garbage`, which breaks the protocol, `cat`, which prints its input, `blocked MS`, which never reads
/// its input, a login shell, which waits to be ended, and anything else, which ends at once.
pub(super) async fn run_guest(channel: UnixStream, world: Rc<World>) {
    if let Some(attack) = world.conditions.attack {
        if hostile_agent::serve(channel, attack).await {
            world.note(Fact::TookTooMuch);
        }
        return;
    }
    let mut connection = Connection::new(channel.compat(), Config::default(), Mode::Server);
    // Everything that runs in a guest ends with it.
    let mut streams = JoinSet::new();
    let serve = async {
        while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await {
            streams.spawn_local(serve_stream(stream, Rc::clone(&world)));
        }
    };
    tokio::select! {
        () = serve => {}
        () = world.channel_loss.cancelled() => {}
    }
}

async fn serve_stream(stream: yamux::Stream, world: Rc<World>) {
    let mut stream = Framed::new(stream.compat(), FrameCodec::<Request, ()>::default());
    match stream.next().await {
        Some(Ok(Frame::Control(Request::Exec(exec)))) => {
            let mut stream = stream.map_codec(|_| FrameCodec::default());
            if let Some(reply) = commands::run(&mut stream, &exec, &world).await {
                let _ = stream.send(Frame::Control(reply)).await;
            }
        }
        Some(Ok(Frame::Control(Request::Halt))) => {
            sleep(Duration::from_millis(world.conditions.halt_ms)).await;
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, HaltReply>::default());
            world.halting.cancel();
            while world.mounted.get() > 0 {
                tokio::task::yield_now().await;
            }
            let reply = if world.conditions.halt_fails {
                HaltReply::Failed(failure("writing out", "I/O error"))
            } else {
                world.note(Fact::Halted);
                HaltReply::Halted
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        Some(Ok(Frame::Control(Request::Input(Input { command })))) => {
            world.steered.borrow_mut().push((command, "input".to_owned()));
            let mut stream = stream.map_codec(|_| FrameCodec::default());
            if let Some(reply) = commands::take_input(&mut stream, command, &world).await {
                let _ = stream.send(Frame::Control(reply)).await;
            }
        }
        Some(Ok(Frame::Control(Request::Resize(Resize { command, size })))) => {
            world.steered.borrow_mut().push((command, format!("{}x{}", size.columns, size.rows)));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, SteerReply>::default());
            let _ = stream.send(Frame::Control(SteerReply::Done)).await;
        }
        Some(Ok(Frame::Control(Request::Signal(Signal { command, signal })))) => {
            world.steered.borrow_mut().push((command, format!("signal {signal}")));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, SteerReply>::default());
            let reply = SteerReply::Failed(failure("signalling", "not permitted"));
            let _ = stream.send(Frame::Control(reply)).await;
        }
        // Neither answers nor reads what it is sent.
        Some(Ok(Frame::Control(Request::Unpack(Unpack { path, .. }) | Request::Pack(Pack { path, .. }))))
            if path == "silent" =>
        {
            std::future::pending().await
        }
        Some(Ok(Frame::Control(Request::Unpack(_)))) => {
            world.note(Fact::Began("copy".to_owned()));
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, ArchiveReply>::default());
            let reply = ArchiveReply::Archived(ArchiveReport::default());
            let _ = stream.send(Frame::Control(reply)).await;
            // The client sends the rest before it looks for an answer.
            while let Some(Ok(Frame::Output(..))) = stream.next().await {}
        }
        Some(Ok(Frame::Control(Request::Connect(Connect { port })))) => {
            services::connect(stream.map_codec(|_| FrameCodec::default()), port, &world).await;
        }
        Some(Ok(Frame::Control(Request::Stat(stat)))) => {
            services::describe(stream.map_codec(|_| FrameCodec::default()), stat, &world).await;
        }
        Some(Ok(Frame::Control(Request::Probe(probe)))) => {
            services::look(stream.map_codec(|_| FrameCodec::default()), probe, &world).await;
        }
        Some(Ok(Frame::Control(Request::Mount(mount)))) => {
            mounts::serve(&world, mount, stream.map_codec(|_| FrameCodec::default())).await;
        }
        Some(Ok(Frame::Control(Request::Identify(_)))) => {
            sleep(Duration::from_millis(world.conditions.identify_ms)).await;
            let mut stream = stream.map_codec(|_| FrameCodec::<NoInput, IdentifyReply>::default());
            let reply = if world.conditions.identity_fails {
                IdentifyReply::Failed(failure("setting the hostname", "read-only"))
            } else {
                IdentifyReply::Identified
            };
            let _ = stream.send(Frame::Control(reply)).await;
        }
        _ => {}
    }
}

fn failure(step: &str, cause: &str) -> Failure {
    let (step, cause) = (step.to_owned(), cause.to_owned());
    Failure { kind: FailureKind::Other, step, cause, errno: None }
}
