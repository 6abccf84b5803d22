//! Servers in the guest, and whether they are ready.

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    ConnectInput, ConnectReply, FileInfo, FileKind, Frame, NoInput, Probe, ProbeReply, Request, Stat,
    StatReply,
};

use super::super::World;
use super::{GuestStream, failure};

/// The port on which the guest has an HTTP server, which answers 503 until it is ready and then with a redirection.
pub(in crate::server::tests) const HTTP_PORT: u16 = 8080;

async fn respond(
    stream: &mut GuestStream<ConnectInput, ConnectReply>,
    world: &World,
) -> Option<ConnectReply> {
    let Frame::Output(kind, request) = stream.next().await?.ok()? else { return None };
    let status = match world.is_ready.get() {
        true => "302 Found",
        false => "503 Service Unavailable",
    };
    world.steered.borrow_mut().push((0, String::from_utf8_lossy(&request).into_owned()));
    let answer = format!("HTTP/1.1 {status}\r\nLocation: /\r\nContent-Length: 1000000\r\n\r\n");
    stream.send(Frame::Output(kind, answer.into())).await.ok()?;
    // Its body never comes.
    std::future::pending().await
}

/// The port on which the guest has a server, which sends back what it gets.
pub(in crate::server::tests) const SERVED_PORT: u16 = 80;

async fn echo(stream: &mut GuestStream<ConnectInput, ConnectReply>) -> Option<ConnectReply> {
    loop {
        match stream.next().await?.ok()? {
            Frame::Output(kind, bytes) => stream.send(Frame::Output(kind, bytes)).await.ok()?,
            Frame::Control(ConnectInput::Finished) => return Some(ConnectReply::Finished),
        }
    }
}

/// Connects to one of the servers.
pub(super) async fn connect(mut stream: GuestStream<ConnectInput, ConnectReply>, port: u16, world: &World) {
    let reply = match port {
        SERVED_PORT => echo(&mut stream).await,
        HTTP_PORT => respond(&mut stream, world).await,
        _ => Some(ConnectReply::Failed(failure("connecting", "refused"))),
    };
    if let Some(reply) = reply {
        let _ = stream.send(Frame::Control(reply)).await;
        let _ = stream.close().await;
    }
}

/// Describes a file, which is there once everything is ready.
pub(super) async fn describe(mut stream: GuestStream<NoInput, StatReply>, stat: Stat, world: &World) {
    let info = FileInfo {
        path: stat.path.clone(),
        kind: FileKind::Special,
        size: 0,
        mode: 0o600,
        uid: 0,
        gid: 0,
        modified_ms: 0,
        target: None,
    };
    world.probes.borrow_mut().push(Request::Stat(stat));
    let reply = match world.is_ready.get() {
        true => StatReply::Found(info),
        false => StatReply::Failed(failure("looking", "not there")),
    };
    let _ = stream.send(Frame::Control(reply)).await;
}

/// Looks whether a server listens.
pub(super) async fn look(mut stream: GuestStream<NoInput, ProbeReply>, probe: Probe, world: &World) {
    world.probes.borrow_mut().push(Request::Probe(probe));
    let reply = match world.is_ready.get() {
        true => ProbeReply::Ready,
        false => ProbeReply::NotReady(failure("looking", "not there")),
    };
    let _ = stream.send(Frame::Control(reply)).await;
}
