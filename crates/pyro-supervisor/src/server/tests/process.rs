//! The supervisor process up to where it needs a machine.

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::codec::Framed;

use super::fake::{Conditions, FakeStore, World, spec};
use crate::protocol::{Event, GENERATION, Greeting, Launch, LifelineClient, VERSION};
use crate::server::Signals;
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootStage, EndReason};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// Runs a supervisor while `starter` has the other end of its standard input.
async fn supervise(starter: impl AsyncFnOnce(UnixStream)) -> std::io::Result<()> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let store = FakeStore(World::new(Conditions::task()));
    let supervisor = crate::run(theirs.into_std().unwrap().into(), store);
    tokio::join!(supervisor, starter(ours)).0
}

async fn send_launch(stream: UnixStream, spec: LaunchSpec) -> LifelineClient {
    let mut lifeline: LifelineClient = Framed::new(stream, FrameCodec::default());
    lifeline.send(Frame::Control(Launch::Hello(Greeting::own()))).await.unwrap();
    lifeline.send(Frame::Control(Launch::Start(Box::new(spec)))).await.unwrap();
    lifeline
}

async fn next(lifeline: &mut LifelineClient) -> Option<Event> {
    match lifeline.next().await? {
        Ok(Frame::Control(event)) => Some(event),
        other => panic!("{other:?}"),
    }
}

/// The specification names files that do not exist.
#[test]
fn a_vm_whose_files_are_missing_is_reported_as_failed() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let spec = LaunchSpec { in_use_lock: Some("/none".into()), ..spec(dir.path().to_owned()) };
        let supervised = supervise(async |stream| {
            let mut lifeline = send_launch(stream, spec).await;
            assert_eq!(next(&mut lifeline).await, Some(Event::Hello(Greeting::own())));
            let Some(Event::Failed(failure)) = next(&mut lifeline).await else { panic!() };
            assert_eq!(failure.stage, BootStage::Disks, "{failure:?}");
            assert_eq!(next(&mut lifeline).await, None);
        });
        supervised.await.unwrap();
        assert!(dir.path().exists());
    });
}

#[test]
fn a_host_without_templates_makes_none() {
    run(async {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("template");
        std::fs::create_dir(&dir).unwrap();
        let spec = LaunchSpec { purpose: Purpose::Template, ..spec(dir.clone()) };
        let supervised = supervise(async |stream| {
            let mut lifeline = send_launch(stream, spec).await;
            next(&mut lifeline).await.unwrap();
            let Some(Event::Failed(failure)) = next(&mut lifeline).await else { panic!() };
            assert_eq!(failure.cause, "this host has no templates");
        });
        supervised.await.unwrap();
        assert!(!dir.exists());
    });
}

#[test]
fn a_starter_of_another_generation_learns_the_version_of_the_supervisor() {
    run(async {
        let younger = json!({ "hello": { "generation": GENERATION + 1, "version": "9.9.9" } });
        for first in [younger, json!({ "vm_id": "from before generations" })] {
            let supervised = supervise(async |stream| {
                let mut lifeline = Framed::new(stream, FrameCodec::<Value, Value>::default());
                lifeline.send(Frame::Control(first.clone())).await.unwrap();
                let Some(Ok(Frame::Control(answer))) = lifeline.next().await else { panic!() };
                let cause = format!(
                    "its supervisor runs version {VERSION}, and the process that starts it another one"
                );
                assert_eq!(answer["failed"]["cause"], cause, "{answer}");
            });
            supervised.await.unwrap();
        }
    });
}

#[test]
fn a_lifeline_that_brings_no_specification_is_an_error() {
    run(async {
        let closed = supervise(async |stream| drop(stream)).await.unwrap_err();
        assert_eq!(closed.to_string(), "no launch specification on standard input");
        let greeted = supervise(async |stream| {
            let mut lifeline: LifelineClient = Framed::new(stream, FrameCodec::default());
            lifeline.send(Frame::Control(Launch::Hello(Greeting::own()))).await.unwrap();
        });
        assert_eq!(greeted.await.unwrap_err().to_string(), closed.to_string());
        let early = supervise(async |stream| {
            let mut lifeline: LifelineClient = Framed::new(stream, FrameCodec::default());
            let start = Launch::Start(Box::new(spec("/none".into())));
            lifeline.send(Frame::Control(start)).await.unwrap();
        });
        assert_eq!(early.await.unwrap_err().to_string(), closed.to_string());
    });
}

#[test]
fn signals_end_the_vm() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
        tokio::task::LocalSet::new().run_until(async {
            let mut supervised = super::races::started(Conditions::task()).await;
            let signals = Signals::new().unwrap();
            let forwarding = tokio::task::spawn_local(signals.forward(supervised.inbox.clone()));
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::HUP).unwrap();
            supervised.ended().await;
            forwarding.abort();
            assert!(supervised.world.has(&super::fake::Fact::EndRecorded(EndReason::Terminated)));
        }),
    );
}
