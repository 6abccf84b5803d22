//! Dismissing spares whose supervisors are fakes.

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::*;

type Raw = Framed<UnixStream, FrameCodec<Value, Value>>;

async fn hear(client: &mut Raw) -> Option<Value> {
    match client.next().await?.unwrap() {
        Frame::Control(request) => Some(request),
        Frame::Output(..) => None,
    }
}

/// Dismisses a spare whose supervisor gives this answer, or closes the connection without one.
async fn dismiss_answered(answer: Option<Value>) -> bool {
    let spare = tempfile::tempdir().unwrap();
    let listener = dir::listen(spare.path()).unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut client: Raw = Framed::new(stream, FrameCodec::default());
        assert_eq!(hear(&mut client).await, Some(json!("delete")));
        if let Some(answer) = answer {
            client.send(Frame::Control(answer)).await.unwrap();
        }
    };
    tokio::join!(dismiss(spare.path()), serve).0
}

#[tokio::test]
async fn a_spare_that_confirms_its_end_is_dismissed() {
    assert!(dismiss_answered(Some(json!("done"))).await);
}

#[tokio::test]
async fn a_spare_that_is_claimed_at_that_moment_is_not() {
    assert!(!dismiss_answered(Some(json!({ "refused": { "cause": "it has been claimed" } }))).await);
    assert!(!dismiss_answered(None).await);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_spare_costs_a_bounded_time() {
    let spare = tempfile::tempdir().unwrap();
    let _frozen = dir::listen(spare.path()).unwrap();
    let begun = Instant::now();
    assert!(!dismiss(spare.path()).await);
    assert_eq!(begun.elapsed().as_secs(), client::SPARE_LIMIT.as_secs());
}

/// It would cost every later start that time.
#[tokio::test]
async fn a_frozen_spare_is_killed() {
    let spare = tempfile::tempdir().unwrap();
    let mut supervisor = client::tests::holder(spare.path(), "read line");
    let _listener = dir::listen(spare.path()).unwrap();
    assert!(dismiss(spare.path()).await);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&supervisor.wait().unwrap()), Some(9));
    assert!(!OwnerLock::is_held(spare.path()));
}

/// It holds its lock and has no socket yet, or none any more.
#[tokio::test]
async fn a_spare_that_boots_or_is_adopted_is_not_signalled() {
    let spare = tempfile::tempdir().unwrap();
    let mut supervisor = client::tests::holder(spare.path(), "read line");
    assert!(!dismiss(spare.path()).await);
    assert!(supervisor.try_wait().unwrap().is_none(), "it goes on");
    assert!(OwnerLock::is_held(spare.path()));
    drop(supervisor.stdin.take());
    supervisor.wait().unwrap();
}

#[tokio::test]
async fn a_spare_that_is_gone_is_not_dismissed() {
    let spare = tempfile::tempdir().unwrap();
    assert!(!dismiss(&spare.path().join("gone")).await);
}

/// A running VM keeps its policy and its network process.
#[test]
fn vms_with_different_policies_do_not_take_each_others_place() {
    let spec = crate::spec::tests::spec();
    let key = |spec: &LaunchSpec| with_network("key", "2.1.0", spec);
    let wide = LaunchSpec { network: true, ..spec.clone() };
    let mut narrow = wide.clone();
    narrow.network_policy.allow_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
    let mut other = narrow.clone();
    other.network_policy.allow_cidrs = vec!["198.51.100.0/24".parse().unwrap()];
    let mut keys = vec![key(&spec), key(&wide), key(&narrow), key(&other)];
    assert_eq!(key(&narrow.clone()), keys[2]);
    keys.push(with_network("key", "2.1.1", &wide));
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
}
