//! Sessions of clients of older revisions: how many there are, whose they are, and which one ends to make room.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyro_api::OwnerName;

/// Maximum number of sessions.
pub(super) const SESSIONS: usize = 256;
/// Maximum number of sessions of one token.
const PER_TOKEN: usize = 64;
/// Maximum number of sessions of one address, if the server has no tokens.
const PER_ADDRESS: usize = 128;

/// What a session is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// The owner that the client's token stands for.
    Token(OwnerName),
    /// The client's address, if the server has no tokens.
    Address(IpAddr),
}

impl Peer {
    fn limit(&self) -> usize {
        match self {
            Self::Token(_) => PER_TOKEN,
            Self::Address(_) => PER_ADDRESS,
        }
    }
}

/// The sessions that exist, by id.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Debug)]
struct Session {
    peer: Peer,
    /// When its latest request began or ended.
    used: Instant,
    /// Requests whose responses have not ended, such as the stream on which a connected client listens.
    open: usize,
}

/// The sessions that existed at a time.
#[derive(Debug)]
pub(super) struct Alive {
    /// A session that was used since may exist too.
    pub(super) as_of: Instant,
    pub(super) ids: HashSet<String>,
}

/// A request of a session, until its response has ended.
#[derive(Debug)]
pub(super) struct InUse {
    sessions: Arc<Sessions>,
    id: String,
}

impl Sessions {
    /// Notes a request of a session, if the session exists and belongs to `peer`. Sessions of a token are for that token
    /// only; those without are for whichever client has the id.
    pub(super) fn enter(self: &Arc<Self>, id: &str, peer: &Peer) -> Option<InUse> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(id)?;
        if session.peer != *peer && matches!(session.peer, Peer::Token(_)) {
            return None;
        }
        session.used = Instant::now();
        session.open += 1;
        Some(InUse { sessions: Arc::clone(self), id: id.to_owned() })
    }

    /// Adds a session that has just begun, forgets those that have ended by themselves, and returns those that have to end to make
    /// room: the longest idle ones of the peer, then of all. Sessions on which a request is open end last.
    pub(super) fn add(&self, id: &str, peer: Peer, alive: &Alive) -> Vec<String> {
        let mut sessions = self.lock();
        sessions.retain(|known, session| session.used >= alive.as_of || alive.ids.contains(known));
        let session = Session { peer: peer.clone(), used: Instant::now(), open: 0 };
        sessions.insert(id.to_owned(), session);
        let mut ended = Vec::new();
        loop {
            let of_peer = sessions.values().filter(|session| session.peer == peer).count();
            let peer_is_full = of_peer > peer.limit();
            if !peer_is_full && sessions.len() <= SESSIONS {
                return ended;
            }
            let others = sessions
                .iter()
                .filter(|(known, session)| known.as_str() != id && (!peer_is_full || session.peer == peer));
            let longest_idle = others.min_by_key(|(_, session)| (session.open > 0, session.used));
            let Some(longest_idle) = longest_idle.map(|(id, _)| id.clone()) else { return ended };
            sessions.remove(&longest_idle);
            ended.push(longest_idle);
        }
    }

    /// A panic cannot leave the data inconsistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.lock().get_mut(&self.id) {
            session.used = Instant::now();
            session.open = session.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Peer {
        Peer::Token(name.parse().unwrap())
    }

    fn address(last: u8) -> Peer {
        Peer::Address(IpAddr::from([192, 0, 2, last]))
    }

    /// Adds sessions `first..` of a peer while all are alive; returns those that ended.
    fn add(sessions: &Sessions, ids: std::ops::Range<u32>, peer: &Peer) -> Vec<String> {
        let alive = Alive { as_of: Instant::now(), ids: (0..10_000).map(|id| id.to_string()).collect() };
        ids.flat_map(|id| sessions.add(&id.to_string(), peer.clone(), &alive)).collect()
    }

    #[test]
    fn a_peer_that_opens_too_many_loses_its_own_longest_idle() {
        let sessions = Arc::new(Sessions::default());
        assert!(add(&sessions, 0..10, &token("a")).is_empty());
        assert!(add(&sessions, 100..164, &token("b")).is_empty());
        // The first one is used again, so the second is the longest idle.
        drop(sessions.enter("100", &token("b")).unwrap());
        assert_eq!(add(&sessions, 164..166, &token("b")), ["101", "102"]);
        assert!(sessions.enter("0", &token("a")).is_some());
        assert!(sessions.enter("101", &token("b")).is_none());
    }

    #[test]
    fn when_all_slots_are_taken_the_longest_idle_of_all_ends() {
        let sessions = Arc::new(Sessions::default());
        for peer in 0..4 {
            assert!(add(&sessions, peer * 100..peer * 100 + 64, &token(&format!("t{peer}"))).is_empty());
        }
        assert_eq!(add(&sessions, 900..901, &token("late")), ["0"]);
        assert_eq!(sessions.lock().len(), SESSIONS);
    }

    #[test]
    fn one_address_cannot_fill_a_server_without_tokens() {
        let sessions = Arc::new(Sessions::default());
        assert!(add(&sessions, 0..1, &address(1)).is_empty());
        assert_eq!(add(&sessions, 1000..1300, &address(2)).len(), 300 - PER_ADDRESS);
        assert!(sessions.enter("0", &address(1)).is_some());
    }

    #[test]
    fn a_session_with_an_open_request_ends_last() {
        let sessions = Arc::new(Sessions::default());
        add(&sessions, 0..64, &token("a"));
        let listening = sessions.enter("0", &token("a")).unwrap();
        let calling: Vec<_> = (2..64).map(|id| sessions.enter(&id.to_string(), &token("a"))).collect();
        assert_eq!(add(&sessions, 100..101, &token("a")), ["1"]);
        assert_eq!(add(&sessions, 101..102, &token("a")), ["100"]);
        drop((listening, calling));
    }

    #[test]
    fn a_session_is_for_the_token_that_opened_it() {
        let sessions = Arc::new(Sessions::default());
        add(&sessions, 0..1, &token("a"));
        assert!(sessions.enter("0", &token("b")).is_none());
        assert!(sessions.enter("0", &token("a")).is_some());
        assert!(sessions.enter("1", &token("a")).is_none());
    }

    #[test]
    fn sessions_that_ended_by_themselves_are_forgotten() {
        let sessions = Sessions::default();
        add(&sessions, 0..50, &token("a"));
        let alive = Alive { as_of: Instant::now(), ids: ["0"].map(str::to_owned).into() };
        // This one began after the time for which the others are known.
        assert!(add(&sessions, 60..61, &token("a")).is_empty());
        assert!(sessions.add("100", token("a"), &alive).is_empty());
        let mut known: Vec<_> = sessions.lock().keys().cloned().collect();
        known.sort();
        assert_eq!(known, ["0", "100", "60"]);
    }
}
