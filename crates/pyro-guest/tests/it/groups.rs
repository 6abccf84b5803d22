//! Control groups of commands, in the hierarchy of this host. Where it has none that this process may use, commands run
//! without, and what they have moved to other process groups outlives them.

use std::fs;
use std::path::{Path, PathBuf};

use pyro_wire::{Exec, Status};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::host::{Host, Recorder, end_of, expect_output, make_fifo, terminate};

/// Where a hierarchy of version 2 is mounted that this process may change.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })?;
    let probe = mount.join(format!("pyro-probe-{}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    let is_usable = probe.join("cgroup.kill").exists();
    fs::remove_dir(probe).unwrap();
    is_usable.then_some(mount)
}

/// Removes groups of earlier tests that have no processes: an agent may outlive its test by a moment.
fn remove_empty(groups: &Path) {
    for entry in fs::read_dir(groups).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(groups);
}

/// A host whose commands have control groups below one of its own: tests run at the same time.
fn host() -> (Host, bool) {
    let hierarchy = hierarchy().map(|mount| {
        for entry in fs::read_dir(&mount).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let test = name.strip_prefix("pyro-test-");
            if test.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_empty(&entry.path());
            }
        }
        let own = mount.join(format!("pyro-test-{}", std::process::id()));
        fs::create_dir_all(&own).unwrap();
        own
    });
    let has_groups = hierarchy.is_some();
    let host = Host::with(Recorder::default(), |settings| settings.control_groups = hierarchy);
    make_fifo(&host.path("alive"));
    (host, has_groups)
}

async fn all_dead(mut alive: pipe::Receiver) {
    assert_eq!(alive.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_leaves_its_process_group_ends_with_its_command() {
    for text in [
        "exec 3> alive; setsid sh -c 'trap \"\" TERM; echo ready; exec sleep 1000' & sleep 1000",
        "exec 3> alive; timeout 1000 sh -c 'echo ready; exec sleep 1000'; true",
        "exec 3> alive; nohup setsid sh -c 'echo ready >&2; exec sleep 1000' 2>&1 >/dev/null & sleep 1000",
        "exec 3> alive; (setsid sh -c 'sleep 1000 & echo ready' &) ; sleep 1000",
    ] {
        let (host, has_groups) = host();
        let alive = pipe::OpenOptions::new().open_receiver(host.path("alive")).unwrap();
        let mut stream = host.call(Exec { kill_grace_ms: 200, ..host.exec(text) }).await;
        expect_output(&mut stream, "ready\n").await;
        terminate(&mut stream).await;
        let exit = end_of(stream).await.exit().clone();
        assert!(matches!(exit.status, Status::Signal(15) | Status::Code(143)), "{text}: {exit:?}");
        if has_groups {
            all_dead(alive).await;
        }
    }
}

#[tokio::test]
async fn everything_is_asked_to_end_before_it_is_killed() {
    let (host, has_groups) = host();
    let text = "setsid sh -c 'trap \"echo asked; exit\" TERM; echo ready; sleep 1000 & wait' & \
                trap '' TERM; wait; wait";
    let mut stream = host.call(Exec { kill_grace_ms: 2000, ..host.exec(text) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!(ended.text(), if has_groups { "asked\n" } else { "" });
}

#[tokio::test]
async fn the_grace_lasts_until_the_whole_group_has_ended() {
    let (host, has_groups) = host();
    // The leader ends at once; the server needs time.
    let server = "trap 'sleep 0.3; echo closed; exit' TERM; echo ready; while :; do sleep 0.05; done";
    let text = format!("sh -c '{}' & wait", server.replace('\'', "'\\''"));
    let mut stream = host.call(Exec { kill_grace_ms: 20_000, ..host.exec(&text) }).await;
    expect_output(&mut stream, "ready\n").await;
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!(ended.exit().status, Status::Signal(15));
    if has_groups {
        assert_eq!(ended.text(), "closed\n");
    }
}

#[tokio::test]
async fn what_a_finished_command_leaves_in_the_background_goes_on() {
    let (host, _) = host();
    make_fifo(&host.path("go"));
    let text = "{ read line < go; echo went on > alive; } > /dev/null 2>&1 & echo done";
    assert_eq!(host.run(host.exec(text)).await.text(), "done\n");
    // Later commands, also killed ones, do not concern it.
    assert!(
        host.run(Exec { timeout_ms: 0, kill_grace_ms: 0, ..host.exec("sleep 1000") }).await.exit().timed_out
    );
    let ended = host.run(host.exec("echo > go; cat alive")).await;
    assert_eq!(ended.text(), "went on\n");
}

#[tokio::test]
async fn a_command_starts_although_another_has_frozen_the_groups() {
    let (host, has_groups) = host();
    if !has_groups {
        return;
    }
    let ended = host.run(host.exec("grep ^0:: /proc/self/cgroup | cut -d: -f3")).await;
    let group = hierarchy().unwrap().join(ended.text().trim().trim_start_matches('/'));
    fs::write(group.parent().unwrap().join("cgroup.freeze"), "1").unwrap();
    assert_eq!(host.run(host.exec("echo on")).await.text(), "on\n");
}

/// Maximum number of commands until a group must have been removed.
const COMMANDS: usize = 1000;

/// Runs commands until a group has been removed, which happens after a reply.
async fn removed(host: &Host, group: &std::path::Path) {
    for _ in 0..COMMANDS {
        if !group.exists() {
            return;
        }
        assert_eq!(host.run(host.exec("true")).await.exit().status, Status::Code(0));
    }
    panic!("{} is still there", group.display());
}

/// The path of a command's group in the hierarchy, on a line of its own.
const OWN_GROUP: &str = "grep ^0:: /proc/self/cgroup | cut -d: -f3";

/// Runs a command that ends with [`OWN_GROUP`], and returns its group.
async fn group_of(host: &Host, text: &str) -> PathBuf {
    let ended = host.run(host.exec(text)).await;
    let path = ended.text().trim().lines().last().unwrap().to_owned();
    assert!(path.contains("pyro/command-"), "{path}");
    hierarchy().unwrap().join(path.trim_start_matches('/'))
}

#[tokio::test]
async fn a_group_is_used_again_unless_a_program_has_touched_it() {
    let (host, has_groups) = host();
    if !has_groups {
        return;
    }
    let first = group_of(&host, OWN_GROUP).await;
    assert_eq!(group_of(&host, OWN_GROUP).await, first);
    let mount = hierarchy().unwrap();
    let mount = mount.display();
    for touch in [
        "echo 3 > $group/cgroup.max.depth",
        "cat $group/cgroup.events",
        "chmod 700 $group",
        "mkdir $group/below; rmdir $group/below",
        "ls $group",
    ] {
        let text = format!("group={mount}$({OWN_GROUP}); {touch} > /dev/null; {OWN_GROUP}");
        let touched = group_of(&host, &text).await;
        assert_ne!(group_of(&host, OWN_GROUP).await, touched, "{touch}");
        removed(&host, &touched).await;
    }
    // Also before the command that would get it.
    let ready = group_of(&host, OWN_GROUP).await;
    fs::read_to_string(ready.join("cgroup.freeze")).unwrap();
    assert_ne!(group_of(&host, OWN_GROUP).await, ready);
}

#[tokio::test]
async fn groups_are_removed_when_they_are_empty() {
    let (host, has_groups) = host();
    if !has_groups {
        return;
    }
    let text = format!("sleep 1000 > /dev/null 2>&1 & echo $!; {OWN_GROUP}");
    let ended = host.run(host.exec(&text)).await;
    let (pid, path) = ended.text().trim().split_once('\n').unwrap();
    let group = hierarchy().unwrap().join(path.trim_start_matches('/'));
    assert!(group.exists());
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, None).unwrap();
    // A process leaves its group when its parent has waited for it, a moment after it has ended.
    removed(&host, &group).await;
}
