//! Connections of the host to servers in the machine.

use std::io;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Connect, ConnectInput, ConnectReply, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::host::{CallStream, Host, chunk};

/// A server's end of a connection, and the host's stream to it.
async fn connected(address: &str) -> (Host, TcpStream, CallStream<Connect>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let host = Host::new();
    let stream = host.call(Connect { port: listener.local_addr().unwrap().port() }).await;
    let (server, _) = listener.accept().await.unwrap();
    (host, server, stream)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    for address in ["127.0.0.1", "::1"] {
        let (_host, mut server, mut stream) = connected(address).await;
        stream.send(chunk(Bytes::from_static(b"request"))).await.unwrap();
        stream.send(Frame::Control(ConnectInput::Finished)).await.unwrap();
        let mut request = Vec::new();
        server.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        // The server answers after the client has sent everything.
        let answer = vec![b'a'; 1 << 20];
        server.write_all(&answer).await.unwrap();
        drop(server);
        let mut received = Vec::new();
        loop {
            match stream.next().await.unwrap().unwrap() {
                Frame::Output(_, bytes) => received.extend_from_slice(&bytes),
                Frame::Control(reply) => break assert_eq!(reply, ConnectReply::Finished),
            }
        }
        assert!(received == answer);
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn a_server_that_ends_first_still_gets_what_the_client_sends() {
    let (_host, mut server, mut stream) = connected("127.0.0.1").await;
    server.shutdown().await.unwrap();
    let Some(Ok(Frame::Control(ConnectReply::Finished))) = stream.next().await else { panic!("no end") };
    stream.send(chunk(Bytes::from_static(b"late"))).await.unwrap();
    stream.send(Frame::Control(ConnectInput::Finished)).await.unwrap();
    let mut late = Vec::new();
    server.read_to_end(&mut late).await.unwrap();
    assert_eq!(late, b"late");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_host_that_is_gone_resets_the_server_and_a_server_that_resets_ends_the_stream() {
    let (_host, mut server, stream) = connected("127.0.0.1").await;
    drop(stream);
    let error = server.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (_host, mut server, mut stream) = connected("127.0.0.1").await;
    server.write_all(b"x").await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Frame::Output(..)))));
    rustix::net::sockopt::set_socket_linger(&server, Some(std::time::Duration::ZERO)).unwrap();
    drop(server);
    // Without the answer that says that the server has sent everything.
    assert!(stream.next().await.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn a_port_on_which_nothing_listens_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut stream = Host::new().call(Connect { port }).await;
    let Some(Ok(Frame::Control(ConnectReply::Failed(failure)))) = stream.next().await else {
        panic!("an answer")
    };
    assert_eq!(failure.step, format!("connecting to port {port}"));
    assert!(stream.next().await.is_none());
}

/// A server that takes nothing holds its client up, and no other stream. Nothing is lost.
#[tokio::test]
async fn a_slow_server_slows_down_its_client_alone() {
    const BLOCKS: usize = 512;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = Host::new();
    let mut stream = host.call(Connect { port }).await;
    let (mut slow, _) = listener.accept().await.unwrap();
    let block = Bytes::from(vec![b'x'; 64 << 10]);
    let flood = async {
        for _ in 0..BLOCKS {
            stream.send(chunk(block.clone())).await.unwrap();
        }
        stream.send(Frame::Control(ConnectInput::Finished)).await.unwrap();
    };
    let other = async {
        let mut other = host.call(Connect { port }).await;
        let (mut server, _) = listener.accept().await.unwrap();
        other.send(chunk(Bytes::from_static(b"x"))).await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        let mut taken = Vec::new();
        slow.read_to_end(&mut taken).await.unwrap();
        assert_eq!(taken.len(), BLOCKS * block.len());
    };
    tokio::join!(flood, other);
}
