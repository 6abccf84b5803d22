//! Full disks, in the guest and on the host. The host's is a small memory filesystem that only the tested
//! program and what it starts can see.

use crate::harness::{ENVIRONMENT, Ended, PYRO, Running, Sandbox};

/// A shell function that waits until no VM has files: the supervisor removes them after `pyro run` has ended.
const GONE: &str = r#"
    gone() {
        for i in $(seq 100); do
            left=$(ls -A "$PYRO_BASE_DIR/vms" 2>/dev/null)
            [ -z "$left" ] && return
            sleep 0.1
        done
        echo "left: $left"
        return 1
    }"#;

/// Runs `pyro run` with its state directory on a filesystem of this size, then lists what is left there.
fn run_on_small_disk(sandbox: &Sandbox, size: &str, line: &str) -> Ended {
    let script = GONE.to_owned()
        + r#"
        mount -t tmpfs -o mode=0700,size="$1" tmpfs "$PYRO_BASE_DIR" || exit 99
        "$2" run "$3" --timeout-seconds 300 -- "$4"
        status=$?
        gone || exit 98
        exit $status"#;
    std::fs::create_dir_all(sandbox.state()).unwrap();
    let mut command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--mount", "sh", "-c", &script, "sh", size, PYRO, ENVIRONMENT, line]);
    Running::start(&mut command).finish()
}

#[test]
fn a_guest_that_fills_its_disk_gets_an_error_and_lives_on() {
    let sandbox = Sandbox::new();
    let line = "df --output=size -m / | tail -1; dd if=/dev/zero of=/fill bs=1M 2>&1 | grep -o 'No space left on device'; \
                rm /fill; echo space > /after && cat /after; ! dmesg | grep 'I/O error'";
    let ended = run_on_small_disk(&sandbox, "1200m", line);
    let lines: Vec<&str> = ended.success().lines().collect();
    // The largest layer that leaves the host a reserve.
    let size: u64 = lines[0].trim().parse().unwrap();
    assert!((400..=512).contains(&size), "{size}");
    assert_eq!(lines[1..], ["No space left on device", "space"]);
}

#[test]
fn a_host_without_space_for_a_layer_is_reported() {
    let sandbox = Sandbox::new();
    let ended = run_on_small_disk(&sandbox, "600m", "echo never");
    let error = ended.error();
    assert!(error.contains("a writable layer needs at least 1024 MiB"), "{error}");
    assert!(error.contains("hint: free some space on that disk"), "{error}");
    assert_eq!(ended.text(), "");
}

#[test]
fn a_full_state_directory_is_reported() {
    let sandbox = Sandbox::new();
    let mut unclear = Vec::new();
    for size in ["4k", "8k", "16k", "24k", "32k", "48k", "64k", "100k", "200k"] {
        let ended = run_on_small_disk(&sandbox, size, "echo never");
        assert_eq!(ended.text(), "");
        let error = ended.error();
        let names_the_reason =
            error.to_lowercase().contains("no space left") || error.contains("MiB are free");
        if !names_the_reason || !error.contains("hint: free some space") {
            unclear.push(format!("{size}: {error}"));
        }
    }
    assert!(unclear.is_empty(), "{}", unclear.join("\n"));
}

/// The host's disk fills up while the guest writes: other programs of the host were faster.
#[test]
fn a_host_disk_that_fills_up_under_a_guest_is_the_guests_input_output_error() {
    let sandbox = Sandbox::new();
    // The guest's layer is as large as allowed, then the host fills the rest of its disk.
    let script = GONE.to_owned()
        + r#"
        mount -t tmpfs -o mode=0700,size=1200m tmpfs "$PYRO_BASE_DIR" || exit 99
        mkfifo "$HOME/go"
        "$1" run "$2" --timeout-seconds 300 -- "$3" &
        run=$!
        read -r go < "$HOME/go"
        dd if=/dev/zero of="$PYRO_BASE_DIR/filler" bs=1M 2>/dev/null
        wait $run
        status=$?
        rm "$PYRO_BASE_DIR/filler"
        gone || exit 98
        exit $status"#;
    // Slowly, so that the host fills it first; each file allocates new blocks of the layer.
    let line = "echo started; i=0; while dd if=/dev/zero of=/fill.$i bs=1M count=1 conv=fsync 2>/dev/null; \
                do i=$((i + 1)); sleep 0.1; done; echo refused";
    std::fs::create_dir_all(sandbox.state()).unwrap();
    let mut command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--mount", "sh", "-c", &script, "sh", PYRO, ENVIRONMENT, line]);
    let running = Running::start(&mut command);
    running.stdout.wait_for("started\n");
    std::fs::write(sandbox.path("home/go"), "go\n").unwrap();
    let ended = running.finish();
    assert_eq!(ended.text(), "started\nrefused\n", "{ended:?}");
    assert_eq!(ended.code(), 0, "{ended:?}");
}

/// Two creations at once, each of which would fit by itself.
#[test]
fn space_is_promised_once() {
    let sandbox = Sandbox::new();
    let script = GONE.to_owned()
        + r#"
        mount -t tmpfs -o mode=0700,size=2560m tmpfs "$PYRO_BASE_DIR" || exit 99
        unset PYRO_DISK_OVERCOMMIT
        for i in 1 2; do
            "$1" task create "$2" --disk-mib 1536 >"$HOME/out.$i" 2>"$HOME/err.$i" &
            pids="$pids $!"
        done
        created=0
        for pid in $pids; do wait $pid && created=$((created + 1)); done
        echo "created $created"
        cat "$HOME"/err.1 "$HOME"/err.2 | grep error
        PYRO_DISK_OVERCOMMIT=2 "$1" task create "$2" --disk-mib 1536 >/dev/null && echo overcommitted
        for id in $(ls "$PYRO_BASE_DIR/vms"); do "$1" task delete $id >/dev/null; done
        gone || exit 98
        "$1" task create "$2" --disk-mib 1536 >/dev/null && echo again
        for id in $(ls "$PYRO_BASE_DIR/vms"); do "$1" task delete $id >/dev/null; done
        gone || exit 98"#;
    std::fs::create_dir_all(sandbox.state()).unwrap();
    let mut command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--mount", "sh", "-c", &script, "sh", PYRO, ENVIRONMENT]);
    let ended = Running::start(&mut command).finish();
    let text = ended.text().to_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], &lines[2..]),
        (4, "created 1", &["overcommitted", "again"][..]),
        "{ended:?}"
    );
    assert!(
        lines[1].contains("MiB are free")
            && lines[1].contains("the disks of other VMs and tasks may still grow by 15"),
        "{text}"
    );
    assert!(lines[1].contains("a writable layer needs at least 2048 MiB"), "{text}");
}
