//! The guest's side of connections: smoltcp, which answers for every address.

use std::net::SocketAddr;
use std::time::Instant as StdInstant;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use crate::limits;
use crate::link::Output;
use crate::packet;

/// The guest's side of all connections.
pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    started: StdInstant,
    mtu: u16,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("sockets", &self.sockets.iter().count()).finish_non_exhaustive()
    }
}

impl Stack {
    /// `seed` makes initial sequence numbers unpredictable.
    pub(crate) fn new(mtu: u16, seed: u64, output: &mut Output) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Port { packet: None, output, mtu };
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.set_any_ip(true);
        Self { interface, sockets: SocketSet::new(Vec::new()), started: StdInstant::now(), mtu }
    }

    /// Begins a connection with the guest's first segment, `syn`, and returns its socket, unless the segment is refused.
    pub(crate) fn accept(
        &mut self,
        syn: &[u8],
        destination: SocketAddr,
        buffer_bytes: usize,
        output: &mut Output,
    ) -> Option<SocketHandle> {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(from_std(limits::KEEP_ALIVE_TIME)));
        let endpoint = IpListenEndpoint { addr: Some(destination.ip().into()), port: destination.port() };
        socket.listen(endpoint).ok()?;
        let handle = self.sockets.add(socket);
        self.deliver(syn, output);
        if self.socket(handle).state() == tcp::State::SynReceived {
            return Some(handle);
        }
        self.remove(handle);
        None
    }

    /// Hands a segment to its connection. The guest is answered with a reset if there is no such connection.
    pub(crate) fn deliver(&mut self, packet: &[u8], output: &mut Output) {
        let now = self.now();
        let mut device = Port { packet: Some(packet), output, mtu: self.mtu };
        self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }

    /// Sends what connections have to send, as far as the output has space.
    pub(crate) fn send(&mut self, output: &mut Output) {
        let now = self.now();
        let mut device = Port { packet: None, output, mtu: self.mtu };
        while self.interface.poll_egress(now, &mut device, &mut self.sockets)
            == PollResult::SocketStateChanged
            && device.output.has_space()
        {}
    }

    /// Returns the time until a connection has something to do by itself.
    pub(crate) fn delay(&mut self) -> Option<std::time::Duration> {
        let now = self.now();
        self.interface.poll_delay(now, &self.sockets).map(Into::into)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    fn now(&self) -> Instant {
        // Milliseconds of a few hundred million years fit.
        Instant::from_micros(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

fn from_std(duration: std::time::Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The link as smoltcp sees it.
struct Port<'a> {
    packet: Option<&'a [u8]>,
    output: &'a mut Output,
    mtu: u16,
}

struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a>(&'a mut Output);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push_ip(len, f)
    }
}

impl Device for Port<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        self.packet.take().map(|packet| (Incoming(packet), Outgoing(self.output)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Outgoing<'_>> {
        self.output.has_space().then_some(Outgoing(self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu.into();
        capabilities.checksum = packet::unverified();
        capabilities
    }
}
