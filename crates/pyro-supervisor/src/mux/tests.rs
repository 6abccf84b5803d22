//! The channel against a guest at the other end of a socket pair.

use futures::future::poll_fn;
use pyro_wire::{Exec, ExecReply, Exit, OutputStream, Status};

use super::*;

#[tokio::test]
async fn one_request_too_many_is_refused_and_costs_the_others_nothing() {
    let (host, guest) = UnixStream::pair().unwrap();
    let (streams, driver) = drive(host, Pace::USUAL);
    let driving = tokio::spawn(driver);
    let mut guest = Connection::new(guest.compat(), Config::default(), Mode::Server);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(Ok(stream)) = poll_fn(|context| guest.poll_next_inbound(context)).await {
            kept.push(stream);
        }
    });
    let mut open = Vec::new();
    for _ in 0..MAX_REQUESTS {
        open.push(streams.open().await.unwrap());
    }
    for _ in 0..50 {
        assert_eq!(streams.open().await.unwrap_err(), OpenError::TooMany);
    }
    open.pop();
    open.push(streams.open().await.unwrap());
    assert!(streams.open_reserved().await.is_some(), "ours are not counted");
    open.pop();
    driving.abort();
    streams.closed().await;
    assert_eq!(streams.open().await.unwrap_err(), OpenError::Closed);
}

/// The output of a command that the supervisor runs for itself is of no use, and a guest must not open streams.
#[tokio::test]
async fn only_the_answer_counts_and_streams_of_the_guest_are_reset() {
    let (host, guest) = UnixStream::pair().unwrap();
    let (streams, driver) = drive(host, Pace::USUAL);
    tokio::spawn(driver);
    let mut guest = Connection::new(guest.compat(), Config::default(), Mode::Server);
    let (sender, reset) = oneshot::channel();
    tokio::spawn(async move {
        let opened = poll_fn(|context| guest.poll_new_outbound(context)).await.unwrap();
        let mut sender = Some((sender, opened.compat()));
        while let Some(Ok(stream)) = poll_fn(|context| guest.poll_next_inbound(context)).await {
            tokio::spawn(async move {
                let mut stream = Framed::new(stream.compat(), FrameCodec::<Request, ExecReply>::default());
                stream.next().await.unwrap().unwrap();
                stream.send(Frame::Output(OutputStream::Stdout, "output".into())).await.unwrap();
                let exit = Exit {
                    status: Status::Code(7),
                    timed_out: false,
                    duration_ms: 1,
                    stdout_dropped: 0,
                    stderr_dropped: 0,
                };
                stream.send(Frame::Control(ExecReply::Exited(exit))).await.unwrap();
            });
            if let Some((sender, mut opened)) = sender.take() {
                tokio::spawn(async move {
                    // The host reads it only when it is written to.
                    let _ = opened.write_all(b"x").await;
                    let ended = opened.read(&mut [0]).await;
                    let _ = sender.send(!matches!(ended, Ok(1..)));
                });
            }
        }
    });
    let exec = || Exec::new("true", std::time::Duration::from_secs(1));
    for _ in 0..2 {
        let Some(ExecReply::Exited(exit)) = streams.ask(exec()).await else { panic!("no answer") };
        assert_eq!(exit.status, Status::Code(7));
    }
    assert!(reset.await.unwrap(), "it has ended, with or without an error");
}

/// Each write is a packet of this channel.
#[tokio::test]
async fn a_frame_is_written_at_once_with_its_header() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    const YAMUX_HEADER: usize = 12;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (host, guest) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let [host, guest] = [host, guest].map(|end| UnixStream::from_std(end.into()).unwrap());
    let (streams, driver) = drive(host, Pace::USUAL);
    tokio::spawn(driver);
    let (stream, _permit) = streams.open().await.unwrap();
    let exec = Exec::new("x".repeat(10_000), std::time::Duration::from_secs(1));
    let sending = tokio::spawn(call(Framed::new(stream.compat(), FrameCodec::default()), exec));
    let mut packet = vec![0; 64 << 10];
    // yamux may send a frame of its own first, which is only a header.
    let mut length = YAMUX_HEADER;
    while length == YAMUX_HEADER {
        length = guest.async_io(tokio::io::Interest::READABLE, || guest.try_read(&mut packet)).await.unwrap();
    }
    let (header, body) = packet[..length].split_at(YAMUX_HEADER);
    assert_eq!(u32::from_be_bytes(header[8..].try_into().unwrap()) as usize, body.len());
    assert!(body.len() > 10_000, "the whole request is in one packet: {}", body.len());
    sending.await.unwrap().unwrap();
}
