//! Properties that hold on every host, with or without a VMM.

use std::fs;
use std::path::Path;

use pyro_engine::{Config, Engine, ErrorKind, Events, VmSpec};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Returns an engine on a host that has nothing it can use.
fn engine(root: &Path) -> Engine {
    engine_with(root, 0)
}

fn engine_with(root: &Path, warm_spares: u32) -> Engine {
    Engine::new(Config {
        warm_spares,
        ..Config::new(root.join("state"), root.join("cache"), root.join("pyro"))
    })
}

#[tokio::test]
async fn the_doctor_works_where_nothing_else_does() {
    let root = TempDir::new().unwrap();
    let report = engine(root.path()).doctor("linux-x86_64").await;
    assert!(!report.runtime_ok);
    assert!(
        report.issues.contains(&"qemu-system-x86_64 was not found in PATH".to_owned()),
        "{:?}",
        report.issues
    );
    assert_eq!(report.issues.len(), report.remedies.len());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "the doctor has changed something");
}

#[tokio::test]
async fn an_ill_formed_id_is_an_unknown_vm() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    for error in [
        engine.status_vm("../victim").await.unwrap_err(),
        engine.stop_vm("../victim").await.unwrap_err(),
        engine.delete_vm("../victim").await.unwrap_err(),
        engine.network_info_vm("../victim").await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.to_string(), "vm '../victim' does not exist");
    }
}

#[tokio::test]
async fn spares_are_neither_wanted_nor_possible_on_a_host_that_has_nothing() {
    let root = TempDir::new().unwrap();
    let ensure = async |warm_spares| {
        let engine = engine_with(root.path(), warm_spares);
        engine.ensure_spares(&VmSpec::new("debian:12"), &Events::none(), &CancellationToken::new()).await
    };
    ensure(0).await.unwrap();
    assert_eq!(ensure(1).await.unwrap_err().kind, ErrorKind::VmUnavailable);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "something was made for a spare");
}
