use pyro_engine::{ExecutionMode, LastCommand, StopReason, VmId, VmState};

use super::*;

fn id() -> VmId {
    VmId::parse("9775b3af1eeb").unwrap()
}

fn a_task() -> Task {
    Task {
        task_id: id(),
        name: None,
        labels: Default::default(),
        ttl_from: Default::default(),
        disk_state: None,
        environment: "debian:12".to_owned(),
        environment_version: Some("1.0.0".to_owned()),
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 600,
        created_at: 1000.0,
        expires_at: 1600.0,
        state: VmState::Started,
        network_enabled: false,
        network_policy: None,
        allow_host_compat: false,
        guest_ip: None,
        tap_name: None,
        execution_mode: ExecutionMode::GuestVsock,
        workspace_path: "/workspace".to_owned(),
        command_count: 0,
        last_command: None,
        metadata: Default::default(),
        accelerator: Some("tcg".to_owned()),
        stop_reason: None,
        last_error: None,
        disk_mib: None,
        disk_used_bytes: 0,
        published_ports: Vec::new(),
        mounts: Vec::new(),
        lost_mounts: Vec::new(),
        network_denials: Vec::new(),
        owner: None,
        services: Vec::new(),
    }
}

#[test]
fn a_task_has_the_lines_of_the_contract_and_more_if_there_is_more() {
    insta::assert_snapshot!(shown(&a_task(), 1061.0), @r"
    Task ID: 9775b3af1eeb
    Environment: debian:12
    State: started
    Workspace: /workspace
    Execution mode: guest_vsock
    Resources: 1 vCPU / 1024 MiB
    Command count: 0
    Time left: 8m59s
    ");
    let last_command = LastCommand {
        sequence: 2,
        command: "false\ntrue".to_owned(),
        cwd: "/workspace".to_owned(),
        exit_code: 0,
        duration_ms: 5,
        execution_mode: ExecutionMode::GuestVsock,
    };
    let stopped = Task {
        state: VmState::Stopped,
        command_count: 2,
        last_command: Some(last_command),
        stop_reason: Some(StopReason::GuestEnded),
        last_error: Some("signal: 9 (SIGKILL)\n[    1.0] panic\n".to_owned()),
        disk_mib: Some(8192),
        disk_used_bytes: (5 << 20) + 1,
        ..a_task()
    };
    insta::assert_snapshot!(shown(&stopped, 1061.0), @r"
    Task ID: 9775b3af1eeb
    Environment: debian:12
    State: stopped
    Workspace: /workspace
    Execution mode: guest_vsock
    Resources: 1 vCPU / 1024 MiB
    Command count: 2
    Last command: false\ntrue (exit_code=0)
    Disk: 6 MiB used of 8192 MiB
    Stop reason: guest_ended
    Last error: signal: 9 (SIGKILL)
        [    1.0] panic
    ");
}

#[test]
fn a_list_says_how_old_and_how_long_still() {
    let stopped = Task { state: VmState::Stopped, stop_reason: Some(StopReason::Expired), ..a_task() };
    let lost = Task {
        created_at: -360_000.0,
        command_count: 70_000,
        environment: "debian:12-agent-and-more".to_owned(),
        name: Some("n".repeat(63)),
        disk_state: Some(DiskState::Missing),
        ..stopped
    };
    let all = TaskList { tasks: vec![a_task(), lost.clone()], damaged_task_ids: vec![id()], count: 3 };
    let text = listed(&all, 1061.0);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    insta::assert_snapshot!(text, @r"
    TASK ID       STATE    ENVIRONMENT      AGE      LEFT   RAN    NAME
    9775b3af1eeb  started  debian:12        1m1s     8m59s  0      -
    9775b3af1eeb  stopped  debian:12-agen…  100h17m  -      70000  nnnnnnnnnnnnnnn…
    9775b3af1eeb: its disk is missing
    9775b3af1eeb damaged
    ");
    assert_eq!(ids(&all), "9775b3af1eeb\n9775b3af1eeb\n9775b3af1eeb\n");
    let owned = TaskList { tasks: vec![Task { owner: Some("ci".to_owned()), ..a_task() }, lost], ..all };
    insta::assert_snapshot!(listed(&owned, 1061.0), @r"
    TASK ID       STATE    ENVIRONMENT      AGE      LEFT   RAN    NAME              OWNER
    9775b3af1eeb  started  debian:12        1m1s     8m59s  0      -                 ci
    9775b3af1eeb  stopped  debian:12-agen…  100h17m  -      70000  nnnnnnnnnnnnnnn…  -
    9775b3af1eeb: its disk is missing
    9775b3af1eeb damaged
    ");
    let none = TaskList { tasks: Vec::new(), damaged_task_ids: Vec::new(), count: 0 };
    assert_eq!(listed(&none, 0.0), "No tasks found.\n");
}

#[test]
fn a_task_shows_its_name_its_labels_and_its_time_left() {
    let named = Task {
        name: Some("build".to_owned()),
        labels: [("ci", ""), ("team", "infra")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ttl_from: TtlFrom::Use,
        disk_state: Some(DiskState::Damaged),
        ..a_task()
    };
    insta::assert_snapshot!(shown(&named, 1061.0), @r"
    Task ID: 9775b3af1eeb
    Environment: debian:12
    State: started
    Workspace: /workspace
    Execution mode: guest_vsock
    Resources: 1 vCPU / 1024 MiB
    Command count: 0
    Disk state: damaged
    Name: build
    Labels: ci=, team=infra
    Time left: 8m59s, renewed by each use
    ");
}

#[test]
fn a_live_directory_that_is_lost_is_shown_with_the_way_out() {
    let mounts = vec!["/src:/workspace:rw".parse().unwrap(), "/src:/mnt".parse().unwrap()];
    let task = Task { mounts, lost_mounts: vec!["/mnt".to_owned()], ..a_task() };
    let text = shown(&task, 1061.0);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Mounted")).collect();
    let lost = "Mounted: /src:/mnt:ro (lost: unmount it, then mount it again)";
    assert_eq!(lines, ["Mounted: /src:/workspace:rw", lost]);
}
