//! Connections whose clients have not shown yet that they may connect. They make room for others, so that they cannot keep
//! out those that may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

/// The connections on which no request was admitted yet, oldest first.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<VecDeque<Weak<Connection>>>);

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    is_admitted: AtomicBool,
    closing: CancellationToken,
}

impl Strangers {
    /// Adds a connection that was just accepted.
    pub(super) fn add(&self) -> Arc<Connection> {
        let new = Arc::new(Connection::default());
        let mut strangers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.push_back(Arc::downgrade(&new));
        // From time to time, so that those that are gone do not pile up.
        if strangers.len().is_power_of_two() {
            strangers.retain(is_stranger);
        }
        new
    }

    /// Closes the oldest of the connections, to make room for another one.
    pub(super) fn close_oldest(&self) {
        let mut strangers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.retain(is_stranger);
        if let Some(oldest) = strangers.pop_front().and_then(|oldest| oldest.upgrade()) {
            oldest.closing.cancel();
        }
    }
}

fn is_stranger(connection: &Weak<Connection>) -> bool {
    connection.upgrade().is_some_and(|connection| !connection.is_admitted())
}

impl Connection {
    /// A request of the client was admitted: the connection stays for as long as the client wants.
    pub(super) fn admit(&self) {
        self.is_admitted.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }

    /// Ends when the connection must be closed to make room for another one.
    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_a_client_stays() {
        let strangers = Strangers::default();
        let client = strangers.add();
        client.admit();
        let waiting: Vec<_> = (0..3).map(|_| strangers.add()).collect();
        let closed = || -> Vec<_> { waiting.iter().map(|known| known.closing.is_cancelled()).collect() };
        assert_eq!(closed(), [false; 3]);
        strangers.close_oldest();
        assert_eq!(closed(), [true, false, false]);
        waiting[1].admit();
        strangers.close_oldest();
        assert_eq!(closed(), [true, false, true]);
        strangers.close_oldest();
        assert!(!client.closing.is_cancelled());
    }

    #[test]
    fn connections_that_are_gone_do_not_pile_up() {
        let strangers = Strangers::default();
        for _ in 0..10_000 {
            drop(strangers.add());
        }
        assert!(strangers.0.lock().unwrap().len() < 10);
    }
}
