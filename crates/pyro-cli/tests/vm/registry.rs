//! Unusable state directories. No VM starts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::harness::Sandbox;

fn with_state(prepare: impl FnOnce(&std::path::Path)) -> Sandbox {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.state()).unwrap();
    fs::set_permissions(sandbox.state(), fs::Permissions::from_mode(0o700)).unwrap();
    prepare(&sandbox.state());
    sandbox
}

#[test]
fn a_damaged_registry_is_reported_and_left_as_it_is() {
    let garbage = "this is not a database ".repeat(1000);
    let sandbox = with_state(|state| fs::write(state.join("state.sqlite3"), &garbage).unwrap());
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(error.contains("is damaged") && error.contains("hint: move it away (mv "), "{error}");
    assert_eq!(fs::read_to_string(sandbox.state().join("state.sqlite3")).unwrap(), garbage);
    let document = sandbox.run(["--json"], "echo never").json();
    assert_eq!(document["kind"], "state_unusable");

    // As the hint says.
    let state = sandbox.state();
    fs::rename(state.join("state.sqlite3"), sandbox.path("damaged")).unwrap();
    assert_eq!(sandbox.run([], "echo again").success(), "again\n");
}

#[test]
fn the_registry_of_a_newer_pyro_is_refused_and_left_as_it_is() {
    let sandbox = with_state(|state| {
        let connection = rusqlite::Connection::open(state.join("state.sqlite3")).unwrap();
        connection.execute_batch("CREATE TABLE future (x); PRAGMA user_version = 999").unwrap();
    });
    let before = fs::read(sandbox.state().join("state.sqlite3")).unwrap();
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(error.contains("was written by a newer pyro (format 999"), "{error}");
    assert_eq!(fs::read(sandbox.state().join("state.sqlite3")).unwrap(), before);
}

#[test]
fn a_state_directory_that_is_none_or_that_others_can_write_to_is_refused() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.state(), "a file").unwrap();
    let ended = sandbox.run([], "echo never");
    assert!(ended.error().contains("is not a directory"), "{ended:?}");
    fs::remove_file(sandbox.state()).unwrap();

    let sandbox = with_state(|state| fs::set_permissions(state, fs::Permissions::from_mode(0o777)).unwrap());
    let ended = sandbox.run([], "echo never");
    assert!(ended.error().contains("may be written by other users"), "{ended:?}");

    let sandbox = Sandbox::new().set("PYRO_BASE_DIR", "/proc/pyro");
    let ended = sandbox.run([], "echo never");
    assert!(ended.error().contains("the state directory /proc/pyro cannot be used"), "{ended:?}");
}
