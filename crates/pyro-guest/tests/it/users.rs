//! Commands of other users. Only root can become another user: elsewhere, these tests expect the refusal.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pyro_wire::{Exec, FailureKind, Status};

use crate::host::{Host, Recorder};

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nagent:x:4242:4243::HOME:/bin/sh\n";
const GROUP: &str = "agent:x:4243:\nextra:x:4244:other,agent\n";

/// A host with the user `agent`, whose home directory is in the returned directory, and a workspace for all.
fn host() -> (Host, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(dir.path().join("passwd"), PASSWD.replace("HOME", home.to_str().unwrap())).unwrap();
    fs::write(dir.path().join("group"), GROUP).unwrap();
    for path in [dir.path(), &home] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let etc = dir.path().to_owned();
    let host = Host::with(Recorder::default(), |settings| settings.etc = etc);
    let workspace = host.workspace();
    for path in [workspace.parent().unwrap(), &workspace] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    (host, dir)
}

/// Runs a command as a user. `None`: this process cannot become another user, and the agent has said so.
async fn run(host: &Host, user: &str, text: &str) -> Option<crate::host::Ended> {
    let ended = host.run(Exec { user: Some(user.to_owned()), ..host.exec(text) }).await;
    if rustix::process::geteuid().is_root() {
        return Some(ended);
    }
    assert_eq!(ended.failure().kind, FailureKind::PermissionDenied);
    assert!(ended.failure().step.starts_with("becoming the user "));
    None
}

#[tokio::test]
async fn a_command_has_the_users_ids_groups_and_variables() {
    let (host, dir) = host();
    fs::write(dir.path().join("home/.profile"), "export FROM=home\n").unwrap();
    let text = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL $FROM";
    let home = dir.path().join("home").display().to_string();
    for (user, expected) in [
        ("agent", format!("4242\n4243\n4243 4244\n{home} agent agent /bin/sh home\n")),
        ("4242", format!("4242\n4243\n4243 4244\n{home} agent agent /bin/sh home\n")),
        ("agent:extra", format!("4242\n4244\n4244\n{home} agent agent /bin/sh home\n")),
        ("5252:5253", "5252\n5253\n5253\n/ 5252 5252 /bin/sh\n".to_owned()),
    ] {
        if let Some(ended) = run(&host, user, text).await {
            assert_eq!(ended.text(), expected, "{user} {ended:?}");
            assert_eq!(ended.stderr, b"", "{user}");
        }
    }
}

#[tokio::test]
async fn a_user_that_is_not_found_is_a_failure_with_its_kind() {
    let (host, _dir) = host();
    for (user, kind) in [
        ("missing-user", FailureKind::UserNotFound),
        ("agent:no-group", FailureKind::GroupNotFound),
        ("agent:", FailureKind::InvalidUser),
    ] {
        let ended = host.run(Exec { user: Some(user.to_owned()), ..host.exec("true") }).await;
        assert_eq!(ended.failure().kind, kind, "{user}");
    }
}

#[tokio::test]
async fn a_user_can_open_standard_input_and_output_by_name() {
    let (host, _dir) = host();
    let text = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin";
    if let Some(ended) = run(&host, "agent", text).await {
        assert_eq!((ended.text(), ended.stderr.as_slice()), ("out\n", &b"err\n"[..]));
        assert_eq!(ended.exit().status, Status::Code(0));
    }
    // Root's command that becomes another user itself.
    if rustix::process::geteuid().is_root() {
        let text =
            "setpriv --reuid 4242 --clear-groups sh -c 'echo out > /dev/stdout; echo err > /dev/stderr'";
        let ended = host.run(host.exec(text)).await;
        assert_eq!((ended.text(), ended.stderr.as_slice()), ("out\n", &b"err\n"[..]), "{ended:?}");
    }
}

#[tokio::test]
async fn a_directory_is_entered_with_the_users_rights() {
    let (host, _dir) = host();
    let secret = host.path("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let cwd = secret.display().to_string();
    let exec = Exec { cwd: cwd.clone(), user: Some("agent".to_owned()), ..host.exec("true") };
    let ended = host.run(exec).await;
    assert_eq!(ended.failure().kind, FailureKind::PermissionDenied);
    if rustix::process::geteuid().is_root() {
        assert_eq!(ended.failure().step, format!("entering {cwd}"));
    }
}
