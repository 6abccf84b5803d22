//! Many runs at once.

use crate::harness::Sandbox;

#[test]
fn ten_runs_at_once_all_succeed() {
    let sandbox = Sandbox::new().set("PYRO_MAX_ACTIVE_VMS", "16");
    let lines: Vec<String> = (0..10).map(|n| format!("echo run {n}; exit {n}")).collect();
    let running: Vec<_> =
        lines.iter().map(|line| sandbox.start_run(["--timeout-seconds", "120"], line)).collect();
    for (n, running) in running.into_iter().enumerate() {
        let ended = running.finish();
        assert_eq!(ended.code(), n as i32, "{ended:?}");
        assert_eq!(ended.text(), format!("run {n}\n"));
    }
    sandbox.wait_until_clean();
}
