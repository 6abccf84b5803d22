//! Claims of spares that fail.

use std::cell::Cell;

use pyro_supervisor::BootFailure;

use super::*;
use crate::VmState;
use crate::engine::tests::{created, engine};

/// It commits the start and dies before it can report that.
#[tokio::test]
async fn a_spare_that_is_lost_after_its_start_was_recorded_does_not_prevent_another_start() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let id = created(&engine, 1, Kind::Vm);
    let record_start = async || {
        let id = id.clone();
        engine.registry(move |registry| registry.set_started(&id, &VmPatch::default())).await
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
    let started = record_start().await.unwrap();
    assert_eq!((started.state, started.last_error), (VmState::Started, None));
}

#[test]
fn a_task_whose_port_is_in_use_can_be_started_without_it() {
    let id = VmId::random().unwrap();
    let hints = |is_new| {
        let cause = "the port is in use".to_owned();
        let failure = BootFailure { stage: BootStage::Ports, cause, console: Vec::new() };
        start_error(Kind::Task, &id, is_new, Path::new("/vm"), StartError::Boot(failure)).hints
    };
    assert_eq!(hints(true), [Hint::AnotherPort]);
    assert_eq!(hints(false), [Hint::UnpublishTask { task: id.to_string() }]);
}
