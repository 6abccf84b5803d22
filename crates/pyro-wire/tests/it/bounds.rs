//! What a hostile guest may send, and what of it the host sees.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use pyro_wire::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::codec::Decoder;

/// Decodes a control message as the host does.
fn decode<M: DeserializeOwned>(message: &Value) -> Result<M, FrameError> {
    let payload = serde_json::to_vec(message).unwrap();
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(payload.len() as u32);
    bytes.put_u8(0);
    bytes.put_slice(&payload);
    match FrameCodec::<M, ()>::default().decode(&mut bytes)? {
        Some(Frame::Control(message)) => Ok(message),
        other => panic!("not a control message: {}", other.is_some()),
    }
}

fn exit(status: &Value, numbers: [u64; 3]) -> Exit {
    let [duration_ms, stdout_dropped, stderr_dropped] = numbers;
    let message = json!({"exited": {
        "status": status, "timed_out": false, "duration_ms": duration_ms,
        "stdout_dropped": stdout_dropped, "stderr_dropped": stderr_dropped,
    }});
    match decode(&message).unwrap() {
        ExecReply::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn numbers_are_clamped_to_what_the_registry_can_store() {
    let exit = exit(&json!({"code": 0}), [u64::MAX, u64::MAX, i64::MAX as u64 + 1]);
    assert_eq!([exit.duration_ms, exit.stdout_dropped, exit.stderr_dropped], [MAX_COUNT; 3]);
    let sum = exit.stdout_dropped.checked_add(MAX_COUNT).and_then(|sum| sum.checked_add(MAX_COUNT));
    assert!(i64::try_from(sum.unwrap()).is_ok(), "the host adds counts of its own");

    let report = json!({"archived": {
        "entries": u64::MAX, "bytes": u64::MAX, "left_out": u64::MAX, "examples": [],
    }});
    let ArchiveReply::Archived(report) = decode(&report).unwrap() else { panic!("not archived") };
    assert_eq!([report.entries, report.bytes, report.left_out], [MAX_COUNT; 3]);
}

#[test]
fn numbers_within_the_bounds_are_kept() {
    assert_eq!(
        exit(&json!({"code": 255}), [0, 1, MAX_COUNT]),
        Exit {
            status: Status::Code(255),
            timed_out: false,
            duration_ms: 0,
            stdout_dropped: 1,
            stderr_dropped: MAX_COUNT,
        }
    );
}

#[test]
fn what_is_not_an_integer_of_64_bits_is_malformed() {
    for number in [json!(-1), json!(1.5), json!(1e30), json!("1"), json!(null)] {
        let message = json!({"exited": {
            "status": {"code": 0}, "timed_out": false, "duration_ms": number,
            "stdout_dropped": 0, "stderr_dropped": 0,
        }});
        assert!(matches!(decode::<ExecReply>(&message), Err(FrameError::Malformed(_))), "{number}");
    }
}

#[test]
fn statuses_are_clamped_to_those_of_processes() {
    for (sent, seen) in [
        (json!({"code": i32::MIN}), Status::Code(0)),
        (json!({"code": 256}), Status::Code(255)),
        (json!({"signal": 0}), Status::Signal(1)),
        (json!({"signal": i32::MAX}), Status::Signal(64)),
        (json!({"signal": 9}), Status::Signal(9)),
    ] {
        assert_eq!(exit(&sent, [0; 3]).status, seen);
    }
}

fn failure(step: &str, cause: &str, errno: &Value) -> Failure {
    let failure = json!({"kind": "other", "step": step, "cause": cause, "errno": errno});
    match decode(&json!({"failed": failure})).unwrap() {
        HaltReply::Failed(failure) => failure,
        HaltReply::Halted => panic!("not a failure"),
    }
}

proptest! {
    #[test]
    fn texts_are_cut_to_their_bound(text in "\\PC", length in 0usize..12_000) {
        let text = text.repeat(length);
        let failure = failure(&text, &text, &Value::Null);
        for seen in [failure.step, failure.cause] {
            prop_assert!(seen.len() <= MAX_TEXT_BYTES);
            prop_assert!(seen == text || (text.len() > MAX_TEXT_BYTES && seen.ends_with('…')));
        }
    }
}

#[test]
fn an_impossible_errno_counts_as_absent() {
    for (sent, seen) in [
        (json!(2), Some(2)),
        (json!(4095), Some(4095)),
        (json!(0), None),
        (json!(-2), None),
        (json!(4096), None),
        (json!(null), None),
    ] {
        assert_eq!(failure("s", "c", &sent).errno, seen);
    }
}

#[test]
fn an_unknown_kind_is_malformed() {
    let message = json!({"failed": {"kind": "new", "step": "s", "cause": "c", "errno": 1}});
    assert!(matches!(decode::<HaltReply>(&message), Err(FrameError::Malformed(_))));
}

#[test]
fn every_kind_is_listed_and_has_a_name_of_its_own() {
    let schema = schemars::schema_for!(FailureKind);
    let known: Vec<_> = schema.as_value()["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|variant| match &variant["enum"] {
            Value::Array(names) => names.clone(),
            _ => vec![variant["const"].clone()],
        })
        .collect();
    let listed: Vec<_> = FailureKind::ALL.iter().map(|kind| serde_json::to_value(kind).unwrap()).collect();
    assert_eq!(listed, known);
}

#[test]
fn a_report_keeps_a_few_short_names() {
    let examples = vec!["n".repeat(5000); 100];
    let report = json!({"archived": {"entries": 0, "bytes": 0, "left_out": 100, "examples": examples}});
    let ArchiveReply::Archived(report) = decode(&report).unwrap() else { panic!("not archived") };
    assert_eq!(report.examples.len(), MAX_EXAMPLES);
    assert!(report.examples.iter().all(|name| name.len() <= MAX_EXAMPLE_BYTES));
    let report = json!({"archived": {"entries": 0, "bytes": 0, "left_out": 0, "examples": [1]}});
    assert!(decode::<ArchiveReply>(&report).is_err());
}

#[test]
fn a_guest_introduces_itself_with_short_printable_labels() {
    let hello = |release: &str| {
        decode::<Hello>(&json!({
            "generation": GENERATION, "agent_version": "2.1.0", "kernel_release": release,
        }))
    };
    assert_eq!(hello("6.12.0-pyro").unwrap().kernel_release, "6.12.0-pyro");
    for bad in
        ["x".repeat(MAX_LABEL_BYTES + 1), "6.12\u{1b}[2J".to_owned(), "6.12\n".to_owned(), "ü".to_owned()]
    {
        assert!(hello(&bad).is_err(), "{bad:?}");
        assert!(hello(&to_label(&bad)).is_ok(), "{bad:?}");
    }
    assert!(matches!(
        decode::<Hello>(&json!({"generation": u64::MAX, "agent_version": "", "kernel_release": ""})),
        Err(FrameError::Malformed(_))
    ));
}

#[test]
fn a_reply_to_another_request_is_malformed() {
    for message in [json!("halted"), json!("identified"), json!({"archived": {}})] {
        assert!(matches!(decode::<ExecReply>(&message), Err(FrameError::Malformed(_))), "{message}");
    }
    assert!(decode::<IdentifyReply>(&json!("halted")).is_err());
    for message in [json!("terminate"), json!(null), json!({})] {
        assert!(decode::<NoInput>(&message).is_err(), "{message}");
    }
}
