//! Requests of clients: how the state machine sees them, and how they are served.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::BytesMut;
use futures::SinkExt;
use pyro_wire::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::codec::FramedParts;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::Driver;
use crate::mux::Streams;
use crate::protocol::{COPY_STEP_LIMIT, Reply, Request, ServerStream};
use crate::server::commands::reply;
use crate::server::ports::{PortError, Ports};
use crate::server::state::{self, ClientId, Refusal};
use crate::server::{Boot, Clock, REPLY_LIMIT, Store};
use crate::spec::{LaunchSpec, PortMapping, PublishedPort};

/// Bytes to read from a client at a time, at most.
const CHUNK_BYTES: usize = 16 * 1024;

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Serves the client's request.
    pub(super) fn serve(&mut self, client: ClientId) {
        let Some((request, client)) = self.clients.remove(&client) else { return };
        let Some(commands) = self.commands.clone() else { return };
        let Some(services) = self.services.clone() else { return };
        let streams = self.streams.clone();
        let ports = Recorder {
            ports: self.ports.clone(),
            store: Rc::clone(&self.store),
            vm_id: self.spec.vm_id.clone(),
        };
        let mounts = self.mount_recorder();
        spawn_local(async move {
            match request {
                Request::Copy => {
                    if let Some(streams) = streams {
                        join_guest(client, &streams).await;
                    }
                }
                Request::Run { exec, journal, detach } => commands.run(exec, journal, detach, client).await,
                Request::Watch { sequence, output } => commands.watch(sequence, output, client).await,
                Request::Kill { sequence } => commands.kill(sequence, client).await,
                Request::Input(command) => commands.input(command, client).await,
                Request::Resize { command, size } => commands.resize(command, size, client).await,
                Request::Signal { command, signal } => commands.signal(command, signal, client).await,
                Request::OpenShell(exec) => commands.open_shell(exec, client).await,
                Request::ListShells => commands.list_shells(client).await,
                Request::ReadShell(request) => commands.read_shell(request, client).await,
                Request::WriteShell(request) => commands.write_shell(request, client).await,
                Request::AttachShell { sequence, cursor } => {
                    commands.attach_shell(sequence, cursor, client).await;
                }
                Request::Publish(mapping) => {
                    let answer = ports.publish(mapping).await;
                    reply(&mut { client }, answer).await;
                }
                Request::Unpublish { host_port, host_ip } => {
                    let answer = ports.unpublish(host_port, host_ip).await;
                    reply(&mut { client }, answer).await;
                }
                Request::Service { name, request } => services.serve(name, request, client).await,
                Request::Mount(point) => {
                    if let Some(streams) = streams {
                        mounts.mount(point, client, &streams).await;
                    }
                }
                Request::Unmount { guest } => {
                    let answer = mounts.unmount(&guest).await;
                    reply(&mut { client }, answer).await;
                }
                Request::Claim(_)
                | Request::Cancel
                | Request::InputFinished
                | Request::Extend { .. }
                | Request::Stop
                | Request::Delete
                | Request::Expire => {}
            }
        });
    }

    pub(super) async fn refuse(&mut self, client: ClientId, refusal: Refusal) {
        self.reply(client, Reply::Refused { cause: refusal.text().to_owned() }).await;
    }

    /// Sends the last reply to a client.
    pub(super) async fn reply(&mut self, client: ClientId, message: Reply) {
        if let Some((_, mut client)) = self.clients.remove(&client) {
            reply(&mut client, message).await;
        }
    }
}

/// Translates a request for the state machine; `None` if it does not begin anything, as a cancellation without a command.
pub(super) fn kind(request: &Request, own: &LaunchSpec) -> Option<state::Request> {
    Some(match request {
        Request::Copy
        | Request::Run { .. }
        | Request::Input(_)
        | Request::Resize { .. }
        | Request::Signal { .. }
        | Request::OpenShell(_)
        | Request::WriteShell(_)
        | Request::Publish(_)
        | Request::Unpublish { .. }
        | Request::Service { .. }
        | Request::Mount(_)
        | Request::Unmount { .. } => state::Request::Work,
        Request::Watch { .. }
        | Request::Kill { .. }
        | Request::ListShells
        | Request::ReadShell(_)
        | Request::AttachShell { .. } => state::Request::Look,
        Request::Claim(spec) => state::Request::Claim { fits: own.has_network_of(spec) },
        Request::Extend { .. } => state::Request::Extend,
        Request::Stop => state::Request::Stop,
        Request::Delete => state::Request::Delete,
        Request::Expire => state::Request::Expire,
        Request::Cancel | Request::InputFinished => return None,
    })
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Starting => "the VM is still being started",
            Self::Stopping => "the VM is being stopped",
            Self::Unclaimed => "the VM waits to be claimed",
            Self::Claimed => "the VM has been claimed already",
            Self::Unfit => "the VM has another network policy",
        }
    }
}

/// Changes the published ports of a VM, and records each change before its client is answered.
struct Recorder<S> {
    ports: Ports,
    store: Rc<S>,
    vm_id: String,
}

impl<S: Store> Recorder<S> {
    async fn publish(&self, mapping: PortMapping) -> Reply {
        let _recording = self.ports.recording.lock().await;
        let published = match self.ports.publish(mapping) {
            Ok(published) => published,
            Err(error @ (PortError::InUse(_) | PortError::Privileged(_) | PortError::NotLocal(_))) => {
                return Reply::CannotListen { cause: error.to_string() };
            }
            Err(error) => return refused(&error),
        };
        let ports = match self.ports.to_record() {
            Ok(ports) => ports,
            Err(error) => return refused(&error),
        };
        match self.store.record_ports(&self.vm_id, &ports).await {
            Ok(()) => Reply::Published(published),
            Err(error) => {
                self.ports.withdraw(published.bound);
                Reply::NotRecorded { cause: error.cause }
            }
        }
    }

    /// The ports stay open if the change cannot be recorded.
    async fn unpublish(&self, host_port: u16, host_ip: Option<IpAddr>) -> Reply {
        let _recording = self.ports.recording.lock().await;
        let mut ports = match self.ports.to_record() {
            Ok(ports) => ports,
            Err(error) => return refused(&error),
        };
        let is_meant = |port: &PublishedPort| {
            port.bound.port() == host_port && host_ip.is_none_or(|ip| port.bound.ip() == ip)
        };
        let meant: Vec<_> = ports.extract_if(.., |port| is_meant(port)).collect();
        if meant.is_empty() {
            return Reply::NotPublished;
        }
        match self.store.record_ports(&self.vm_id, &ports).await {
            Ok(()) => {
                meant.iter().for_each(|port| self.ports.withdraw(port.bound));
                Reply::Done
            }
            Err(error) => Reply::NotRecorded { cause: error.cause },
        }
    }
}

fn refused(cause: &impl ToString) -> Reply {
    Reply::Refused { cause: cause.to_string() }
}

/// Connects the client with the guest for one request.
async fn join_guest(mut client: ServerStream, streams: &Streams) {
    let (stream, _permit) = match streams.open().await {
        Ok(open) => open,
        Err(error) => return reply(&mut client, Reply::Refused { cause: error.to_string() }).await,
    };
    let accepted = timeout(REPLY_LIMIT, client.send(Frame::Control(Reply::Done))).await;
    let Ok(Ok(())) = accepted else { return };
    let FramedParts { io: mut client, read_buf, .. } = client.into_parts();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(stream.compat());
    // Either side closing ends the request; both ends see what went wrong. The client closes last, so it waits for
    // nothing more once it does.
    tokio::select! {
        () = forward(&read_buf, &mut from_client, &mut to_guest) => {}
        _ = tokio::io::copy(&mut from_guest, &mut to_client) => {}
    }
}

/// Passes on what a client sends to its guest, until the client closes the connection or the guest takes nothing more.
async fn forward(first: &[u8], client: &mut (impl AsyncRead + Unpin), guest: &mut (impl AsyncWrite + Unpin)) {
    let mut buffer = BytesMut::from(first);
    loop {
        let taken = async {
            guest.write_all_buf(&mut buffer).await?;
            guest.flush().await
        };
        // While the guest takes nothing, nothing reports that the client is gone. The client gives up first.
        if !matches!(timeout(COPY_STEP_LIMIT * 2, taken).await, Ok(Ok(()))) {
            return;
        }
        buffer.reserve(CHUNK_BYTES);
        if !matches!(client.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::task::LocalSet;

    use super::*;
    use crate::server::tests::{Conditions, Fact, FakeStore, World};

    fn recorder(conditions: Conditions) -> (Rc<Recorder<FakeStore>>, Rc<World>) {
        let world = World::new(conditions);
        let store = Rc::new(FakeStore(Rc::clone(&world)));
        (Rc::new(Recorder { ports: Ports::new(), store, vm_id: "task".to_owned() }), world)
    }

    fn mapping(address: &str) -> PortMapping {
        PortMapping { host: address.parse().unwrap(), guest_port: 80 }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    /// What waits for another record while the VM ends must not replace the ports that are recorded.
    #[test]
    fn a_port_that_comes_after_the_end_is_neither_bound_nor_recorded() {
        run(async {
            let (recorder, world) = recorder(Conditions::task());
            let first = recorder.publish(mapping("127.0.0.1:0")).await;
            assert!(matches!(first, Reply::Published(_)), "{first:?}");
            let recorded = world.facts.borrow().clone();
            let recording = recorder.ports.recording.lock().await;
            let (late, other) = (Rc::clone(&recorder), Rc::clone(&recorder));
            let late = spawn_local(async move { late.publish(mapping("127.0.0.1:0")).await });
            let other = spawn_local(async move { other.unpublish(80, None).await });
            tokio::task::yield_now().await;
            recorder.ports.close();
            drop(recording);
            for answer in [late.await.unwrap(), other.await.unwrap()] {
                assert_eq!(answer, Reply::Refused { cause: "the VM is being stopped".to_owned() });
            }
            assert_eq!(*world.facts.borrow(), recorded);
            assert!(recorder.ports.published().is_empty());
        });
    }

    #[test]
    fn what_cannot_be_recorded_changes_no_port() {
        run(async {
            let (recorder, _) = recorder(Conditions { begins_are_refused: true, ..Conditions::task() });
            let first = recorder.ports.publish(mapping("127.0.0.1:0")).unwrap();
            // The same number on another address.
            let other = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), first.bound.port());
            let full = Reply::NotRecorded { cause: "the disk is full".to_owned() };
            assert_eq!(recorder.publish(mapping(&other.to_string())).await, full);
            assert_eq!(recorder.ports.published(), [first]);
            assert_eq!(recorder.unpublish(first.bound.port(), None).await, full);
            assert_eq!(recorder.ports.published(), [first]);
        });
    }

    #[test]
    fn only_what_the_host_refuses_is_about_listening() {
        run(async {
            let (recorder, world) = recorder(Conditions::task());
            let foreign = recorder.publish(mapping("192.0.2.1:0")).await;
            assert!(matches!(foreign, Reply::CannotListen { .. }), "{foreign:?}");
            recorder.ports.close();
            let ended = recorder.publish(mapping("127.0.0.1:0")).await;
            assert!(matches!(ended, Reply::Refused { .. }), "{ended:?}");
            assert!(!world.facts.borrow().iter().any(|fact| matches!(fact, Fact::PortsRecorded(_))));
        });
    }
}
