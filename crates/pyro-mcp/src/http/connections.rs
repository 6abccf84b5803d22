//! Connections and whose they are. Those whose clients have not shown yet that they may connect make room for others, and no
//! token can take all, so that none of them keeps out a client that may connect.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

use super::sessions::Peer;

/// Maximum number of connections of one token. Without tokens, all clients of one host look alike, and a limit for all of
/// them together would protect none of them from another one.
const PER_TOKEN: usize = 128;

/// The connections that exist.
#[derive(Debug, Default)]
pub(super) struct Connections(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Those on which no request was accepted yet, oldest first.
    strangers: VecDeque<Weak<Connection>>,
    /// How many each peer has.
    of_peers: HashMap<Peer, usize>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    known: Arc<Mutex<Known>>,
    /// The peer of the first request that was accepted.
    peer: OnceLock<Peer>,
    closing: CancellationToken,
}

impl Connections {
    /// Adds a connection that was just accepted.
    pub(super) fn add(&self) -> Arc<Connection> {
        let new = Arc::new(Connection {
            known: Arc::clone(&self.0),
            peer: OnceLock::new(),
            closing: CancellationToken::new(),
        });
        let mut known = lock(&self.0);
        known.strangers.push_back(Arc::downgrade(&new));
        // From time to time, so that those that are gone do not pile up.
        if known.strangers.len().is_power_of_two() {
            known.strangers.retain(exists);
        }
        new
    }

    /// Closes the oldest of the connections on which no request was accepted yet, to make room for another one.
    pub(super) fn close_oldest_stranger(&self) {
        let mut known = lock(&self.0);
        known.strangers.retain(exists);
        if let Some(oldest) = known.strangers.pop_front().and_then(|oldest| oldest.upgrade()) {
            oldest.closing.cancel();
        }
    }
}

/// Returns whether the connection still exists. Does not upgrade: dropping the last handle of a connection takes the same lock.
fn exists(connection: &Weak<Connection>) -> bool {
    connection.strong_count() > 0
}

/// A panic cannot leave the data inconsistent, so poisoning is ignored.
fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Counts the connection as one of the peer's, and returns false if the peer has too many. The connection then stays for as
    /// long as the client wants.
    pub(super) fn assign(&self, peer: &Peer) -> bool {
        if self.peer.get().is_some() {
            return true;
        }
        let mut known = lock(&self.known);
        let count = known.of_peers.entry(peer.clone()).or_default();
        if matches!(peer, Peer::Token(_)) && *count >= PER_TOKEN {
            return false;
        }
        *count += 1;
        // Requests of one connection follow one another, so no other one was accepted meanwhile.
        let _ = self.peer.set(peer.clone());
        known.strangers.retain(|stranger| !std::ptr::eq(stranger.as_ptr(), self));
        true
    }

    /// Ends when the connection must be closed to make room for another one.
    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(peer) = self.peer.get() else { return };
        let mut known = lock(&self.known);
        if let Some(count) = known.of_peers.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                known.of_peers.remove(peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Peer {
        Peer::Token(name.parse().unwrap())
    }

    #[test]
    fn the_oldest_stranger_makes_room_and_a_client_stays() {
        let connections = Connections::default();
        let client = connections.add();
        assert!(client.assign(&token("a")));
        let waiting: Vec<_> = (0..3).map(|_| connections.add()).collect();
        let closed = || -> Vec<_> { waiting.iter().map(|known| known.closing.is_cancelled()).collect() };
        assert_eq!(closed(), [false; 3]);
        connections.close_oldest_stranger();
        assert_eq!(closed(), [true, false, false]);
        assert!(waiting[1].assign(&token("a")));
        connections.close_oldest_stranger();
        assert_eq!(closed(), [true, false, true]);
        connections.close_oldest_stranger();
        assert!(!client.closing.is_cancelled());
    }

    #[test]
    fn one_token_cannot_take_all_connections() {
        let connections = Connections::default();
        let mut taken: Vec<_> = (0..PER_TOKEN).map(|_| connections.add()).collect();
        assert!(taken.iter().all(|connection| connection.assign(&token("a"))));
        assert!(taken[0].assign(&token("a")), "a connection that has a peer keeps it");
        let more = connections.add();
        assert!(!more.assign(&token("a")));
        assert!(more.assign(&token("b")));
        drop(taken.pop());
        assert!(connections.add().assign(&token("a")));
    }

    #[test]
    fn connections_that_are_gone_do_not_pile_up() {
        let connections = Connections::default();
        for _ in 0..10_000 {
            let connection = connections.add();
            connection.assign(&token("a"));
        }
        (0..10_000).for_each(|_| drop(connections.add()));
        let known = lock(&connections.0);
        assert!(known.strangers.len() < 10 && known.of_peers.is_empty(), "{known:?}");
    }
}
