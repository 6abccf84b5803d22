//! What is run: shell text of any form and length, a chosen shell, and argument lists.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pyro_wire::{Exec, FailureKind, Program, Status};

use crate::host::Host;

fn argv(words: &[&str]) -> Program {
    Program::Argv(words.iter().map(|word| (*word).to_owned()).collect())
}

fn in_shell(shell: &str, text: &str) -> Program {
    Program::Shell { text: text.to_owned(), shell: Some(shell.to_owned()) }
}

#[tokio::test]
async fn text_that_begins_with_a_hyphen_is_a_command() {
    let host = Host::new();
    for program in [in_shell("sh", "-x; echo on"), in_shell("/bin/bash", "-x; echo on")] {
        let ended = host.run(Exec { program, ..host.exec("") }).await;
        assert_eq!(ended.text(), "on\n");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("-x"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_chosen_shell_is_looked_up_in_the_path_of_the_command() {
    let host = Host::new();
    let exec = Exec { program: in_shell("bash", "[[ a == a ]] && echo $0"), ..host.exec("") };
    assert_eq!(host.run(exec.clone()).await.text(), "bash\n");
    let env = [("PATH".to_owned(), "/nowhere".to_owned())].into();
    let ended = host.run(Exec { env, ..exec }).await;
    assert_eq!(
        (ended.failure().kind, ended.failure().step.as_str()),
        (FailureKind::ShellNotFound, "starting bash")
    );
}

#[tokio::test]
async fn arguments_reach_the_program_unchanged() {
    let host = Host::new();
    let program = argv(&["printf", "%s|", "$HOME", "a b", "", "*", "-x", "\n"]);
    let ended = host.run(Exec { program, ..host.exec("") }).await;
    assert_eq!(ended.text(), "$HOME|a b||*|-x|\n|");
}

#[tokio::test]
async fn a_program_is_looked_up_in_the_path_of_the_command() {
    let host = Host::new();
    fs::create_dir(host.path("bin")).unwrap();
    for (name, mode) in [("tool", 0o755), ("data", 0o644)] {
        let file = host.path("bin").join(name);
        fs::write(&file, "#!/bin/sh\necho found \"$@\"\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = format!("/nowhere:{}:/bin", host.path("bin").display());
    let run = async |words: &[&str]| {
        let env = [("PATH".to_owned(), path.clone())].into();
        host.run(Exec { program: argv(words), env, ..host.exec("") }).await
    };
    assert_eq!(run(&["tool", "a"]).await.text(), "found a\n");
    assert_eq!(run(&["bin/tool"]).await.text(), "found\n");
    for (words, kind) in [
        (&["data"][..], FailureKind::NotExecutable),
        (&["no-such-program"], FailureKind::CommandNotFound),
        (&["./bin/nothing"], FailureKind::CommandNotFound),
        (&[""], FailureKind::CommandNotFound),
        (&[], FailureKind::Other),
    ] {
        assert_eq!(run(words).await.failure().kind, kind, "{words:?}");
    }
}

#[tokio::test]
async fn a_long_text_runs_as_a_short_one_does() {
    let host = Host::new();
    for shell in ["sh", "bash"] {
        // Longer than the kernel accepts as an argument.
        let padding = format!(": {}", "x".repeat(300_000));
        let text = format!("echo $0 $#; {padding}\ncat; ls /proc/self/fd | wc -l; (exit 7)");
        let run = async |text: &str| {
            let ended = host.run(Exec { program: in_shell(shell, text), ..host.exec("") }).await;
            (ended.text().to_owned(), ended.exit().status)
        };
        let short = run(&text.replace(&padding, ":")).await;
        assert_eq!(short.1, Status::Code(7));
        assert_eq!(run(&text).await, short, "{shell}");
    }
}
