//! `pyro doctor` and the choice of the accelerator on this host.

use std::time::Duration;

use crate::harness::{Sandbox, scaled};

#[test]
fn the_report_names_the_accelerator_that_runs_then_use() {
    let sandbox = Sandbox::new();
    let report = sandbox.pyro(["doctor", "--json"]).json();
    let accelerator = &report["accelerator"];
    let (selected, reason) =
        (accelerator["selected"].as_str().unwrap(), accelerator["reason"].as_str().unwrap());
    match (selected, accelerator["measured_ms"].is_null()) {
        ("kvm", false) => assert!(reason.starts_with("KVM is fast: "), "{reason}"),
        ("tcg", false) => assert!(reason.starts_with("KVM is too slow: "), "{reason}"),
        ("tcg", true) => assert!(reason.contains("KVM") || reason.contains("/dev/kvm"), "{reason}"),
        other => panic!("{other:?}: {reason}"),
    }
    assert_eq!(accelerator["kvm_costs"].is_null(), accelerator["measured_ms"].is_null());
    assert_eq!(accelerator["cached"], false);
    assert!(!sandbox.state().exists(), "looking changes nothing");
    assert_eq!(report["runtime_ok"], true, "{report}");
    assert!(report["vmm"]["version"].as_str().is_some_and(|version| version.contains('.')), "{report}");

    let result = sandbox.run(["--json"], "true").json();
    assert_eq!(result["accelerator"], selected, "{reason}");
    let report = sandbox.pyro(["doctor", "--json"]).json();
    assert_eq!(report["accelerator"]["selected"], selected);
    if sandbox.state().join("accelerator.json").exists() {
        assert_eq!(report["accelerator"]["cached"], true, "{report}");
    }
}

#[test]
fn the_accelerator_can_be_forced() {
    let sandbox = Sandbox::new().set("PYRO_ACCEL", "tcg");
    let report = sandbox.pyro(["doctor", "--json"]).json();
    assert_eq!(report["accelerator"]["selected"], "tcg");
    assert_eq!(sandbox.run(["--json"], "true").json()["accelerator"], "tcg");
    assert!(!sandbox.state().join("accelerator.json").exists(), "nothing was measured");
}

/// Where KVM is missing, or emulates, this fails; it must not hang.
#[test]
fn a_forced_kvm_boots_or_gives_up_in_time() {
    let sandbox = Sandbox::new().set("PYRO_ACCEL", "kvm");
    let ended = sandbox.run(["--json"], "true");
    assert!(ended.elapsed < scaled(Duration::from_secs(100)), "{:?}", ended.elapsed);
    let document = ended.json();
    if ended.code() == 0 {
        assert_eq!(document["accelerator"], "kvm");
    } else {
        assert_eq!((ended.code(), &document["kind"]), (1, &"boot_failed".into()), "{document}");
        let error = document["error"].as_str().unwrap();
        assert!(error.contains("did not come up: booting the kernel failed: "), "{error}");
    }
}
