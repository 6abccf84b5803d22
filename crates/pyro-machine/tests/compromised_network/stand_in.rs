//! The program in the place of the network process, after it has confined itself as that process does.
#![expect(unsafe_code, reason = "attacks are system calls")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;

use pyro_network::{CONTROL_FD, Denial, EVENTS_FD, LINK_FD, Message, Protocol, Rule};

pub(crate) type Targets = BTreeMap<String, String>;
type Attempt = (&'static str, fn(&Targets) -> io::Result<()>);

/// What must fail.
pub(crate) const ATTACKS: [Attempt; 16] = [
    ("read_secret", |targets| fs::read(&targets["secret"]).map(drop)),
    ("write_secret", |targets| OpenOptions::new().append(true).open(&targets["secret"])?.write_all(b"key")),
    ("create_file", |targets| fs::write(format!("{}/planted", targets["dir"]), "x")),
    ("list_root", |_| fs::read_dir("/").map(drop)),
    ("read_resolvers", |_| File::open("/etc/resolv.conf").map(drop)),
    ("execute_program", |_| Command::new("/bin/true").status().map(drop)),
    ("trace_supervisor", |targets| {
        let pid: libc::c_long = number(targets, "supervisor")?;
        // SAFETY: a request without pointers.
        check(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0) })?;
        // SAFETY: as above.
        check(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_INTERRUPT, pid, 0, 0) })
    }),
    ("read_supervisor_memory", |targets| {
        File::open(format!("/proc/{}/mem", targets["supervisor"])).map(drop)
    }),
    ("signal_process", |targets| {
        let pid: libc::c_long = number(targets, "bystander")?;
        // SAFETY: a call without pointers.
        check(unsafe { libc::syscall(libc::SYS_kill, pid, libc::SIGCONT) })
    }),
    ("use_control_socket", |targets| UnixStream::connect(&targets["socket"]).map(drop)),
    ("connect_to_abstract_socket", |targets| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&targets["abstract"])?).map(drop)
    }),
    ("listen", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("bind_datagrams", |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("list_sockets_of_the_host", |_| {
        // SAFETY: a call without pointers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG) };
        check(socket.into())?;
        // SAFETY: the descriptor was opened just now.
        drop(unsafe { File::from_raw_fd(socket) });
        Ok(())
    }),
    ("create_memory_file", |_| {
        // SAFETY: the name is a constant string.
        check(unsafe { libc::syscall(libc::SYS_memfd_create, c"x".as_ptr(), 0) })
    }),
    ("remove_secret", |targets| fs::remove_file(&targets["secret"])),
];

/// What must work, as it is what the process is for.
pub(crate) const DUTIES: [Attempt; 3] = [
    ("connect", |targets| TcpStream::connect(&targets["tcp"]).map(drop)),
    ("send_datagrams", |targets| {
        // SAFETY: calls without pointers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(socket.into())?;
        // SAFETY: the descriptor was opened just now.
        let socket = unsafe { UdpSocket::from_raw_fd(socket) };
        socket.connect(&targets["tcp"])
    }),
    ("ask_for_routes", |_| {
        // SAFETY: a call without pointers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE) };
        check(socket.into())
    }),
];

/// Confines itself as a network process does, tries everything, and reports what succeeded as denials, which the parent writes
/// to a file: the number of the attempt is the port, and the count is 1 if it succeeded. Ends when the link closes.
pub(crate) fn run(targets: &Targets) -> io::Result<()> {
    let confinement = pyro_network::confine().map_err(io::Error::other)?;
    // SAFETY: the parent has passed these descriptors for this use alone.
    let [control, events, link] =
        [CONTROL_FD, EVENTS_FD, LINK_FD].map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let report = serde_json::to_vec(&Message::Confined(Box::new(confinement)))?;
    rustix::net::send(&control, &report, rustix::net::SendFlags::empty())?;
    let mut events = File::from(events);
    for (index, succeeded) in try_all(targets).into_iter().enumerate() {
        let denial = Denial {
            time: 0.0,
            protocol: Protocol::Tcp,
            address: Some([127, 0, 0, 1].into()),
            port: u16::try_from(index).ok(),
            name: None,
            rule: Rule::Private,
            count: if succeeded { 1 } else { 2 },
        };
        let mut line = serde_json::to_vec(&denial)?;
        line.push(b'\n');
        events.write_all(&line)?;
    }
    File::from(link).read(&mut [0]).map(drop)
}

/// Tries everything, in order, and returns what succeeded.
pub(crate) fn try_all(targets: &Targets) -> Vec<bool> {
    ATTACKS.iter().chain(&DUTIES).map(|(_, attempt)| attempt(targets).is_ok()).collect()
}

fn number<T: std::str::FromStr>(targets: &Targets, key: &str) -> io::Result<T> {
    targets[key].parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
