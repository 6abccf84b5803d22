use std::fmt::Debug;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Accelerator, CallEvent, CopyLimits, EnvironmentList, ErrorKind, Event, ExecutionMode, FileEncoding, Hint,
    Outcome, Output, OutputMode, OutputStream, PruneReport, PullEvent, RunPhase, StopReason, VmId, VmState,
};

impl Arbitrary for VmId {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        "[0-9a-f]{12}".prop_map(|text| text.parse().expect("a well-formed id")).boxed()
    }
}

/// Output is serialized as text, so only text comes back unchanged.
impl Arbitrary for Output {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        any::<String>().prop_map(|text| text.into_bytes().into()).boxed()
    }
}

/// The derived strategy has a layer for each variant, which is more than a stack holds.
impl Arbitrary for Hint {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let with_text = |(hint, text): (Self, String)| {
            let mut fields = serde_json::to_value(hint).expect("JSON");
            for (name, value) in fields.as_object_mut().expect("an object") {
                if name != "hint" {
                    *value = text.clone().into();
                }
            }
            serde_json::from_value(fields).expect("a hint")
        };
        (proptest::sample::select(Self::samples()), any::<String>()).prop_map(with_text).boxed()
    }
}

impl Arbitrary for Event {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let phase = prop_oneof![
            any::<String>().prop_map(|environment| RunPhase::Create { environment }),
            any::<VmId>().prop_map(|vm_id| RunPhase::Start { vm_id }),
            any::<VmId>().prop_map(|vm_id| RunPhase::Execute { vm_id }),
        ];
        let pull = prop_oneof![
            any::<String>().prop_map(|environment| PullEvent::Started { environment }),
            any::<(String, u64, u64)>().prop_map(|(text, done, total)| PullEvent::Step { text, done, total }),
            any::<String>().prop_map(|environment| PullEvent::Ready { environment }),
        ];
        prop_oneof![
            phase.prop_map(Self::Phase),
            pull.prop_map(Self::Pull),
            Just(Self::FirstOfKind),
            any::<(String, u64)>().prop_map(|(step, seconds)| Self::Starting { step, seconds }),
            any::<String>().prop_map(Self::Warning),
            any::<(OutputStream, Vec<u8>)>()
                .prop_map(|(stream, bytes)| Self::Output { stream, bytes: Bytes::from(bytes) }),
        ]
        .boxed()
    }
}

fn comes_back<T: Debug + PartialEq + Serialize + DeserializeOwned>(value: &T) -> Result<(), TestCaseError> {
    let text = serde_json::to_string(value).expect("JSON");
    let back: T =
        serde_json::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
    prop_assert_eq!(&back, value, "{}", text);
    Ok(())
}

macro_rules! requests_and_results {
    ($($Request:ident)+) => {
        /// A test for each operation, named after its request type.
        #[expect(non_snake_case, reason = "named after types")]
        mod requests_and_results_come_back_as_they_were {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
                $(
                    #[test]
                    fn $Request(request: $Request, result: <$Request as Operation>::Result) {
                        comes_back(&request)?;
                        comes_back(&result)?;
                    }
                )+
            }
        }
    };
}

for_each_operation!(requests_and_results);

macro_rules! values {
    ($($name:ident: $type:ty),+) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(value: $type) {
                    comes_back(&value)?;
                    // Every type describes itself.
                    let schema = schemars::schema_for!($type);
                    prop_assert!(schema.as_object().is_some());
                }
            )+
        }
    };
}

values! {
    ids_come_back: VmId,
    errors_come_back: Error,
    hints_come_back: Hint,
    call_events_come_back: CallEvent,
    environment_lists_come_back: EnvironmentList,
    prune_reports_come_back: PruneReport,
    copy_limits_come_back: CopyLimits,
    words_come_back: (ErrorKind, Kind, VmState, ExecutionMode, Accelerator, Outcome, StopReason),
    words_of_requests_come_back: (OutputMode, OutputStream, FileEncoding)
}

proptest! {
    #[test]
    fn events_come_back(event: Event) {
        comes_back(&event)?;
    }
}

#[test]
fn an_ill_formed_id_is_refused_wherever_it_comes_from() {
    for id in ["../victim", "DE259A89B184", ""] {
        let error = serde_json::from_value::<VmId>(json!(id)).unwrap_err();
        assert_eq!(error.to_string(), format!("vm '{id}' does not exist"));
    }
}

#[test]
fn unknown_parameters_are_refused_by_name() {
    let given = |value: Value| value.as_object().cloned().expect("an object");
    let error = CreateVm::read(&given(json!({ "environment": "x", "Vcpu_count": 1 }))).unwrap_err();
    assert_eq!(error.to_string(), "create_vm has no parameter `Vcpu_count`");
    let error = DetachTask::read(&given(json!({ "task_id": "x", "command": "", "output": "capture" })));
    assert_eq!(error.unwrap_err().to_string(), "detach_task has no parameter `output`");
    let error = CreateVm::read(&given(json!({ "environment": "x", "mem_mib": "many" }))).unwrap_err();
    assert!(error.to_string().starts_with("`mem_mib`: "), "{error}");
    assert!(serde_json::from_value::<ListTasks>(json!({ "x": 1 })).is_err());
}

#[test]
fn names_are_unique_and_requests_have_the_parts_that_their_access_needs() {
    let mut names: Vec<_> = OPERATIONS.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), OPERATIONS.len());
    macro_rules! check {
        ($($Request:ident)+) => {$(
            let names = $Request::parameter_names();
            if $Request::INFO.access.enters() {
                assert!(names.iter().any(|name| name == "vm_id" || name == "task_id"), "{names:?}");
            }
            if $Request::INFO.access == Access::Create {
                assert!(names.iter().any(|name| name == "vcpu_count"), "{names:?}");
            }
            let unique: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{names:?}");
        )+};
    }
    for_each_operation!(check);
}

#[test]
fn parts_are_found_by_their_type() {
    let request = CreateTask {
        spec: VmSpec::new("debian:12"),
        disk: Disk { disk_mib: Some(512) },
        ports: Ports::default(),
        naming: Naming::default(),
        renewal: Renewal::default(),
    };
    assert_eq!(request.part::<VmSpec>().map(|spec| spec.environment.as_str()), Some("debian:12"));
    assert_eq!(request.part::<Disk>(), Some(&Disk { disk_mib: Some(512) }));
    assert_eq!((request.part::<Lifetime>(), request.target()), (None, None));
    let mut request = StopTask { task: "x".into() };
    assert_eq!(request.target(), Some(Target { kind: Kind::Task, id: "x" }));
    let id = VmId::parse("de259a89b184").unwrap();
    request.retarget(Kind::Vm, &id);
    assert_eq!(request.target(), Some(Target { kind: Kind::Task, id: "x" }));
    request.retarget(Kind::Task, &id);
    assert_eq!(request.target(), Some(Target { kind: Kind::Task, id: "de259a89b184" }));
}

#[test]
fn invalid_parameters_are_described_in_terms_of_json() {
    let texts = [
        json!({ "command": "true" }),
        json!({ "environment": 5, "command": "true" }),
        json!({ "environment": "debian:12", "command": "true", "timeout_seconds": 1.5 }),
        json!({ "environment": "debian:12", "command": "true", "timeout_seconds": "soon" }),
        json!({ "environment": "debian:12", "command": "true", "network": [] }),
        json!({ "environment": "debian:12", "command": "true", "env": true }),
        json!({ "environment": "debian:12", "command": "true", "env": { "A": {} } }),
        json!({ "environment": "debian:12", "command": "true", "output": "none" }),
    ]
    .map(|given| RunInVm::deserialize(given).unwrap_err().to_string());
    insta::assert_snapshot!(texts.join("\n"));
    let task = json!({ "task_id": "9775b3af1eeb", "sequence": -1 });
    insta::assert_snapshot!(WaitTask::deserialize(task).unwrap_err().to_string());
}
