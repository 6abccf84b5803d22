//! Which names the guest was given an address for, and until when that counts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits;
use crate::policy::DnsName;

/// Names by address. Bounded.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    /// Those of one address in the order in which they were bound.
    names: HashMap<IpAddr, Vec<(DnsName, Instant)>>,
    count: usize,
}

impl Bindings {
    /// Binds a name to an address for the time that the answer is valid, within bounds.
    pub(crate) fn bind(&mut self, name: &DnsName, address: IpAddr, ttl: Duration) {
        let now = Instant::now();
        let until = now + ttl.clamp(limits::MIN_BINDING_TIME, limits::MAX_BINDING_TIME);
        if let Some((_, expiry)) =
            self.names.get_mut(&address).and_then(|names| names.iter_mut().find(|(known, _)| known == name))
        {
            *expiry = until.max(*expiry);
            return;
        }
        if self.count >= limits::BINDINGS {
            self.remove_expired(now);
        }
        if self.count >= limits::BINDINGS {
            self.remove_next_to_expire();
        }
        let names = self.names.entry(address).or_default();
        if names.len() >= limits::NAMES_OF_ADDRESS {
            names.remove(0);
            self.count -= 1;
        }
        names.push((name.clone(), until));
        self.count += 1;
    }

    /// Returns the names that are bound to an address, the oldest first.
    pub(crate) fn names(&self, address: IpAddr) -> impl Iterator<Item = &DnsName> {
        let now = Instant::now();
        let names = self.names.get(&address).into_iter().flatten();
        names.filter(move |(_, until)| *until > now).map(|(name, _)| name)
    }

    fn remove_expired(&mut self, now: Instant) {
        self.names.retain(|_, names| {
            names.retain(|(_, until)| *until > now);
            !names.is_empty()
        });
        self.count = self.names.values().map(Vec::len).sum();
    }

    fn remove_next_to_expire(&mut self) {
        let all =
            self.names.iter().flat_map(|(address, names)| names.iter().map(|(_, until)| (*until, *address)));
        let Some((until, address)) = all.min() else { return };
        if let Some(names) = self.names.get_mut(&address) {
            names.retain(|(_, other)| *other != until);
            if names.is_empty() {
                self.names.remove(&address);
            }
        }
        self.count = self.names.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_names_that_were_bound_to_it() {
        let name = |text: &str| DnsName::new(text).unwrap();
        let mut bindings = Bindings::default();
        bindings.bind(&name("a.test"), [1, 1, 1, 1].into(), Duration::ZERO);
        bindings.bind(&name("b.test"), [1, 1, 1, 1].into(), Duration::MAX);
        bindings.bind(&name("a.test"), [1, 1, 1, 1].into(), Duration::from_secs(60));
        assert!(bindings.names([1, 1, 1, 1].into()).eq(&[name("a.test"), name("b.test")]));
        assert_eq!(bindings.names([1, 1, 1, 2].into()).next(), None);
    }

    #[test]
    fn the_latest_names_of_an_address_count() {
        let names: Vec<_> = (0..100).map(|n| DnsName::new(&format!("name{n}.test")).unwrap()).collect();
        let mut bindings = Bindings::default();
        for name in &names {
            bindings.bind(name, [1, 1, 1, 1].into(), Duration::from_secs(60));
        }
        assert!(bindings.names([1, 1, 1, 1].into()).eq(&names[100 - limits::NAMES_OF_ADDRESS..]));
        assert_eq!(bindings.count, limits::NAMES_OF_ADDRESS);
    }

    #[test]
    fn the_table_does_not_grow_with_a_flood() {
        let mut bindings = Bindings::default();
        let name = DnsName::new("a.test").unwrap();
        for n in 0..limits::BINDINGS as u32 + 100 {
            bindings.bind(&name, std::net::Ipv4Addr::from_bits(n).into(), Duration::from_secs(60));
        }
        assert!(bindings.count <= limits::BINDINGS && bindings.names.len() <= limits::BINDINGS);
        let latest = std::net::Ipv4Addr::from_bits(limits::BINDINGS as u32 + 99);
        assert!(bindings.names(latest.into()).eq([&name]));
    }
}
