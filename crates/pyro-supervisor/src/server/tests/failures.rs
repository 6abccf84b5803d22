//! What the supervisor does when something that it relies on fails.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec, OutputStream};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::fake::{Conditions, Fact, Supervised};
use super::races::{ask, exec, run, started, until};
use crate::client::Run;
use crate::protocol::{Event, Reply, Request};
use crate::spec::Retention;
use crate::{EndReason, dir, files};

#[test]
fn what_the_guest_may_have_lost_is_recorded() {
    run(async {
        let beginning = "the guest may not have written everything to its disk: ";
        for (conditions, why) in [
            (Conditions { halt_fails: true, ..Conditions::task() }, "writing out: I/O error"),
            (Conditions { halt_ms: 3_600_000, ..Conditions::task() }, "timed out after 20 seconds"),
        ] {
            let mut supervised = started(conditions).await;
            assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
            supervised.ended().await;
            assert_eq!(*supervised.world.loss.borrow(), Some(format!("{beginning}{why}")));
        }
        for exits in [true, false] {
            let mut supervised = started(Conditions { halt_ms: 10_000, ..Conditions::task() }).await;
            let client = supervised.client();
            let stopping = tokio::task::spawn_local(async move {
                let mut stream = client.connect().await.unwrap().stream;
                stream.send(Frame::Control(Request::Stop)).await.unwrap();
                stream.next().await.unwrap().unwrap()
            });
            sleep(Duration::from_secs(1)).await;
            if exits {
                supervised.world.machine_exit.notify_one();
            } else {
                supervised.world.channel_loss.cancel();
            }
            assert_eq!(stopping.await.unwrap(), Frame::Control(Reply::Done));
            supervised.ended().await;
            let why = if exits {
                "the machine ended before it was done"
            } else {
                "the guest sent no valid response"
            };
            assert_eq!(*supervised.world.loss.borrow(), Some(format!("{beginning}{why}")));
            assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Stopped)));
        }
    });
}

/// While its commands are being ended: it is not asked to write anything out any more.
#[test]
fn a_guest_that_is_lost_before_it_writes_out_has_not_written_everything() {
    run(async {
        // The record of a command's end takes longer than the driver waits for the machine to exit.
        let mut supervised = started(Conditions { store_ms: 5000, ..Conditions::task() }).await;
        let client = supervised.client();
        let running = tokio::task::spawn_local(async move {
            let run = Run { exec: exec("sleep 1000000"), journal: true };
            client.run(run, &CancellationToken::new(), async |_| {}).await
        });
        until(&supervised, |fact| matches!(fact, Fact::Began(_))).await;
        supervised.world.channel_loss.cancel();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
        running.abort();
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Stopped)));
        assert!(!supervised.world.has(&Fact::Halted));
        let loss = supervised.world.loss.borrow().clone().unwrap();
        assert!(loss.ends_with("the guest sent no valid response"), "{loss}");
    });
}

#[test]
fn the_console_of_a_machine_that_exits_is_part_of_the_reason() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        "Kernel panic - not syncing\n".clone_into(&mut supervised.world.last_words.borrow_mut());
        supervised.world.machine_exit.notify_one();
        supervised.ended().await;
        let description = "exit status: 0\nKernel panic - not syncing".to_owned();
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::VmmEnded { description })));
    });
}

/// The release of its lock reports an end that the record cannot.
#[test]
fn a_vm_whose_end_cannot_be_recorded_ends_all_the_same() {
    run(async {
        let mut supervised = started(Conditions { end_is_refused: true, ..Conditions::task() }).await;
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::Notified(Event::Ended(EndReason::Stopped))));

        let conditions = Conditions { is_new: true, end_is_refused: true, ..Conditions::task() };
        let mut supervised = Supervised::start(conditions);
        sleep(Duration::from_millis(10)).await;
        supervised.drop_caller();
        supervised.ended().await;
        assert!(!supervised.dir.exists());
    });
}

/// Without a timer, the VM would never end.
#[test]
fn a_vm_without_a_timer_ends_at_once() {
    run(async {
        let mut supervised = Supervised::start(Conditions { clock_fails: true, ..Conditions::task() });
        supervised.ended().await;
        assert!(supervised.world.has(&Fact::EndRecorded(EndReason::Expired)));
    });
}

#[test]
fn a_starter_that_exits_while_the_start_is_recorded_leaves_a_vm_that_runs() {
    run(async {
        let mut supervised = Supervised::start(Conditions { store_ms: 500, ..Conditions::task() });
        sleep(Duration::from_millis(300)).await;
        supervised.drop_caller();
        until(&supervised, |fact| *fact == Fact::StartRecorded).await;
        sleep(Duration::from_secs(60)).await;
        assert!(supervised.world.is_alive());
        assert_eq!(ask(&supervised, Request::Delete).await, Some(Reply::Done));
        supervised.ended().await;
    });
}

#[test]
fn a_phase_that_cannot_be_published_does_not_end_the_vm() {
    run(async {
        let mut supervised = Supervised::start(Conditions::task());
        std::fs::create_dir(supervised.dir.join(files::OWNER)).unwrap();
        until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
    });
}

#[test]
fn a_spare_that_no_client_can_reach_ends() {
    run(async {
        let mut supervised = Supervised::spare(Conditions::task());
        std::fs::create_dir(supervised.spare_dir.join(files::CONTROL_SOCKET)).unwrap();
        supervised.ended().await;
        assert!(!supervised.spare_dir.exists());
    });
}

/// Peers that do not follow the protocol are disconnected, and affect no other client.
#[test]
fn a_client_that_does_not_follow_the_protocol_is_disconnected() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        let hello = || Frame::Control(json!({ "hello": crate::Greeting::own() }));
        let output = || Frame::Output(OutputStream::Stdout, "x".into());
        let cancel = || Frame::Control(json!("cancel"));
        for frames in [vec![output()], vec![hello(), output()], vec![hello(), cancel()]] {
            let stream = dir::connect(&supervised.dir).await.unwrap();
            let mut stream = Framed::new(stream, FrameCodec::<Value, Value>::default());
            for frame in frames {
                stream.send(frame).await.unwrap();
            }
            let rest: Vec<_> = stream.collect().await;
            assert!(
                rest.iter()
                    .all(|frame| matches!(frame, Ok(Frame::Control(value)) if value.get("hello").is_some()))
            );
        }
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        supervised.ended().await;
    });
}

#[test]
fn a_failed_boot_is_reported_and_leaves_what_its_terms_say() {
    run(async {
        for retention in [Retention::Caller, Retention::Deletion] {
            let mut supervised =
                Supervised::start(Conditions { boot_fails: true, retention, ..Conditions::task() });
            supervised.ended().await;
            let facts = supervised.world.facts.borrow().clone();
            let [Fact::Notified(Event::Failed(failure))] = &facts[..] else { panic!("{facts:?}") };
            assert_eq!(failure.cause, "panic");
            assert_eq!(supervised.dir.exists(), retention == Retention::Deletion);
        }
    });
}
