//! What is unique to every guest.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::{Sandbox, exec_text};

#[test]
fn no_two_guests_are_the_same_machine() {
    let sandbox = Sandbox::new();
    let line = "cat /etc/machine-id; uname -n; cat /proc/sys/kernel/random/uuid; \
                cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
    let seen: Vec<Vec<String>> = (0..2)
        .map(|_| sandbox.run([], line).success().lines().map(|line| line.trim().to_owned()).collect())
        .collect();
    for (first, second) in seen[0].iter().zip(&seen[1]) {
        assert_ne!(first, second);
    }
    let machine_id = &seen[0][0];
    assert!(
        machine_id.len() == 32 && machine_id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{machine_id}"
    );
    assert!(seen[0][1].starts_with("pyro-"), "{:?}", seen[0]);
    let all: BTreeSet<_> = seen.iter().flatten().collect();
    assert_eq!(all.len(), 10, "{seen:?}");
}

#[tokio::test]
async fn the_clock_is_the_hosts() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let vm = sandbox.started_vm(&engine).await;
    let guest = sandbox.guest(&vm);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let guest_time: f64 = exec_text(&guest, "date +%s.%N").await.trim().parse().unwrap();
    let after = now();
    println!("between {} and {} s ahead of the host", guest_time - after, guest_time - before);
    assert!(before - 1.0 < guest_time && guest_time < after + 1.0, "{before} {guest_time} {after}");
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
}

#[test]
fn the_machine_is_furnished_as_programs_expect() {
    let sandbox = Sandbox::new();
    let line = "set -e; echo x > /dev/shm/x; ls -d /proc/self /sys/class /dev/pts /dev/null /run/lock \
                /sys/fs/cgroup/cgroup.procs > /dev/null; stat -c %a /dev/shm; echo $HOME $LANG; \
                getent hosts localhost > /dev/null && echo localhost; bash -c 'echo <(true)'";
    assert_eq!(sandbox.run([], line).success(), "1777\n/root C.UTF-8\nlocalhost\n/dev/fd/63\n");
}
