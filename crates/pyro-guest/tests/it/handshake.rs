//! The first phase: what the guest says, in which order, and what it does not accept.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use bytes::{BufMut, BytesMut};
use pyro_guest::{HandshakeError, set_up};
use pyro_wire::{
    Bootstrap, Frame, FrameCodec, FrameError, GENERATION, Hello, MAX_CONTROL_BYTES, OutputStream,
    Preparation, SetupReply,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder};

use crate::host::{Done, Recorder, a_bootstrap, a_failure};

fn a_preparation() -> Preparation {
    Preparation { generation: GENERATION, base_filesystem: "erofs".into(), warm_up: true }
}

fn encoded<M: Serialize>(message: M) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    FrameCodec::<(), M>::default().encode(Frame::Control(message), &mut bytes).unwrap();
    bytes.to_vec()
}

fn next<M: DeserializeOwned>(bytes: &mut BytesMut) -> M {
    match FrameCodec::<M, ()>::default().decode(bytes).unwrap() {
        Some(Frame::Control(message)) => message,
        _ => panic!("no message"),
    }
}

/// The host's end of a channel. Guest and host take turns in one thread: what is written fits into the socket.
struct Channel {
    host: UnixStream,
    guest: UnixStream,
}

impl Channel {
    /// A channel on which the host has sent this already.
    fn with(bytes: &[u8]) -> Self {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(bytes).unwrap();
        Self { host, guest }
    }

    /// The host sends nothing more.
    fn ended(self) -> Self {
        self.host.shutdown(Shutdown::Write).unwrap();
        self
    }

    fn set_up(&mut self, machine: &mut Recorder) -> Result<(), HandshakeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(set_up(&mut self.guest, machine))
    }

    /// Everything that the guest has said.
    fn said(mut self) -> BytesMut {
        drop(self.guest);
        let mut bytes = Vec::new();
        // What the guest did not read resets the connection behind what it wrote.
        let _ = self.host.read_to_end(&mut bytes);
        BytesMut::from(bytes.as_slice())
    }
}

/// A channel whose host sends each message as the answer to the one before.
struct Turns {
    replies: std::vec::IntoIter<Vec<u8>>,
    pending: Vec<u8>,
    said: BytesMut,
    /// Whether the guest read before it had spoken.
    interrupted: bool,
    has_spoken: bool,
}

impl Turns {
    fn new(replies: Vec<Vec<u8>>) -> Self {
        Self {
            replies: replies.into_iter(),
            pending: Vec::new(),
            said: BytesMut::new(),
            interrupted: false,
            has_spoken: false,
        }
    }
}

impl Read for Turns {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.pending.is_empty() {
            self.interrupted |= !std::mem::take(&mut self.has_spoken);
            self.pending = self.replies.next().unwrap_or_default();
        }
        // One byte at a time: no message may depend on how it arrives.
        let count = self.pending.len().min(1).min(buffer.len());
        buffer[..count].copy_from_slice(&self.pending[..count]);
        self.pending.drain(..count);
        Ok(count)
    }
}

impl Write for Turns {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.has_spoken = true;
        self.said.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_guest_greets_and_answers_each_message() {
    let mut channel = Turns::new(vec![encoded(a_preparation()), encoded(a_bootstrap("a"))]);
    let mut machine = Recorder::default();
    set_up(&mut channel, &mut machine).await.unwrap();
    assert!(!channel.interrupted, "the guest speaks before each message of the host");
    let hello: Hello = next(&mut channel.said);
    assert_eq!(hello.generation, GENERATION);
    assert_eq!(hello.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(!hello.kernel_release.is_empty());
    assert_eq!(next::<SetupReply>(&mut channel.said), SetupReply::Done);
    assert_eq!(next::<SetupReply>(&mut channel.said), SetupReply::Done);
    assert!(channel.said.is_empty());
    assert_eq!(machine.done(), [Done::Prepared(a_preparation()), Done::Applied(a_bootstrap("a"))]);
}

#[test]
fn what_follows_the_last_answer_is_left_for_the_second_phase() {
    let mut channel =
        Turns::new(vec![encoded(a_preparation()), encoded(a_bootstrap("a")), b"yamux".to_vec()]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(set_up(&mut channel, &mut Recorder::default())).unwrap();
    let mut rest = [0; 5];
    channel.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"yamux");
}

#[test]
fn a_host_that_does_not_wait_for_its_turn_is_refused() {
    let both = [encoded(a_preparation()), encoded(a_bootstrap("a"))].concat();
    let mut channel = Channel::with(&both);
    let mut machine = Recorder::default();
    assert!(matches!(channel.set_up(&mut machine), Err(HandshakeError::Unexpected)));
    assert_eq!(machine.done(), []);
}

#[test]
fn messages_in_the_wrong_order_are_refused() {
    let mut channel = Channel::with(&encoded(a_bootstrap("a")));
    let mut machine = Recorder::default();
    let refused = channel.set_up(&mut machine);
    assert!(matches!(refused, Err(HandshakeError::Frame(FrameError::Malformed(_)))), "{refused:?}");
    assert_eq!(machine.done(), []);

    let mut channel = Turns::new(vec![encoded(a_preparation()), encoded(a_preparation())]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(set_up(&mut channel, &mut machine));
    assert!(matches!(refused, Err(HandshakeError::Frame(FrameError::Malformed(_)))), "{refused:?}");
    assert_eq!(machine.done(), [Done::Prepared(a_preparation())]);
}

#[test]
fn output_is_no_message() {
    let mut bytes = BytesMut::new();
    let output = Frame::Output(OutputStream::Stdout, bytes::Bytes::from_static(b"{}"));
    FrameCodec::<(), ()>::default().encode(output, &mut bytes).unwrap();
    let refused = Channel::with(&bytes).set_up(&mut Recorder::default());
    assert!(matches!(refused, Err(HandshakeError::Unexpected)), "{refused:?}");
}

#[test]
fn a_host_that_hangs_up_ends_the_guest() {
    for bytes in [Vec::new(), encoded(a_preparation())[..7].to_vec()] {
        let refused = Channel::with(&bytes).ended().set_up(&mut Recorder::default());
        assert!(matches!(refused, Err(HandshakeError::Closed)), "{refused:?}");
    }
}

#[test]
fn a_failed_step_is_reported_and_ends_the_set_up() {
    let mut channel = Channel::with(&encoded(a_preparation()));
    let mut machine = Recorder::failing();
    let outcome = channel.set_up(&mut machine);
    assert!(matches!(outcome, Err(HandshakeError::Step(failure)) if failure == a_failure()));
    let mut said = channel.said();
    let _: Hello = next(&mut said);
    assert_eq!(next::<SetupReply>(&mut said), SetupReply::Failed(a_failure()));
    assert!(said.is_empty());
    assert_eq!(machine.done().len(), 1);
}

#[test]
fn a_declared_length_is_checked_before_anything_is_read() {
    // The channel stays open: a guest that believed the length would wait for the rest.
    for (len, kind) in [(u32::MAX, 0), (MAX_CONTROL_BYTES as u32 + 1, 0), (u32::MAX, 1)] {
        let mut header = BytesMut::new();
        header.put_u32_le(len);
        header.put_u8(kind);
        let refused = Channel::with(&header).set_up(&mut Recorder::default());
        assert!(matches!(refused, Err(HandshakeError::Frame(FrameError::TooLong { .. }))), "{refused:?}");
    }
}

#[test]
fn what_is_not_a_frame_is_refused() {
    for (bytes, expected) in [
        (&b"\x02\0\0\0\x09{}"[..], "invalid message from the host: unknown frame kind 9"),
        (&b"\x02\0\0\0\0{]"[..], "invalid message from the host: malformed control message"),
        (&b"\x02\0\0\0\0{}"[..], "invalid message from the host: malformed control message"),
    ] {
        let refused = Channel::with(bytes).set_up(&mut Recorder::default());
        assert_eq!(refused.unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_host_may_use_messages_with_fields_that_the_guest_does_not_know() {
    let mut message = serde_json::to_value(a_bootstrap("a")).unwrap();
    message["later"] = 1.into();
    let mut channel = Turns::new(vec![encoded(a_preparation()), encoded(message)]);
    let mut machine = Recorder::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(set_up(&mut channel, &mut machine)).unwrap();
    let expected: Bootstrap = a_bootstrap("a");
    assert_eq!(machine.done()[1], Done::Applied(expected));
}
