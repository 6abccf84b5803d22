//! What commands begin with and what is left of them: their environment, their descriptors, and their control groups.

use std::time::Duration;

use pyro_supervisor::Exec;

use crate::harness::{Capture, Sandbox, exec_text};

/// Time limit, in seconds, of a command that writes before it waits: on a slow host the shell takes a while to begin.
const LIMIT: &str = "6";

/// Prints how many processes are called `sleep 4321`. The pattern does not match itself.
const COUNT_SLEEPERS: &str =
    r"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -o 'sleep [4]321' | wc -l";

#[test]
fn a_time_limit_also_ends_what_left_the_process_group() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    for line in [
        "timeout 600 sh -c 'echo started; sleep 4321'; true",
        "setsid sh -c 'echo started; sleep 4321' & sleep 4321",
        "nohup setsid sh -c 'sleep 4321' >/dev/null 2>&1 & echo started; sleep 4321",
        "set -m; (trap '' TERM; sleep 4321; sleep 4321) & echo started; sleep 4321",
    ] {
        let ended = task.exec(["--timeout-seconds", LIMIT], line);
        assert_eq!((ended.code(), ended.text()), (124, "started\n"), "{line}: {ended:?}");
        assert_eq!(task.exec([], COUNT_SLEEPERS).success(), "0\n", "{line}");
    }
    // What a finished command has left goes on, and its group with it.
    let line = "setsid sleep 4321 >/dev/null 2>&1 & cut -d: -f3 /proc/self/cgroup";
    let group = task.exec([], line).success().trim().to_owned();
    assert!(group.starts_with("/pyro/command-"), "{group}");
    let line = format!(
        "cat /sys/fs/cgroup{group}/cgroup.procs | wc -l; ls -d /sys/fs/cgroup/pyro/command-* | wc -l"
    );
    assert_eq!(task.exec([], &line).success(), "1\n2\n");
    task.delete();
}

#[test]
fn the_callers_variables_win_and_a_broken_profile_silences_nothing() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let line = "echo $PATH";
    let ended = task.exec(["--env", "PATH=/workspace/bin:/usr/bin:/bin"], line);
    assert_eq!(ended.success(), "/workspace/bin:/usr/bin:/bin\n");
    assert_eq!(task.exec([], "echo $DEBIAN_FRONTEND $SHLVL").success(), "noninteractive\n");
    task.exec([], "echo 'export FROM=profile' > /etc/profile.d/from.sh").success();
    assert_eq!(task.exec([], "echo $FROM").success(), "profile\n");
    for (profile, words) in [("exit 3", "exited with status 3"), ("sleep 600", "did not end within 5 s")] {
        task.exec([], &format!("echo '{profile}' > /root/.profile")).success();
        let ended = task.exec([], "echo real $FROM");
        assert_eq!((ended.code(), ended.text()), (0, "real profile\n"), "{ended:?}");
        assert!(ended.stderr.contains(&format!("pyro: the profile of the login shell {words}")), "{ended:?}");
        let ended = task.exec([], "echo again");
        assert!(ended.text() == "again\n" && !ended.stderr.contains("profile"), "{ended:?}");
    }
    task.exec([], "rm /etc/profile.d/from.sh").success();
    // An empty file in its place repairs the task.
    let empty = sandbox.path("empty");
    std::fs::write(&empty, "").unwrap();
    let target = format!("{}:/root/.profile", task.id);
    sandbox.pyro(["task", "cp", empty.to_str().unwrap(), &target]).success();
    assert_eq!(task.exec([], "echo ${FROM-repaired}").success(), "repaired\n");
    task.delete();
}

#[tokio::test]
async fn descriptors_are_open_to_other_users_and_the_machine_is_furnished() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    for switch in
        ["su daemon -s /bin/sh -c", "runuser -u daemon -- sh -c", "setpriv --reuid 1 --clear-groups sh -c"]
    {
        let line = format!("{switch} 'echo out > /dev/stdout; echo err > /dev/stderr'");
        let capture = Capture::of(&guest, &line, 60_000).await.unwrap();
        assert_eq!(
            (capture.stdout.as_slice(), capture.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..]),
            "{switch}"
        );
    }
    let user = Exec {
        user: Some("daemon".to_owned()),
        ..Exec::new("id -un; pwd; touch x", Duration::from_secs(60))
    };
    let capture = Capture::run(&guest, user).await.unwrap();
    assert_eq!(capture.stdout, b"daemon\n/workspace\n");
    assert!(String::from_utf8_lossy(&capture.stderr).contains("Permission denied"), "{capture:?}");
    // A text that the kernel does not accept as an argument.
    let line = format!(": {}; echo $0; ls /proc/self/fd | wc -l", "x".repeat(200_000));
    assert_eq!(exec_text(&guest, &line).await, "/bin/sh\n4\n");
    let line =
        "mountpoint -q /dev/mqueue && echo mqueue; cat /proc/sys/fs/inotify/max_user_instances; ulimit -c";
    assert_eq!(exec_text(&guest, line).await, "mqueue\n1024\n0\n");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}
