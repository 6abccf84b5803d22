//! Connections of the guest to our resolver, on which each message stands behind its length.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mio::Token;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::forward::{Forwarder, Origin};
use crate::limits;
use crate::link::Output;
use crate::relay::Shared;
use crate::stack::Stack;
use crate::tcp::Ends;

const LENGTH_BYTES: usize = 2;

/// Connections of the guest to our resolver.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    tokens: HashMap<Ends, Token>,
    connections: HashMap<Token, Connection>,
}

#[derive(Debug)]
struct Connection {
    ends: Ends,
    handle: SocketHandle,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A question is in flight; the next one waits.
    waiting: bool,
    used: Instant,
}

impl Connections {
    /// Takes a segment of the guest.
    pub(crate) fn segment(
        &mut self,
        (ends, opens): (Ends, bool),
        packet: &[u8],
        shared: &mut Shared,
        stack: &mut Stack,
        output: &mut Output,
    ) {
        let known = self.tokens.contains_key(&ends);
        if !opens || known || self.connections.len() >= limits::DNS_CONNECTIONS {
            stack.deliver(packet, output);
            return;
        }
        if let Some(handle) = stack.accept(packet, ends.destination, limits::DNS_BUFFER_BYTES, output) {
            let token = shared.token();
            let (input, reply) = (Vec::new(), Vec::new());
            let used = Instant::now();
            let connection = Connection { ends, handle, input, output: reply, waiting: false, used };
            self.tokens.insert(ends, token);
            self.connections.insert(token, connection);
        }
    }

    /// Takes an answer. It is dropped if the connection has ended.
    pub(crate) fn answer(&mut self, token: Token, answer: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.waiting = false;
            if let Ok(length) = u16::try_from(answer.len()) {
                connection.output.extend_from_slice(&length.to_be_bytes());
                connection.output.extend_from_slice(answer);
            }
        }
    }

    /// Reads questions and writes answers. Returns whether something changed.
    pub(crate) fn pump(&mut self, forwarder: &mut Forwarder, shared: &mut Shared, stack: &mut Stack) -> bool {
        let mut progress = false;
        let tokens = &mut self.tokens;
        self.connections.retain(|&token, connection| {
            let (lives, moved) = connection.pump(token, forwarder, shared, stack);
            progress |= moved;
            if !lives {
                tokens.remove(&connection.ends);
                stack.remove(connection.handle);
            }
            lives
        });
        progress
    }

    /// Ends connections that were silent for too long, and returns the time until there may be more.
    pub(crate) fn expire(&mut self, now: Instant, stack: &mut Stack) -> Option<Duration> {
        for connection in self.connections.values().filter(|connection| connection.due() <= now) {
            stack.socket(connection.handle).abort();
        }
        let due = self.connections.values().map(Connection::due).filter(|due| *due > now).min()?;
        Some(due.saturating_duration_since(now))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }
}

impl Connection {
    fn due(&self) -> Instant {
        self.used + limits::DNS_IDLE_TIME
    }

    /// Returns whether the connection lives, and whether bytes were moved.
    fn pump(
        &mut self,
        token: Token,
        forwarder: &mut Forwarder,
        shared: &mut Shared,
        stack: &mut Stack,
    ) -> (bool, bool) {
        let socket = stack.socket(self.handle);
        match socket.state() {
            // A reset of ours may still have to be sent.
            State::Closed => return (socket.remote_endpoint().is_some(), false),
            // A reset takes a socket that is not confirmed back to where it waits for a first segment.
            State::TimeWait | State::Listen => return (false, false),
            State::SynSent | State::SynReceived => return (true, false),
            _ => {}
        }
        let mut moved = false;
        if let Ok(sent @ 1..) = socket.send_slice(&self.output) {
            self.output.drain(..sent);
            self.used = Instant::now();
            moved = true;
        }
        if !self.waiting && self.output.is_empty() {
            // At most one message is read ahead.
            while socket.can_recv() && self.input.len() < LENGTH_BYTES + limits::DNS_QUERY_BYTES {
                let wanted = LENGTH_BYTES + limits::DNS_QUERY_BYTES - self.input.len();
                let read = socket.recv(|bytes| {
                    let length = bytes.len().min(wanted);
                    self.input.extend_from_slice(&bytes[..length]);
                    (length, length)
                });
                moved |= read.is_ok_and(|length| length > 0);
            }
            if let Some((length, rest)) = self.input.split_first_chunk::<LENGTH_BYTES>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > limits::DNS_QUERY_BYTES {
                    socket.abort();
                    return (true, true);
                }
                if let Some(question) = rest.get(..length) {
                    let question = question.to_vec();
                    self.input.drain(..LENGTH_BYTES + length);
                    self.used = Instant::now();
                    self.waiting = true;
                    moved = true;
                    forwarder.ask(Origin::Connection(token), &question, shared);
                }
            }
        }
        let socket = stack.socket(self.handle);
        if !self.waiting && self.output.is_empty() && !socket.may_recv() {
            socket.close();
        }
        (true, moved)
    }
}
