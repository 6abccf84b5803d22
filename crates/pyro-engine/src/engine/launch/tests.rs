//! Claims of spares that fail.

use std::cell::Cell;

use pyro_supervisor::BootFailure;

use super::*;
use crate::engine::tests::{created, engine};
use crate::{ExecutionMode, VmState};

/// It commits the start and dies before it can report that.
#[tokio::test]
async fn a_spare_that_is_lost_after_its_start_was_recorded_does_not_prevent_another_start() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let id = created(&engine, 1, Kind::Vm);
    let record_start = async || {
        let id = id.clone();
        let patch = VmPatch { execution_mode: Some(ExecutionMode::GuestVsock), ..VmPatch::default() };
        engine.registry(move |registry| registry.set_started(&id, &patch)).await
    };
    let claims = Cell::new(0);
    let claimed = engine.claim_spare(&id, async || {
        claims.set(claims.get() + 1);
        if claims.get() == 3 {
            return Claim::NotGranted;
        }
        record_start().await.unwrap();
        Claim::Failed
    });
    assert!(claimed.await.unwrap().is_none());
    assert_eq!(claims.get(), 3);
    // The disk went with the spare, so it is not missing.
    let record = engine.get(Kind::Vm, &id).await.unwrap();
    assert_eq!(record.execution_mode, ExecutionMode::Pending);
    engine.check_disk(&record).await.unwrap();
    let started = record_start().await.unwrap();
    assert_eq!((started.state, started.last_error), (VmState::Started, None));
}

#[test]
fn a_task_whose_port_is_in_use_can_be_started_without_it() {
    let id = VmId::random().unwrap();
    let hints = |is_new| {
        let cause = "the port is in use".to_owned();
        let failure = BootFailure { stage: BootStage::Ports, cause, console: Vec::new(), timed_out: false };
        start_error(Kind::Task, &id, is_new, Path::new("/vm"), StartError::Boot(failure)).hints
    };
    assert_eq!(hints(true), [Hint::AnotherPort]);
    assert_eq!(hints(false), [Hint::UnpublishTask { task: id.to_string() }]);
}

#[tokio::test]
async fn a_task_whose_certificates_are_gone_says_where_they_belong() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("ca.pem").display().to_string();
    let choice =
        HostChoice { ca: Some(crate::host_settings::CaSource::Bundle(path.clone().into())), proxy: false };
    let error = engine(root.path()).host_settings_again(choice).await.unwrap_err();
    assert_eq!((error.kind, error.hints), (ErrorKind::InvalidInput, vec![Hint::RestoreBundle { path }]));
}

#[tokio::test]
async fn proxy_settings_that_are_not_there_are_a_warning() {
    let root = tempfile::tempdir().unwrap();
    let (sender, mut events) = tokio::sync::mpsc::channel(8);
    let spec = VmSpec { network: true, host_proxy: Some(true), ..VmSpec::new("debian:12") };
    engine(root.path()).check_host_settings(&spec, &Events::to(sender)).await.unwrap();
    let Some(Event::Warning(text)) = events.recv().await else { panic!("no warning") };
    assert!(text.starts_with("host_proxy has no effect"), "{text}");
}

#[tokio::test]
async fn a_preset_without_hosts_is_refused_before_anything_is_recorded() {
    let root = tempfile::tempdir().unwrap();
    let policy = NetworkPolicy { allow_domains: vec!["@pypi".parse().unwrap()], ..NetworkPolicy::default() };
    let spec = VmSpec { network: true, network_policy: Some(policy), ..VmSpec::new("debian:12") };
    let mut config =
        crate::Config::new(root.path().join("state"), root.path().join("cache"), root.path().join("pyro"));
    config.package_clients.root = root.path().to_owned();
    let error = Engine::new(config).check_host_settings(&spec, &Events::none()).await.unwrap_err();
    assert!(error.message.starts_with("cannot find the hosts of @pypi"), "{error}");
}
