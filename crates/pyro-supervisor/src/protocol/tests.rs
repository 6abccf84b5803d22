//! The protocol across versions.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameCodec};
use schemars::{Schema, schema_for};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::server::tests::{Conditions, Supervised, started};
use crate::{Client, ConnectError, EndRequest, Ended, OwnerLock, Run, RunError, dir};

/// If this fails, the protocol between supervisors and their clients has changed, and both may be of different
/// versions while tasks run across an upgrade. Decide:
///
/// * An optional field that an older reader may overlook without harm, or a variant that is only sent to those who asked
///   for it: accept the snapshot. An older supervisor answers an unknown request by `Reply::Unknown`, and nothing is
///   done.
/// * Anything else (a field that is required, removed, or means something else): raise `GENERATION`. Clients then tell their
///   users to stop and start tasks that an older supervisor runs.
/// * `Legacy` and the frames `"done"` and `"refused"` never change: programs that were built before generations use them.
#[test]
fn schema() {
    let schemas: BTreeMap<&str, Schema> = BTreeMap::from([
        ("opening", schema_for!(Opening)),
        ("request", schema_for!(Request)),
        ("reply", schema_for!(Reply)),
        ("launch", schema_for!(Launch)),
        ("event", schema_for!(Event)),
    ]);
    insta::assert_json_snapshot!(json!({ "generation": GENERATION, "schemas": schemas }));
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// A peer that sends and receives JSON in frames: no type of this crate is between the test and the wire.
type Raw = Framed<UnixStream, FrameCodec<Value, Value>>;

fn raw(stream: UnixStream) -> Raw {
    Framed::new(stream, FrameCodec::default())
}

async fn say(peer: &mut Raw, value: Value) {
    peer.send(Frame::Control(value)).await.unwrap();
}

async fn hear(peer: &mut Raw) -> Option<Value> {
    match peer.next().await? {
        Ok(Frame::Control(value)) => Some(value),
        other => panic!("{other:?}"),
    }
}

fn old_exec() -> Value {
    json!({
        "command": "true", "cwd": "/workspace", "timeout_ms": 1000, "kill_grace_ms": 1000, "output_limit": null,
    })
}

/// The frames of a client that was built before generations.
#[test]
fn an_older_client_is_told_that_nothing_was_delivered() {
    run(async {
        let cause = format!("not delivered: the supervisor of this task runs version {VERSION}");
        let mut supervised = started(Conditions::task()).await;
        let connect = async || raw(dir::connect(&supervised.dir).await.unwrap());

        let mut client = connect().await;
        say(&mut client, json!({ "run": { "exec": old_exec(), "detach": false } })).await;
        // Such a client takes it for certain that its command does not run.
        assert_eq!(hear(&mut client).await, Some(json!({ "refused": { "cause": cause } })));
        assert_eq!(hear(&mut client).await, None);

        let mut client = connect().await;
        say(&mut client, json!("guest")).await;
        say(&mut client, json!({ "exec": old_exec() })).await;
        let answer = hear(&mut client).await.unwrap();
        assert_eq!(answer["not_started"]["cause"], cause, "{answer}");

        let mut client = connect().await;
        say(&mut client, json!({ "extend": { "expires_at": 500.0 } })).await;
        assert_eq!(hear(&mut client).await, Some(json!("done")));

        // Every client can end a task.
        let mut client = connect().await;
        say(&mut client, json!("stop")).await;
        assert_eq!(hear(&mut client).await, Some(json!("done")));
        supervised.ended().await;
        assert!(!supervised.began_anything());
    });
}

#[test]
fn an_older_client_can_expire_a_task() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let mut client = raw(dir::connect(&supervised.dir).await.unwrap());
        say(&mut client, json!("expire")).await;
        assert_eq!(hear(&mut client).await, Some(json!("done")));
        supervised.ended().await;
        assert!(supervised.dir.exists(), "a task's files stay");
    });
}

#[test]
fn a_younger_client_learns_the_version_before_it_asks() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let mut client = raw(dir::connect(&supervised.dir).await.unwrap());
        say(&mut client, json!({ "hello": { "generation": GENERATION + 1, "version": "9.9.9" } })).await;
        let own = json!({ "generation": GENERATION, "version": VERSION });
        assert_eq!(hear(&mut client).await, Some(json!({ "hello": own })));
        assert_eq!(hear(&mut client).await, None);

        // Of the same generation, with a request that came later.
        let mut client = raw(dir::connect(&supervised.dir).await.unwrap());
        say(&mut client, json!({ "hello": { "generation": GENERATION, "version": "2.9.9", "more": 1 } }))
            .await;
        hear(&mut client).await.unwrap();
        say(&mut client, json!({ "fork": { "count": 2 } })).await;
        assert_eq!(hear(&mut client).await, Some(json!({ "unknown": own })));
        supervised.client().connect().await.unwrap();
        supervised.drop_caller();
        end(&mut supervised).await;
    });
}

async fn end(supervised: &mut Supervised) {
    let mut client = raw(dir::connect(&supervised.dir).await.unwrap());
    say(&mut client, json!("delete")).await;
    hear(&mut client).await.unwrap();
    supervised.ended().await;
}

/// A supervisor, in this process, that serves each connection in this way and notes what it was asked.
struct Peer {
    base: tempfile::TempDir,
    lock: std::rc::Rc<std::cell::RefCell<Option<OwnerLock>>>,
    heard: std::rc::Rc<std::cell::RefCell<Vec<Value>>>,
}

impl Peer {
    fn new() -> (Self, UnixListener) {
        let base = tempfile::tempdir().unwrap();
        let lock = OwnerLock::try_acquire(base.path()).unwrap();
        let listener = dir::listen(base.path()).unwrap();
        (Self { base, lock: std::rc::Rc::new(lock.into()), heard: std::rc::Rc::default() }, listener)
    }

    /// One that was built before generations: one request per connection, and it closes the connection after a
    /// request that it does not understand.
    fn before_generations() -> Self {
        let (peer, listener) = Self::new();
        let (heard, lock) = (std::rc::Rc::clone(&peer.heard), std::rc::Rc::clone(&peer.lock));
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut client = raw(stream);
                let Some(request) = hear(&mut client).await else { continue };
                heard.borrow_mut().push(request.clone());
                if matches!(request.as_str(), Some("stop" | "delete" | "expire")) {
                    lock.borrow_mut().take();
                    say(&mut client, json!("done")).await;
                }
            }
        });
        peer
    }

    fn client(&self) -> Client {
        Client::new(self.base.path())
    }
}

fn command() -> Run {
    Run { exec: Exec::new("true", Duration::from_secs(5)), journal: true }
}

async fn run_on(client: &Client) -> RunError {
    client.run(command(), &CancellationToken::new(), async |_| {}).await.unwrap_err()
}

#[test]
fn an_older_supervisor_is_told_apart_before_it_is_asked_for_anything() {
    run(async {
        let peer = Peer::before_generations();
        let error = run_on(&peer.client()).await;
        let RunError::NotDelivered(ConnectError::OtherVersion { version: None }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(error.to_string(), "not delivered: the supervisor of this task runs an older version");
        peer.client().detach(command().exec).await.unwrap_err();
        peer.client().kill(1).await.unwrap_err();
        for heard in &*peer.heard.borrow() {
            assert!(heard.get("hello").is_some(), "it was asked for {heard}");
        }
        // What is left to do with such a task works.
        let ended = peer.client().end(EndRequest::Stop, Duration::from_secs(30)).await.unwrap();
        assert!(matches!(ended, Ended::Released(Some(_))), "{ended:?}");
        assert_eq!(peer.heard.borrow().last(), Some(&json!("stop")));
    });
}

#[test]
fn a_younger_supervisor_is_not_asked_for_anything() {
    run(async {
        let (peer, listener) = Peer::new();
        let serve = spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut client = raw(stream);
            hear(&mut client).await.unwrap();
            say(&mut client, json!({ "hello": { "generation": GENERATION + 1, "version": "9.9.9" } })).await;
            hear(&mut client).await
        });
        let error = run_on(&peer.client()).await;
        assert_eq!(error.to_string(), "not delivered: the supervisor of this task runs version 9.9.9");
        assert_eq!(serve.await.unwrap(), None, "nothing but the greeting");
    });
}

/// The kernel accepts connections for a process that is stopped.
#[test]
fn a_frozen_supervisor_costs_its_client_a_bounded_time_and_runs_nothing_when_it_thaws() {
    run(async {
        let (peer, listener) = Peer::new();
        let began = tokio::time::Instant::now();
        let error = run_on(&peer.client()).await;
        assert!(matches!(error, RunError::NotDelivered(ConnectError::Unresponsive)), "{error:?}");
        assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
        // It thaws.
        let (stream, _) = listener.accept().await.unwrap();
        let mut client = raw(stream);
        assert!(hear(&mut client).await.unwrap().get("hello").is_some());
        assert_eq!(hear(&mut client).await, None, "the command was never in its buffer");
    });
}

/// It freezes after the greeting, with the command in its buffer.
#[test]
fn a_cancellation_reaches_a_supervisor_that_froze_before_it_begins_the_command() {
    run(async {
        let (peer, listener) = Peer::new();
        let cancel = CancellationToken::new();
        let (client, cancelled) = (peer.client(), cancel.clone());
        let running = spawn_local(async move { client.run(command(), &cancelled, async |_| {}).await });
        let (stream, _) = listener.accept().await.unwrap();
        let mut frozen = raw(stream);
        hear(&mut frozen).await.unwrap();
        say(&mut frozen, json!({ "hello": { "generation": GENERATION, "version": VERSION } })).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        cancel.cancel();
        let began = tokio::time::Instant::now();
        assert!(matches!(running.await.unwrap(), Err(RunError::Cancelled)));
        assert!(began.elapsed() <= Duration::from_secs(6), "{:?}", began.elapsed());
        // It thaws, and reads both.
        assert!(hear(&mut frozen).await.unwrap().get("run").is_some());
        assert_eq!(hear(&mut frozen).await, Some(json!("cancel")));
        assert_eq!(hear(&mut frozen).await, None);
    });
}

#[test]
fn a_supervisor_that_freezes_while_a_command_runs_does_not_keep_its_client() {
    run(async {
        let (peer, listener) = Peer::new();
        let client = peer.client();
        let running = spawn_local(async move { run_on(&client).await });
        let (stream, _) = listener.accept().await.unwrap();
        let mut frozen = raw(stream);
        hear(&mut frozen).await.unwrap();
        say(&mut frozen, json!({ "hello": { "generation": GENERATION, "version": VERSION } })).await;
        hear(&mut frozen).await.unwrap();
        say(&mut frozen, json!({ "accepted": { "sequence": 7, "id": 1 } })).await;
        let began = tokio::time::Instant::now();
        let error = running.await.unwrap();
        assert!(matches!(error, RunError::Lost { sequence: Some(7) }), "{error:?}");
        // Five seconds for the command, its grace, and what the guest and the record may take.
        assert!(began.elapsed() <= Duration::from_secs(40), "{:?}", began.elapsed());
    });
}
