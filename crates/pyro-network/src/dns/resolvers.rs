//! The resolvers of the host: their list, which is read again when it changes, and what the process that cannot read it knows.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use std::os::unix::fs::MetadataExt as _;

use crate::control::{Control, Message};

const PORT: u16 = 53;
/// Maximum number of resolvers, as in the C library.
const MAX_RESOLVERS: usize = 3;
/// Maximum number of bytes of the list that are read.
const MAX_BYTES: u64 = 64 << 10;

/// Time in which a list is not asked for again.
const REFRESH_TIME: Duration = Duration::from_secs(1);

/// The resolvers of the host, for a process without access to the list.
#[derive(Debug)]
pub(super) struct Resolvers {
    addresses: Vec<SocketAddr>,
    control: Option<Control>,
    asked: Instant,
}

impl Resolvers {
    /// `control` brings later lists.
    pub(super) fn new(addresses: &[SocketAddr], control: Option<Control>) -> Self {
        Self { addresses: addresses.to_owned(), control, asked: Instant::now() }
    }

    /// Returns the resolvers, in the order in which they are asked, and asks for a newer list, which later calls return.
    pub(super) fn current(&mut self) -> &[SocketAddr] {
        if let Some(control) = &self.control {
            if let Some(addresses) = control.resolvers() {
                self.addresses = addresses;
            }
            if self.asked.elapsed() >= REFRESH_TIME {
                self.asked = Instant::now();
                if control.send(&Message::RefreshResolvers).is_err() {
                    self.control = None;
                }
            }
        }
        &self.addresses
    }
}

/// The host's list of resolvers.
#[derive(Debug)]
pub struct ResolverList {
    path: PathBuf,
    seen: Option<Version>,
    addresses: Vec<SocketAddr>,
}

/// What changes when the file does.
#[derive(Debug, PartialEq, Eq)]
struct Version(u64, u64, u64, SystemTime);

impl ResolverList {
    /// The list at `path`, in the form of `resolv.conf(5)`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None, addresses: Vec::new() }
    }

    /// Returns the current resolvers, in the order in which they are asked. Without a list, the host asks itself.
    pub fn current(&mut self) -> &[SocketAddr] {
        // A list that has become unreadable stays what it was.
        let _ = self.reload();
        if self.addresses.is_empty() {
            self.addresses.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        &self.addresses
    }

    fn reload(&mut self) -> io::Result<()> {
        let metadata = std::fs::metadata(&self.path)?;
        let version = Version(metadata.dev(), metadata.ino(), metadata.len(), metadata.modified()?);
        if self.seen.as_ref() == Some(&version) {
            return Ok(());
        }
        let mut text = String::new();
        File::open(&self.path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        self.addresses = parse(&text);
        self.seen = Some(version);
        Ok(())
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local address names its interface.
        let (address, scope) = address.split_once('%').unwrap_or((address, ""));
        let address: IpAddr = address.parse().ok()?;
        scope.is_empty().then_some(SocketAddr::new(address, PORT))
    });
    servers.take(MAX_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut resolvers = ResolverList::new(&path);
        assert_eq!(resolvers.current(), ["127.0.0.1:53".parse().unwrap()]);
        std::fs::write(
            &path,
            "# comment\nsearch example.test\nnameserver 192.0.2.53\nnameserver 2001:db8::53 # x\n",
        )
        .unwrap();
        assert_eq!(
            resolvers.current(),
            ["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]
        );
        let other = dir.path().join("other");
        std::fs::write(&other, "nameserver 192.0.2.54\nnameserver\nnameserver x\nnameserver fe80::1%eth0\n")
            .unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(resolvers.current(), ["192.0.2.54:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(resolvers.current(), ["192.0.2.54:53".parse().unwrap()]);
    }
    #[test]
    fn a_later_list_is_asked_for_and_used() {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (old, new): (SocketAddr, SocketAddr) =
            ("192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap());
        let mut resolvers = Resolvers::new(&[old], Some(Control::new(ours)));
        assert_eq!(resolvers.current(), [old]);
        resolvers.asked = resolvers.asked.checked_sub(REFRESH_TIME).unwrap();
        assert_eq!(resolvers.current(), [old]);
        let mut buffer = [0; 100];
        let (length, _) =
            rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
        let message: Message = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(message, Message::RefreshResolvers);
        let text = serde_json::to_vec(&[new]).unwrap();
        rustix::net::send(&theirs, &text, rustix::net::SendFlags::empty()).unwrap();
        assert_eq!(resolvers.current(), [new]);
        // The other process is gone.
        drop(theirs);
        resolvers.asked = resolvers.asked.checked_sub(REFRESH_TIME).unwrap();
        assert_eq!(resolvers.current(), [new]);
        assert!(resolvers.control.is_none());
    }
}
