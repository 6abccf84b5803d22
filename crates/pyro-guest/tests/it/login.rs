//! The environment of commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pyro_wire::{Exec, Status};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::host::{Host, Recorder, end_of, make_fifo, terminate};

/// A host whose login shell reads `etc/profile` in the returned directory, as those of guests do in `/etc`.
fn host(profile: &str) -> (Host, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (shell, etc) = (dir.path().join("shell"), dir.path().join("etc"));
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("profile"), profile).unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -l ]; then shift; . {}; fi\nexec /bin/sh \"$@\"\n",
        etc.join("profile").display()
    );
    fs::write(&shell, script).unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let host = Host::with(Recorder::default(), |settings| {
        settings.shell = shell;
        settings.etc = etc;
    });
    (host, dir)
}

const COUNTED: &str =
    "echo noise; echo noise >&2; echo read >> reads; export FROM=profile PATH=$PATH:/added\n";

#[tokio::test]
async fn a_profile_is_read_once_and_again_when_it_has_changed() {
    let (host, dir) = host(&COUNTED.replace("reads", "$READS"));
    let reads = dir.path().join("reads");
    let profile = dir.path().join("etc/profile");
    fs::write(&profile, COUNTED.replace("reads", reads.to_str().unwrap())).unwrap();
    for _ in 0..3 {
        let ended = host.run(host.exec("echo $FROM; echo ${PATH##*:}; echo $SHLVL")).await;
        assert!(ended.text().starts_with("profile\n/added\n"), "{ended:?}");
        assert_eq!(ended.stderr, b"");
    }
    assert_eq!(fs::read_to_string(&reads).unwrap(), "read\n");
    fs::write(&profile, "export FROM=changed\n").unwrap();
    assert_eq!(host.run(host.exec("echo $FROM")).await.text(), "changed\n");
}

#[tokio::test]
async fn the_callers_variables_win() {
    let (host, _dir) = host("export PATH=/usr/bin:/bin A=profile B=profile\n");
    let env = [("PATH", "/mine:/bin"), ("A", "caller")].map(|(name, value)| (name.into(), value.into()));
    let exec = Exec { env: env.into(), ..host.exec("echo $PATH $A $B $DEBIAN_FRONTEND") };
    assert_eq!(host.run(exec).await.text(), "/mine:/bin caller profile noninteractive\n");
}

#[tokio::test]
async fn variables_of_any_form_arrive_and_those_of_the_shell_do_not() {
    let (host, _dir) = host("export LINES_OF='a\nb=c' EMPTY=; OLDPWD=/x; export OLDPWD; cd /usr\n");
    let ended = host.run(host.exec("echo \"$LINES_OF|${EMPTY-unset}|${OLDPWD-unset}\"; pwd")).await;
    assert_eq!(ended.text(), format!("a\nb=c||unset\n{}\n", host.workspace().display()));
}

#[tokio::test]
async fn a_profile_that_ends_the_shell_is_reported_once_and_silences_no_command() {
    for (profile, words) in [
        ("export A=1; exit 3\n", "exited with status 3"),
        ("kill -9 $$\n", "was killed by signal 9"),
        ("if\n", "exited with status 2"),
        ("export A=$(head -c 100000 /dev/zero | tr '\\0' x); export B=$A; export C=$A\n", "too large"),
    ] {
        let (host, dir) = host(profile);
        let ended = host.run(host.exec("echo real ${A-unset}")).await;
        assert_eq!((ended.text(), ended.exit().status), ("real unset\n", Status::Code(0)), "{profile}");
        let line = String::from_utf8(ended.stderr).unwrap();
        assert!(line.contains(words) && line.ends_with("; a plain environment is used\n"), "{line}");
        let ended = host.run(host.exec("echo real")).await;
        assert_eq!((ended.text(), ended.stderr.as_slice()), ("real\n", &b""[..]));
        // An empty profile repairs it.
        fs::write(dir.path().join("etc/profile"), "export A=repaired\n").unwrap();
        assert_eq!(host.run(host.exec("echo $A")).await.text(), "repaired\n");
    }
}

#[tokio::test]
async fn a_profile_that_does_not_end_holds_one_command_up_for_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let shell = dir.path().join("shell");
    fs::write(&shell, "#!/bin/sh\n[ \"$1\" = -l ] && sleep 1000\nexec /bin/sh \"$@\"\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let host = Host::with(Recorder::default(), |settings| {
        settings.shell = shell;
        settings.profile_limit = Duration::from_millis(100);
    });
    let ended = host.run(host.exec("echo real")).await;
    let line = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.text(), "real\n");
    assert!(line.contains("did not end within") && line.contains("plain"), "{line}");
    assert_eq!(host.run(host.exec("echo again")).await.stderr, b"");
}

#[tokio::test]
async fn a_command_that_is_ended_while_the_profile_is_read_never_starts() {
    let (host, dir) = host("");
    let fifo = dir.path().join("reads");
    make_fifo(&fifo);
    let profile = format!("echo > {}; exec sleep 1000\n", fifo.display());
    fs::write(dir.path().join("etc/profile"), profile).unwrap();
    let mut reads = pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
    let mut stream = host.call(host.exec("echo started > mark")).await;
    assert_eq!(reads.read(&mut [0; 1]).await.unwrap(), 1);
    terminate(&mut stream).await;
    let ended = end_of(stream).await;
    assert_eq!((ended.exit().status, ended.exit().timed_out), (Status::Signal(15), false));
    // A client that leaves has the same effect.
    let stream = host.call(host.exec("echo started > mark")).await;
    let reads = pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
    reads.readable().await.unwrap();
    drop(stream);
    fs::write(dir.path().join("etc/profile"), "export A=1\n").unwrap();
    assert_eq!(host.run(host.exec("echo $A; ls")).await.text(), "1\n");
}

#[tokio::test]
async fn a_service_that_a_profile_starts_does_not_hold_commands_up() {
    let (host, _dir) = host("sleep 1000 & export SERVICE=$!\n");
    let ended = host.run(host.exec("kill $SERVICE && echo stopped")).await;
    assert_eq!((ended.text(), ended.stderr.as_slice()), ("stopped\n", &b""[..]));
}
