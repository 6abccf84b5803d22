use pyro_engine::ExecutionMode;

use super::*;

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
    let text: String = entries.iter().map(heading).collect();
    insta::assert_snapshot!(text, @r#"
    #2 exit_code=2 duration_ms=17 cwd=/workspace/project
    $ make
    #2 exit_code=-15 duration_ms=17 outcome=killed cwd=/workspace/project stdout_truncated=9
    $ make
    #2 outcome=unknown cwd=/workspace/project
    $ make
    #2 outcome=not_run error="entering /x: not found" cwd=/workspace/project
    $ make
    "#);
    insta::assert_snapshot!(killed(&entries[0]), @"Not running: #2 exit_code=2 duration_ms=17");
    insta::assert_snapshot!(ended("9775b3af1eeb", &entries[1]), @"[task-exec] task_id=9775b3af1eeb sequence=2 cwd=/workspace/project execution_mode=guest_vsock exit_code=-15 duration_ms=17 outcome=killed");
}
