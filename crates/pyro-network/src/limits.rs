//! Fixed maximum numbers for one guest. None depends on what the guest does.

use std::time::Duration;

/// Maximum number of TCP connections, including those being opened. More are refused.
pub const TCP_FLOWS: usize = 512;
/// Maximum number of TCP connections that the host is opening. A guest's attempts beyond it are not answered, so that the
/// guest tries again.
pub const TCP_CONNECTING: usize = 64;
/// Maximum number of UDP flows. A new one takes the place of the one that was silent for longest.
pub const UDP_FLOWS: usize = 256;
/// Maximum number of connections and flows that are opened at once. An attempt beyond it is dropped, as a packet of a
/// congested network is.
pub const NEW_FLOWS_BURST: u32 = 512;
/// Number of connections and flows that may be opened each second after a burst.
pub const NEW_FLOWS_PER_SECOND: u32 = 100;
/// Maximum number of DNS questions that are sent at once to the host's resolvers. More are answered with a server failure.
pub const DNS_BURST: u32 = 512;
/// Number of DNS questions that may be sent each second after a burst.
pub const DNS_PER_SECOND: u32 = 200;
/// Maximum number of DNS queries in flight. More are answered with a server failure.
pub const DNS_QUERIES: usize = 128;
/// Maximum number of DNS questions in flight, of which equal ones share one query. More are answered with a server failure.
pub const DNS_ASKERS: usize = 1024;
/// Maximum number of TCP connections of the guest to our resolver.
pub const DNS_CONNECTIONS: usize = 16;
/// Maximum number of addresses that names are bound to.
pub const BINDINGS: usize = 4096;
/// Maximum number of names that are bound to one address. A new one takes the place of the oldest.
pub const NAMES_OF_ADDRESS: usize = 32;
/// Maximum number of different denials that are remembered.
pub const DENIALS: usize = 100;

/// Number of TCP connections that have large buffers; later ones have small ones.
pub const LARGE_BUFFERS: usize = 32;
/// Size of a large buffer in bytes. A connection has one for each direction; memory is used only as far as it is filled.
pub const LARGE_BUFFER_BYTES: usize = 512 << 10;
/// Size of a small buffer in bytes.
pub const SMALL_BUFFER_BYTES: usize = 32 << 10;
/// Size of a buffer of a connection to our resolver, in bytes.
pub const DNS_BUFFER_BYTES: usize = 8 << 10;
/// Frames that wait until the guest takes them, in bytes. What comes beyond it waits where it is.
pub const OUTPUT_BYTES: usize = 1 << 20;

/// Largest packet, in bytes, that the link carries.
pub const MAX_MTU: u16 = 65_520;
/// Smallest maximum packet size: what IPv6 needs.
pub const MIN_MTU: u16 = 1280;
/// Largest DNS message, in bytes, that is forwarded to the resolvers.
pub const DNS_QUERY_BYTES: usize = 4096;
/// Maximum time until a connection of the host is open.
pub const CONNECT_TIME: Duration = Duration::from_secs(75);
/// Maximum time until the guest confirms a connection that the host has opened.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// When one side of a connection has failed, the other has this long to take more of what had arrived before.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);
/// A peer that is still sending after the guest has gone has this long to take the guest's last bytes.
pub const LINGER_TIME: Duration = Duration::from_secs(5);
/// Maximum time until the guest has named the server, where the policy compares names.
pub const INSPECTION_TIME: Duration = Duration::from_secs(15);
/// Maximum number of bytes in which the guest must have named the server.
pub const INSPECTION_BYTES: usize = 16 << 10;
/// A UDP flow without an answer ends after this silence.
pub const UDP_ONE_WAY_TIME: Duration = Duration::from_secs(30);
/// A UDP flow with answers ends after this silence.
pub const UDP_TIME: Duration = Duration::from_secs(180);
/// A UDP flow with traffic is judged again after this time: addresses of the host change.
pub const UDP_JUDGED_TIME: Duration = Duration::from_secs(30);
/// Time for one resolver to answer, before the next one is asked.
pub const DNS_ATTEMPT_TIME: Duration = Duration::from_secs(3);
/// Maximum number of resolvers that are asked one after the other.
pub const DNS_ATTEMPTS: usize = 3;
/// A connection of the guest to our resolver ends after this silence.
pub const DNS_IDLE_TIME: Duration = Duration::from_secs(30);
/// A name stays bound to its address for at least this long, even if the answer expires earlier.
pub const MIN_BINDING_TIME: Duration = Duration::from_secs(30);
/// A name stays bound to its address for at most this long without another answer.
pub const MAX_BINDING_TIME: Duration = Duration::from_secs(3600);
/// Interval after which a silent connection is checked for a guest that has forgotten it.
pub const KEEP_ALIVE_TIME: Duration = Duration::from_secs(120);

/// Descriptors that the process needs at most: a socket for each connection, flow and query, and the rest of the process.
pub const DESCRIPTORS: u64 = (TCP_FLOWS + UDP_FLOWS + DNS_QUERIES + 32) as u64;
