//! The capacity: the maximum number of VMs.

use crate::harness::Sandbox;

#[test]
fn a_run_beyond_the_ceiling_is_refused_and_the_others_go_on() {
    let sandbox = Sandbox::new().set("PYRO_MAX_ACTIVE_VMS", "1");
    let line = "echo running; while ! [ -e /tmp/go ]; do sleep 0.2; done";
    let first = sandbox.start_run(["--timeout-seconds", "500"], line);
    first.stdout.wait_for("running\n");
    let refused = sandbox.run([], "echo never");
    assert!(refused.error().contains("max active VMs reached (1); delete old VMs first"), "{refused:?}");
    let refused = sandbox.run(["--json"], "echo never");
    assert_eq!(refused.code(), 1);
    assert_eq!(refused.json()["error"], "max active VMs reached (1); delete old VMs first");
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.finish().code(), 143);
    assert_eq!(sandbox.run([], "echo there is capacity again").success(), "there is capacity again\n");
}
