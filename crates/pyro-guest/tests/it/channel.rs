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
