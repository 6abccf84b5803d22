//! The second phase as a whole: streams, and a host that does not follow the protocol.

use bytes::BufMut;
use pyro_guest::{Agent, AgentError, CommandSettings};
use pyro_wire::{MAX_CONTROL_BYTES, MAX_OUTPUT_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{Host, Recorder};

async fn assert_goes_on(host: &Host) {
    assert_eq!(host.run(host.exec("echo on")).await.text(), "on\n");
}

/// Sends bytes on a stream of their own, and returns what comes until the guest closes it.
async fn answer_to(host: &Host, bytes: &[u8]) -> Vec<u8> {
    let mut stream = host.open().await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A guest that drops a stream resets it.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

fn frame(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32_le(length);
    bytes.put_u8(kind);
    bytes.put_slice(payload);
    bytes
}

#[tokio::test]
async fn what_is_no_request_gets_no_answer_and_harms_nobody() {
    let host = Host::new();
    for (kind, payload) in [
        (0, &b"{]"[..]),
        (0, b"{}"),
        (0, b"\"terminate\""),
        (0, b"\"unknown\""),
        (0, b"{\"exec\":{\"command\":1}}"),
        (0, b"{\"halt\":null,\"exec\":{}}"),
        (0, b"\xff\xfe"),
        (0, b""),
        (1, b"output"),
        (2, b"output"),
        (9, b"what"),
    ] {
        let bytes = frame(kind, payload.len() as u32, payload);
        assert_eq!(answer_to(&host, &bytes).await, b"", "{payload:?}");
    }
    assert_goes_on(&host).await;
    assert_eq!(host.machine.done(), []);
}

#[tokio::test]
async fn a_declared_length_is_checked_before_the_payload_arrives() {
    let host = Host::new();
    for (kind, length) in
        [(0, u32::MAX), (0, MAX_CONTROL_BYTES as u32 + 1), (1, u32::MAX), (2, MAX_OUTPUT_BYTES as u32 + 1)]
    {
        assert_eq!(answer_to(&host, &frame(kind, length, b"")).await, b"");
    }
    assert_goes_on(&host).await;
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let host = Host::new();
    let payload = b"[".repeat(MAX_CONTROL_BYTES);
    assert_eq!(answer_to(&host, &frame(0, payload.len() as u32, &payload)).await, b"");
    assert_goes_on(&host).await;
}

#[tokio::test]
async fn streams_that_say_nothing_or_half_a_request_keep_nobody_waiting() {
    let host = Host::new();
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = host.open().await;
        stream.write_all(b"\x10\0\0\0\0{").await.unwrap();
        stream.flush().await.unwrap();
        silent.push(stream);
    }
    assert_goes_on(&host).await;
    drop(silent);
    assert_goes_on(&host).await;
}

fn agent() -> Agent<Recorder> {
    let settings = CommandSettings { workspace: "/".into(), ..CommandSettings::new(crate::host::agent()) };
    Agent::new(Recorder::default(), settings)
}

#[tokio::test]
async fn a_host_that_closes_the_channel_ends_the_agent() {
    let (mut host, guest) = UnixStream::pair().unwrap();
    host.shutdown().await.unwrap();
    agent().serve(guest).await.unwrap();
}

#[tokio::test]
async fn what_is_not_yamux_ends_the_agent_with_an_error() {
    let (mut host, guest) = UnixStream::pair().unwrap();
    host.write_all(&[0xff; 64]).await.unwrap();
    let outcome = agent().serve(guest).await;
    assert!(matches!(outcome, Err(AgentError::Channel(_))), "{outcome:?}");
}

/// Sends the frame in two packets, because yamux reads no more at once than it needs.
async fn send_yamux(host: &UnixStream, flags: u8, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let header = [&[0, 0, 0, flags, 0, 0, 0, 1], length.as_slice()].concat();
    for packet in [header.as_slice(), body] {
        host.writable().await.unwrap();
        assert_eq!(host.try_write(packet).unwrap(), packet.len());
    }
}

/// Each write is a packet of this channel.
#[tokio::test]
async fn a_frame_is_written_at_once_with_its_header() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (host, guest) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let [host, guest] = [host, guest].map(|end| UnixStream::from_std(end.into()).unwrap());
    let serving = tokio::spawn(async move { agent().serve(guest).await });
    let exec = pyro_wire::Exec::new("echo output", std::time::Duration::from_secs(60));
    let exec = pyro_wire::Exec { cwd: "/".to_owned(), ..exec };
    let request = serde_json::to_vec(&pyro_wire::Request::from(exec)).unwrap();
    // The flag opens the stream.
    send_yamux(&host, 1, &frame(0, u32::try_from(request.len()).unwrap(), &request)).await;
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains("exited") {
        let mut packet = vec![0; 64 << 10];
        host.readable().await.unwrap();
        let Ok(length) = host.try_read(&mut packet) else { continue };
        let mut rest = &packet[..length];
        assert!(!rest.is_empty(), "the agent has ended: {:?}", serving.await);
        while let Some((header, after)) = rest.split_at_checked(12) {
            let is_data = header[1] == 0;
            let body = u32::from_be_bytes(header[8..].try_into().unwrap()) as usize * usize::from(is_data);
            let (body, after) = after.split_at_checked(body).expect("a frame is cut in two");
            received.extend_from_slice(body);
            rest = after;
        }
        assert_eq!(rest, [0; 0], "a header is cut in two");
    }
    assert!(String::from_utf8_lossy(&received).contains("output\n"));
}
