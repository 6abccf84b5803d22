//! The schema and the bytes of the protocol, pinned.
//!
//! If one of these fails you changed the protocol. Adding an optional field is compatible: accept the new
//! snapshot. Anything else makes running guests unreadable for the new host: raise `GENERATION` too.

use bytes::{Bytes, BytesMut};
use pyro_wire::*;
use schemars::schema_for;
use tokio_util::codec::Encoder;

#[test]
fn schema_is_pinned() {
    let schema = serde_json::json!({
        "generation": GENERATION,
        "hello": schema_for!(Hello),
        "preparation": schema_for!(Preparation),
        "bootstrap": schema_for!(Bootstrap),
        "setup_reply": schema_for!(SetupReply),
        "request": schema_for!(Request),
        "exec_input": schema_for!(ExecInput),
        "exec_reply": schema_for!(ExecReply),
        "input_end": schema_for!(InputEnd),
        "input_reply": schema_for!(InputReply),
        "steer_reply": schema_for!(SteerReply),
        "archive_reply": schema_for!(ArchiveReply),
        "connect_input": schema_for!(ConnectInput),
        "connect_reply": schema_for!(ConnectReply),
        "probe_reply": schema_for!(ProbeReply),
        "identify_reply": schema_for!(IdentifyReply),
        "halt_reply": schema_for!(HaltReply),
    });
    insta::assert_json_snapshot!("schema", schema);
}

fn encoded<M: serde::Serialize>(frame: Frame<M>) -> String {
    let mut bytes = BytesMut::new();
    FrameCodec::<(), M>::default().encode(frame, &mut bytes).unwrap();
    bytes.escape_ascii().to_string()
}

#[test]
fn encoded_bytes_are_pinned() {
    let exec = Exec::new("true", std::time::Duration::from_secs(30));
    insta::assert_snapshot!(encoded(Frame::Control(Request::Exec(exec))), @r#"}\x00\x00\x00\x00{\"exec\":{\"program\":{\"shell\":{\"text\":\"true\"}},\"cwd\":\"/workspace\",\"timeout_ms\":30000,\"kill_grace_ms\":1000,\"output_limit\":null}}"#);
    insta::assert_snapshot!(encoded(Frame::Control(ExecInput::Terminate)), @r#"\x0b\x00\x00\x00\x00\"terminate\""#);
    insta::assert_snapshot!(encoded(Frame::Control(Request::from(Connect { port: 80 }))), @r#"\x17\x00\x00\x00\x00{\"connect\":{\"port\":80}}"#);
    insta::assert_snapshot!(encoded(Frame::Control(ConnectInput::Finished)), @r#"\n\x00\x00\x00\x00\"finished\""#);
    insta::assert_snapshot!(encoded(Frame::Control(Request::from(Halt))), @r#"\x06\x00\x00\x00\x00\"halt\""#);
    let exit = Exit {
        status: Status::Code(0),
        timed_out: false,
        duration_ms: 7,
        stdout_dropped: 0,
        stderr_dropped: 0,
    };
    insta::assert_snapshot!(encoded(Frame::Control(ExecReply::Exited(exit))), @r#"h\x00\x00\x00\x00{\"exited\":{\"status\":{\"code\":0},\"timed_out\":false,\"duration_ms\":7,\"stdout_dropped\":0,\"stderr_dropped\":0}}"#);
    let failure =
        Failure { kind: FailureKind::DirectoryNotFound, step: "s".into(), cause: "c".into(), errno: Some(2) };
    insta::assert_snapshot!(encoded(Frame::Control(ExecReply::NotStarted(failure))), @r#"O\x00\x00\x00\x00{\"not_started\":{\"kind\":\"directory_not_found\",\"step\":\"s\",\"cause\":\"c\",\"errno\":2}}"#);
    insta::assert_snapshot!(encoded(Frame::<()>::Output(OutputStream::Stderr, Bytes::from_static(b"\xff\0x"))), @r"\x03\x00\x00\x00\x02\xff\x00x");
}
