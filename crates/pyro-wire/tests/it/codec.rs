//! The decoder against arbitrary and adversarial bytes.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use pyro_wire::*;
use tokio_util::codec::{Decoder, Encoder};

type Codec = FrameCodec<ExecReply, ExecReply>;

fn frames() -> impl Strategy<Value = Frame<ExecReply>> {
    let stream = prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)];
    let status = prop_oneof![(0..=255).prop_map(Status::Code), (1..=64).prop_map(Status::Signal)];
    let counts = proptest::array::uniform3(0..=MAX_COUNT);
    let exit = (status, any::<bool>(), counts).prop_map(|(status, timed_out, n)| {
        let [duration_ms, stdout_dropped, stderr_dropped] = n;
        let exit = Exit { status, timed_out, duration_ms, stdout_dropped, stderr_dropped };
        Frame::Control(ExecReply::Exited(exit))
    });
    let kind = proptest::sample::select(FailureKind::ALL.as_slice());
    let errno = proptest::option::of(1..4096);
    let failure = (kind, ".*", ".*", errno).prop_map(|(kind, step, cause, errno)| {
        Frame::Control(ExecReply::NotStarted(Failure { kind, step, cause, errno }))
    });
    let output = (stream, proptest::collection::vec(any::<u8>(), 0..4096))
        .prop_map(|(stream, bytes)| Frame::Output(stream, Bytes::from(bytes)));
    prop_oneof![exit, failure, output]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_however_it_is_cut(
        sent in proptest::collection::vec(frames(), 1..6),
        cuts in proptest::collection::vec(1usize..700, 1..40),
    ) {
        let mut bytes = BytesMut::new();
        for frame in &sent {
            Codec::default().encode(frame.clone(), &mut bytes).unwrap();
        }
        let (mut codec, mut buffer, mut received) = (Codec::default(), BytesMut::new(), Vec::new());
        for cut in cuts.into_iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            buffer.unsplit(bytes.split_to(cut.min(bytes.len())));
            while let Some(frame) = codec.decode(&mut buffer).unwrap() {
                received.push(frame);
            }
        }
        prop_assert_eq!(sent, received);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let mut buffer = BytesMut::from(bytes.as_slice());
        while let Ok(Some(_)) = Codec::default().decode(&mut buffer) {}
    }

    #[test]
    fn a_declared_length_is_never_allocated_before_it_is_checked(len in MAX_CONTROL_BYTES as u32 + 1.., kind in 0u8..3) {
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(len);
        buffer.put_u8(kind);
        let capacity = buffer.capacity();
        let refused = matches!(Codec::default().decode(&mut buffer), Err(FrameError::TooLong { .. }));
        prop_assert!(refused);
        prop_assert_eq!(capacity, buffer.capacity());
    }
}

#[test]
fn an_unknown_kind_is_refused_before_its_payload_arrives() {
    let mut buffer = BytesMut::from(&[1, 0, 0, 0, 9][..]);
    assert!(matches!(Codec::default().decode(&mut buffer), Err(FrameError::UnknownKind(9))));
}

#[test]
fn output_over_the_bound_is_not_sent() {
    let frame = Frame::Output(OutputStream::Stdout, Bytes::from(vec![0; MAX_OUTPUT_BYTES + 1]));
    let refused = Codec::default().encode(frame, &mut BytesMut::new());
    assert!(matches!(refused, Err(FrameError::TooLong { .. })));
}

#[test]
fn control_of_the_wrong_shape_is_an_error() {
    let mut buffer = BytesMut::new();
    buffer.put_u32_le(2);
    buffer.put_u8(0);
    buffer.put_slice(b"{}");
    assert!(matches!(Codec::default().decode(&mut buffer), Err(FrameError::Malformed(_))));
}

#[test]
fn a_reply_has_a_lower_maximum_than_a_request() {
    let mut header = (MAX_REPLY_BYTES as u32 + 1).to_le_bytes().to_vec();
    header.push(0);
    let mut buffer = BytesMut::from(&header[..]);
    assert!(matches!(FrameCodec::<ExecReply, ()>::default().decode(&mut buffer), Ok(None)));
    let refused = FrameCodec::<ExecReply, ()>::of_replies().decode(&mut buffer);
    assert!(matches!(refused, Err(FrameError::TooLong { max: MAX_REPLY_BYTES, .. })));
}
