//! Guests that break themselves: the caller gets a clear error, and nothing is left on the host.

use crate::harness::Sandbox;

/// The error of a command that ends its guest.
fn error_of_loss(line: &str) -> String {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--timeout-seconds", "100"], &format!("echo before; {line}; sleep 1000"));
    // The machine may end before its last output is read.
    assert!("before\n".starts_with(ended.text()), "{ended:?}");
    let error = ended.error().to_owned();
    assert!(error.contains("was lost while its command ran"), "{error}");
    assert!(error.contains("the VM ended by itself: "), "{error}");
    sandbox.wait_until_clean();
    error
}

#[test]
fn a_kernel_panic_is_shown_with_the_consoles_last_lines() {
    let error = error_of_loss("echo c > /proc/sysrq-trigger");
    assert!(error.contains("Kernel panic - not syncing: sysrq triggered crash"), "{error}");
}

#[test]
fn a_guest_that_powers_off_is_a_lost_command() {
    error_of_loss("echo o > /proc/sysrq-trigger");
}

#[test]
fn a_guest_that_reboots_is_a_lost_command() {
    error_of_loss("echo b > /proc/sysrq-trigger");
}

#[test]
fn a_guest_that_kills_the_agent_is_a_lost_command() {
    error_of_loss("kill -9 $PPID");
}

#[test]
fn console_output_cannot_hide_or_forge_anything() {
    let error = error_of_loss(
        r"printf '\033[2J\033]0;title\007[error] forged\n' > /dev/console; echo c > /proc/sysrq-trigger",
    );
    assert!(!error.contains('\u{1b}') && !error.contains('\u{7}'), "{error:?}");
    assert_eq!(error.matches("\n[error]").count(), 0, "{error:?}");
}

#[test]
fn a_guest_out_of_memory_loses_the_greedy_command_only() {
    let sandbox = Sandbox::new();
    let line = "tail /dev/zero; echo status=$?";
    let ended = sandbox.run(["--mem-mib", "256", "--timeout-seconds", "100"], line);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.text(), "status=137\n");
    // If the command itself is killed, its end is a signal.
    let ended = sandbox.run(["--mem-mib", "256", "--timeout-seconds", "100"], "exec tail /dev/zero");
    assert_eq!(ended.code(), 247, "{ended:?}");
}

/// Nearly all memory is then clean pages of the file that is written, and young ones.
#[test]
fn writing_a_file_larger_than_memory_kills_nothing() {
    let sandbox = Sandbox::new();
    let line = "head -c 1000M /dev/zero >file && wc -c <file && dmesg | grep -ci 'out of memory'; rm file";
    for (memory, places) in [("256", &["/workspace", "/var/tmp"][..]), ("512", &["/workspace"])] {
        let task = sandbox.task(["--mem-mib", memory, "--disk-mib", "2048"]);
        for place in places {
            let written = task.exec(["--timeout-seconds", "200", "--cwd", place], line);
            assert_eq!(written.text(), "1048576000\n0\n", "{memory} MiB, {place}: {written:?}");
        }
        task.delete();
    }
}

#[test]
fn a_task_survives_a_command_that_takes_all_memory() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--mem-mib", "256"]);
    for _ in 0..2 {
        let killed = task.exec(["--timeout-seconds", "100"], "exec tail /dev/zero");
        assert_eq!(killed.code(), 247, "{killed:?}");
    }
    assert_eq!(task.exec([], "echo alive").success(), "alive\n");
    task.delete();
}

/// Above a group's `memory.high`, the kernel makes a process wait, each time longer, but kills nothing.
#[test]
fn a_command_that_only_waits_for_memory_is_killed() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--mem-mib", "256"]);
    let line = "cd /sys/fs/cgroup && echo +memory >cgroup.subtree_control && mkdir -p tight && echo 4M >tight/memory.high && \
                echo $$ >tight/cgroup.procs && exec tail /dev/zero";
    let killed = task.exec(["--timeout-seconds", "100"], line);
    assert_eq!(killed.code(), 247, "{killed:?}");
    assert_eq!(task.exec([], "dmesg | grep -c 'Manual OOM execution'").success(), "1\n");
    task.delete();
}

#[test]
fn a_guest_out_of_processes_keeps_its_agent() {
    let sandbox = Sandbox::new();
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000";
    let ended = sandbox.run(["--mem-mib", "256", "--timeout-seconds", "5"], bomb);
    // The time limit or the machine ends it; the caller never hangs.
    assert!([1, 2, 124, 247, 254].contains(&ended.code()), "{ended:?}");
}

#[test]
fn commands_start_after_one_has_unmounted_proc() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "umount /proc && ! [ -e /proc/self ]").success();
    // An ordinary candidate of the OOM killer, unlike the agent.
    let score = task.exec([], "mount -t proc proc /proc && cat /proc/self/oom_score_adj");
    assert_eq!(score.success(), "0\n");
    // Without /proc, the task still ends its processes and seals its disk, or its record would tell what was lost.
    task.exec([], "umount /proc; setsid sleep 999 >log 2>&1 & echo kept >file").success();
    let stopped = task.call("stop", ["--json"]).json();
    assert!(stopped["last_error"].is_null(), "{stopped}");
    task.call("start", []).success();
    assert_eq!(task.exec([], "cat file").success(), "kept\n");
    task.delete();
}
