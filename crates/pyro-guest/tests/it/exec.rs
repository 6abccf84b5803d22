//! Commands that end by themselves, and commands that cannot be started.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pyro_wire::{Exec, FailureKind, MAX_COMMAND_BYTES, Program, Status};

use crate::host::{Host, Recorder, make_fifo};

async fn status(host: &Host, command: &str) -> Status {
    host.run(host.exec(command)).await.exit().status
}

#[tokio::test]
async fn exit_codes_are_reported() {
    let host = Host::new();
    for code in [0, 1, 42, 255] {
        assert_eq!(status(&host, &format!("exit {code}")).await, Status::Code(code));
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_the_shells_status() {
    let host = Host::new();
    fs::write(host.path("data"), "text").unwrap();
    assert_eq!(status(&host, "no-such-program-here").await, Status::Code(127));
    assert_eq!(status(&host, "./data").await, Status::Code(126));
}

#[tokio::test]
async fn signals_are_reported_as_such() {
    let host = Host::new();
    for signal in [9, 15, 6] {
        assert_eq!(status(&host, &format!("kill -{signal} $$")).await, Status::Signal(signal));
    }
    assert_eq!(status(&host, "sh -c 'kill -9 $$'").await, Status::Code(137), "that is another process's");
}

#[tokio::test]
async fn both_streams_arrive_unchanged() {
    let host = Host::new();
    let ended = host.run(host.exec(r"printf 'a\0\377\n'; printf 'b\033[m' >&2; printf c")).await;
    assert_eq!(ended.stdout, b"a\0\xff\nc");
    assert_eq!(ended.stderr, b"b\x1b[m");
    let exit = ended.exit();
    assert_eq!((exit.timed_out, exit.stdout_dropped, exit.stderr_dropped), (false, 0, 0));
}

#[tokio::test]
async fn much_output_on_both_streams_arrives_whole() {
    let host = Host::new();
    let command = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero | tr '\\0' x >&2; wait";
    let ended = host.run(host.exec(command)).await;
    assert_eq!(ended.stdout.len(), 3_000_000);
    assert!(ended.stderr == vec![b'x'; 2_000_000]);
}

#[tokio::test]
async fn output_beyond_the_limit_is_counted_for_each_stream() {
    let host = Host::new();
    let command = "printf 1234567; printf abc >&2";
    for (limit, stdout, stderr, dropped) in [
        (Some(5), "12345", "abc", (2, 0)),
        (Some(2), "12", "ab", (5, 1)),
        (Some(0), "", "", (7, 3)),
        (Some(7), "1234567", "abc", (0, 0)),
        (Some(u64::MAX), "1234567", "abc", (0, 0)),
        (None, "1234567", "abc", (0, 0)),
    ] {
        let ended = host.run(Exec { output_limit: limit, ..host.exec(command) }).await;
        assert_eq!((ended.text(), ended.stderr.as_slice()), (stdout, stderr.as_bytes()));
        assert_eq!((ended.exit().stdout_dropped, ended.exit().stderr_dropped), dropped, "{limit:?}");
    }
}

#[tokio::test]
async fn a_command_that_writes_far_beyond_the_limit_is_not_slowed_down() {
    let host = Host::new();
    let exec = Exec { output_limit: Some(10), ..host.exec("head -c 50000000 /dev/zero") };
    let ended = host.run(exec).await;
    assert_eq!((ended.stdout.len(), ended.exit().stdout_dropped), (10, 49_999_990));
}

#[tokio::test]
async fn standard_input_is_at_its_end() {
    let host = Host::new();
    assert_eq!(host.run(host.exec("cat; echo end")).await.text(), "end\n");
}

#[tokio::test]
async fn a_command_leads_a_process_group() {
    let host = Host::new();
    let ended = host.run(host.exec("echo $(cut -d' ' -f5 /proc/self/stat) $$")).await;
    let (group, shell) = ended.text().trim().split_once(' ').unwrap();
    assert_eq!(group, shell);
}

#[tokio::test]
async fn the_environment_is_the_usual_one_and_the_requests() {
    let host = Host::new();
    let mut exec = host.exec("echo \"$HOME|$USER|$LANG|$A|$B|${CARGO_MANIFEST_DIR-unset}\"");
    exec.env = [("A", "1 $HOME"), ("B", ""), ("LANG", "C")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(host.run(exec).await.text(), "/root|root|C|1 $HOME||unset\n");
}

#[tokio::test]
async fn a_command_starts_in_its_directory_and_the_agent_does_not_stay_there() {
    let host = Host::new();
    fs::create_dir(host.path("a b")).unwrap();
    let before = std::env::current_dir().unwrap();
    let cwd = host.path("a b").to_str().unwrap().to_owned();
    let ended = host.run(Exec { cwd: cwd.clone(), ..host.exec("pwd -P") }).await;
    assert_eq!(Path::new(ended.text().trim_end()), fs::canonicalize(&cwd).unwrap());
    assert_eq!(std::env::current_dir().unwrap(), before);
}

#[tokio::test]
async fn a_workspace_that_was_removed_is_made_again() {
    let host = Host::new();
    fs::remove_dir(host.workspace()).unwrap();
    assert_eq!(status(&host, "touch made").await, Status::Code(0));
    assert!(host.path("made").exists());
}

#[tokio::test]
async fn a_directory_that_is_missing_or_a_file_is_a_failure_with_its_kind() {
    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    for (name, kind, errno) in [
        ("missing", FailureKind::DirectoryNotFound, 2),
        ("file", FailureKind::NotADirectory, 20),
        ("file/below", FailureKind::NotADirectory, 20),
    ] {
        let cwd = host.path(name).to_str().unwrap().to_owned();
        let ended = host.run(Exec { cwd: cwd.clone(), ..host.exec("touch ../ran") }).await;
        let failure = ended.failure();
        assert_eq!((failure.kind, failure.errno), (kind, Some(errno)), "{failure}");
        assert_eq!(failure.step, format!("entering {cwd}"));
    }
    assert!(!host.path("ran").exists());
    let ended = host.run(Exec { cwd: "x/".repeat(3000), ..host.exec("true") }).await;
    assert_eq!((ended.failure().kind, ended.failure().errno), (FailureKind::Other, Some(36)));
}

#[tokio::test]
async fn a_command_that_is_too_long_is_a_failure_with_its_kind() {
    let host = Host::new();
    let long = format!(": {}", "x".repeat(MAX_COMMAND_BYTES));
    let ended = host.run(host.exec(&long)).await;
    assert_eq!((ended.failure().kind, ended.failure().errno), (FailureKind::ArgumentListTooLong, Some(7)));
    assert_eq!(ended.failure().cause, "command is too long: the maximum is 1048576 bytes");
    let word = "x".repeat(200_000);
    let argv = Program::Argv(vec!["true".to_owned(), word.clone()]);
    let ended = host.run(Exec { program: argv, ..host.exec("") }).await;
    assert_eq!((ended.failure().kind, ended.failure().errno), (FailureKind::ArgumentListTooLong, Some(7)));
    assert_eq!(ended.failure().step, "starting true");
    let argv = Program::Argv(vec![word; 6]);
    let ended = host.run(Exec { program: argv, ..host.exec("") }).await;
    assert_eq!(ended.failure().step, "starting the command");
    let mut exec = host.exec("true");
    exec.env.insert("LONG".into(), "x".repeat(200_000));
    assert_eq!(host.run(exec).await.failure().kind, FailureKind::ArgumentListTooLong);
    assert_eq!(status(&host, "true").await, Status::Code(0), "the agent goes on");
}

#[tokio::test]
async fn text_that_no_program_can_be_given_is_a_failure() {
    let host = Host::new();
    let ended = host.run(host.exec("echo \0")).await;
    assert_eq!((ended.failure().kind, ended.failure().errno), (FailureKind::Other, None));
    let ended = host.run(Exec { cwd: "/\0".into(), ..host.exec("true") }).await;
    assert_eq!((ended.failure().kind, ended.failure().errno), (FailureKind::Other, None));
}

#[tokio::test]
async fn a_shell_that_is_missing_or_cannot_be_executed_is_a_failure_with_its_kind() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, mode| {
        let path = files.path().join(name);
        fs::write(&path, "\x01 no program\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    for (shell, kind) in [
        (files.path().join("missing"), FailureKind::ShellNotFound),
        (file("plain", 0o644), FailureKind::NotExecutable),
        (file("garbage", 0o755), FailureKind::NotExecutable),
    ] {
        let host = Host::with(Recorder::default(), |settings| settings.shell = shell.clone());
        let ended = host.run(host.exec("true")).await;
        assert_eq!(ended.failure().kind, kind, "{}", ended.failure());
        assert_eq!(ended.failure().step, format!("starting {}", shell.display()));
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_neither_delays_the_reply_nor_is_killed() {
    let host = Host::new();
    for fifo in ["go", "done"] {
        make_fifo(&host.path(fifo));
    }
    let command = "{ read line < go; echo late; echo late >&2; echo alive > done; } & echo begun";
    let ended = host.run(host.exec(command)).await;
    assert_eq!((ended.text(), ended.exit().status), ("begun\n", Status::Code(0)));
    let (go, done) = (host.path("go"), host.path("done"));
    // Its later output goes nowhere, but does not end it either.
    let answer = tokio::task::spawn_blocking(move || {
        fs::File::options().write(true).open(go).unwrap().write_all(b"\n").unwrap();
        let mut text = String::new();
        fs::File::open(done).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(answer.await.unwrap(), "alive\n");
}

#[tokio::test]
async fn what_a_command_wrote_last_arrives_although_a_child_keeps_the_pipe() {
    let host = Host::new();
    make_fifo(&host.path("go"));
    let ended = host.run(host.exec("{ read line < go; } & head -c 40000 /dev/zero")).await;
    assert_eq!(ended.stdout.len(), 40_000);
    let go = host.path("go");
    let released = tokio::task::spawn_blocking(move || fs::File::options().write(true).open(go));
    released.await.unwrap().unwrap();
}

#[tokio::test]
async fn commands_run_at_the_same_time() {
    let host = Host::new();
    make_fifo(&host.path("fifo"));
    // Each waits for the other: opening a fifo takes two.
    let (writer, reader) =
        tokio::join!(host.run(host.exec("echo across > fifo")), host.run(host.exec("cat fifo")));
    assert_eq!((writer.exit().status, reader.text()), (Status::Code(0), "across\n"));
    let all = (0..40).map(|number| host.run(host.exec(&format!("echo {number}; exit {number}"))));
    for (number, ended) in futures::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(ended.text(), format!("{number}\n"));
        assert_eq!(ended.exit().status, Status::Code(number as i32));
    }
}

#[tokio::test]
async fn a_command_gives_the_exemption_from_the_oom_killer_up_for_itself() {
    let files = tempfile::tempdir().unwrap();
    let (proc, moved) = (files.path().join("proc"), files.path().join("moved"));
    fs::create_dir_all(proc.join("self")).unwrap();
    fs::write(proc.join("self/oom_score_adj"), "").unwrap();
    let open = fs::File::open(&proc).unwrap();
    let host = Host::with(Recorder::default(), |settings| settings.proc = Some(open.into()));
    // A command that unmounts /proc removes the path, but not what is open.
    fs::rename(&proc, &moved).unwrap();
    assert_eq!(status(&host, "true").await, Status::Code(0));
    assert_eq!(fs::read_to_string(moved.join("self/oom_score_adj")).unwrap(), "0\n");
}

#[tokio::test]
async fn a_command_that_the_oom_killer_would_spare_is_not_started() {
    let files = tempfile::tempdir().unwrap();
    fs::create_dir(files.path().join("self")).unwrap();
    std::os::unix::fs::symlink("/dev/full", files.path().join("self/oom_score_adj")).unwrap();
    let host = Host::with(Recorder::default(), |settings| {
        // Writing to it fails.
        settings.proc = Some(fs::File::open(files.path()).unwrap().into());
    });
    let ended = host.run(host.exec("touch ran")).await;
    let failure = ended.failure();
    assert_eq!((failure.kind, failure.errno), (FailureKind::Other, Some(28)));
    assert_eq!(failure.step, "giving up the exemption from the OOM killer");
    assert!(!host.path("ran").exists());
}
