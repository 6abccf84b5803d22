use std::fs;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use tempfile::TempDir;

use super::*;
use crate::directory::Export;

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

/// A server with the other end of its socket, and the directory that it serves, which has a file.
struct Served {
    socket: OwnedFd,
    server: JoinHandle<Result<(), ServeError>>,
    dir: TempDir,
}

fn served(writable: bool) -> Served {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("served")).unwrap();
    fs::write(dir.path().join("served/file"), "content").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    let directory = fs::File::open(dir.path().join("served")).unwrap().into();
    let directory = Directory::new(Export { directory, writable, owner: 0, max_open: 100 }).unwrap();
    let (socket, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let server = std::thread::spawn(move || serve(directory, theirs));
    Served { socket, server, dir }
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = u32::try_from(HEADER_BYTES + body.len()).unwrap().to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(9_u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

impl Served {
    fn send(&self, message: &[u8]) {
        send(&self.socket, message, SendFlags::NOSIGNAL).unwrap();
    }

    /// The error and the body of the answer.
    fn ask(&self, message: &[u8]) -> (i32, Vec<u8>) {
        self.send(message);
        let mut answer = vec![0; MAX_MESSAGE_BYTES];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::empty()).unwrap();
        assert!(length >= 16, "{length}");
        answer.truncate(length);
        let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        (error, answer.split_off(16))
    }

    fn end(self) -> Result<(), ServeError> {
        drop(self.socket);
        self.server.join().unwrap()
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn messages_are_answered_until_the_socket_closes() {
    let served = served(false);
    let init = [7_u32, 38, 1 << 20, u32::MAX].map(u32::to_le_bytes).concat();
    // With the second half of the flags.
    let init = [init, vec![0; 48]].concat();
    let (error, answer) = served.ask(&request(INIT, 0, &init));
    assert_eq!((error, &answer[..4]), (0, &7_u32.to_le_bytes()[..]));
    let (error, found) = served.ask(&request(LOOKUP, 1, b"file\0"));
    assert_eq!(error, 0);
    let node = number(&found);
    let (error, opened) = served.ask(&request(OPEN, node, &[0; 8]));
    assert_eq!(error, 0);
    let read = [number(&opened), 0, 100, 0, 0].map(u64::to_le_bytes).concat();
    assert_eq!(served.ask(&request(READ, node, &read)), (0, b"content".to_vec()));
    served.end().unwrap();
}

#[test]
fn names_that_lead_out_are_refused() {
    let served = served(true);
    for name in [&b"..\0"[..], b"../secret\0", b"/etc/passwd\0", b".\0"] {
        assert_eq!(served.ask(&request(LOOKUP, 1, name)).0, -libc::EINVAL);
    }
    served.end().unwrap();
}

#[test]
fn a_read_of_an_absurd_length_is_cut() {
    let served = served(false);
    let node = number(&served.ask(&request(LOOKUP, 1, b"file\0")).1);
    let handle = number(&served.ask(&request(OPEN, node, &[0; 8])).1);
    for (offset, size) in [(0, u64::from(u32::MAX)), (u64::MAX, 100)] {
        let read = [handle, offset, size, 0, 0].map(u64::to_le_bytes).concat();
        let (error, answer) = served.ask(&request(READ, node, &read));
        assert!(error <= 0 && answer.len() <= 7, "{error}");
    }
    served.end().unwrap();
}

#[test]
fn a_message_that_is_not_as_long_as_it_says_ends_the_server() {
    for length in [0_u32, 39, 41, u32::MAX] {
        let served = served(false);
        let mut message = request(LOOKUP, 1, b"file\0");
        message[..4].copy_from_slice(&length.to_le_bytes());
        served.send(&message);
        assert!(matches!(served.server.join().unwrap(), Err(ServeError::Invalid(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, the server answers or ends, and nothing outside the directory changes.
    #[test]
    fn garbage_is_answered_or_ends_the_server(
        messages in proptest::collection::vec((0_u32..60, 0_u64..4, proptest::collection::vec(any::<u8>(), 0..300)), 1..20)
    ) {
        let served = served(true);
        for (opcode, node, body) in messages {
            if send(&served.socket, &request(opcode, node, &body), SendFlags::NOSIGNAL).is_err() {
                break;
            }
        }
        let Served { socket, server, dir } = served;
        drop(socket);
        let _ = server.join().unwrap();
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(names.len(), 2);
        prop_assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    }
}
