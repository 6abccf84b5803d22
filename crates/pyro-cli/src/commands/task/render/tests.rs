use pyro_engine::{ExecutionMode, LastCommand, StopReason, VmId, VmState};

use super::*;

fn id() -> VmId {
    VmId::parse("9775b3af1eeb").unwrap()
}

fn a_task() -> Task {
    Task {
        task_id: id(),
        environment: "debian:12".to_owned(),
        environment_version: Some("1.0.0".to_owned()),
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 600,
        created_at: 1000.0,
        expires_at: 1600.0,
        state: VmState::Started,
        network_enabled: false,
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
    }
}

fn an_entry() -> TaskLogEntry {
    TaskLogEntry {
        sequence: 2,
        command: "make".to_owned(),
        cwd: "/workspace/project".to_owned(),
        exit_code: Some(2),
        duration_ms: Some(17),
        execution_mode: ExecutionMode::GuestVsock,
        recorded_at: 1001.0,
        stdout_file: "000002.stdout".to_owned(),
        stderr_file: "000002.stderr".to_owned(),
        stdout: b"no newline".to_vec().into(),
        stderr: Vec::new().into(),
        outcome: Outcome::Exited,
        started_at: 1000.0,
        timed_out: false,
        stdout_truncated: 0,
        stderr_truncated: 0,
        error: None,
    }
}

#[test]
fn a_task_has_the_lines_of_the_contract_and_more_if_there_is_more() {
    insta::assert_snapshot!(task(&a_task()), @r"
    Task ID: 9775b3af1eeb
    Environment: debian:12
    State: started
    Workspace: /workspace
    Execution mode: guest_vsock
    Resources: 1 vCPU / 1024 MiB
    Command count: 0
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
    insta::assert_snapshot!(task(&stopped), @r"
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
    let tasks = vec![a_task(), Task { created_at: -9000.0, command_count: 7, ..stopped }];
    let all = TaskList { tasks, damaged_task_ids: vec![id()], count: 3 };
    insta::assert_snapshot!(list(&all, 1061.0), @r"
    9775b3af1eeb started  debian:12        age=1m1s left=8m59s commands=0
    9775b3af1eeb stopped  debian:12        age=2h47m left=- commands=7
    9775b3af1eeb damaged
    ");
    let none = TaskList { tasks: Vec::new(), damaged_task_ids: Vec::new(), count: 0 };
    assert_eq!(list(&none, 0.0), "No tasks found.\n");
}

#[test]
fn entries_say_what_became_of_their_command() {
    let entries = [
        an_entry(),
        TaskLogEntry { exit_code: Some(-15), outcome: Outcome::Killed, stdout_truncated: 9, ..an_entry() },
        TaskLogEntry {
            exit_code: None,
            duration_ms: None,
            outcome: Outcome::Unknown,
            stdout: b"line\n".to_vec().into(),
            ..an_entry()
        },
        TaskLogEntry {
            exit_code: None,
            duration_ms: None,
            outcome: Outcome::NotRun,
            stdout: Vec::new().into(),
            error: Some("entering /x: not found".to_owned()),
            ..an_entry()
        },
    ];
    let text: String = entries.iter().map(entry).collect();
    insta::assert_snapshot!(text, @r#"
    #2 exit_code=2 duration_ms=17 cwd=/workspace/project
    $ make
    no newline
    #2 exit_code=-15 duration_ms=17 outcome=killed cwd=/workspace/project stdout_truncated=9
    $ make
    no newline
    #2 outcome=unknown cwd=/workspace/project
    $ make
    line
    #2 outcome=not_run error="entering /x: not found" cwd=/workspace/project
    $ make
    "#);
    insta::assert_snapshot!(killed(&entries[0]), @"Not running: #2 exit_code=2 duration_ms=17");
    insta::assert_snapshot!(ended("9775b3af1eeb", &entries[1]), @"[task-exec] task_id=9775b3af1eeb sequence=2 cwd=/workspace/project execution_mode=guest_vsock exit_code=-15 duration_ms=17 outcome=killed");
}
