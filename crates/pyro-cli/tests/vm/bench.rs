//! `pyro bench` with one run.

use crate::harness::Sandbox;

#[test]
fn each_thing_is_measured_and_the_accelerator_named() {
    let sandbox = Sandbox::new();
    let selected = sandbox.pyro(["doctor", "--json"]).json()["accelerator"]["selected"].clone();
    let report = sandbox.pyro(["bench", "--runs", "1", "--json"]).json();
    assert_eq!(report["accelerator"], selected, "{report}");
    assert_eq!(report["runs"], 1);
    let names =
        ["run", "run_2_at_once", "run_4_at_once", "create_and_start", "start_from_kernel", "exec_and_remove"];
    for name in names {
        assert!(report["results"][name]["median_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{name}: {report}");
    }
}
