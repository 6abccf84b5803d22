//! The resolvers of the host, read again when their list changes.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use std::os::unix::fs::MetadataExt as _;

const PORT: u16 = 53;
/// Maximum number of resolvers, as in the C library.
const MAX_RESOLVERS: usize = 3;
/// Maximum number of bytes of the list that are read.
const MAX_BYTES: u64 = 64 << 10;

/// The resolvers of the host.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    seen: Option<Version>,
    addresses: Vec<SocketAddr>,
}

/// What changes when the file does.
#[derive(Debug, PartialEq, Eq)]
struct Version(u64, u64, u64, SystemTime);

impl Resolvers {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None, addresses: Vec::new() }
    }

    /// Returns the current resolvers, in the order in which they are asked. Without a list, the host asks itself.
    pub(super) fn current(&mut self) -> &[SocketAddr] {
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

    #[cfg(test)]
    pub(super) fn fixed(addresses: &[SocketAddr]) -> Self {
        Self { path: PathBuf::new(), seen: None, addresses: addresses.to_owned() }
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
        let mut resolvers = Resolvers::new(&path);
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
}
