//! Requests that concern the whole machine.

use pyro_wire::{FailureKind, Halt, HaltReply, Identify, IdentifyReply};

use crate::host::{Done, Host, Recorder, a_bootstrap, a_failure};

#[tokio::test]
async fn a_machine_becomes_another_one_and_halts() {
    let host = Host::new();
    assert_eq!(host.ask(Identify(a_bootstrap("other"))).await, IdentifyReply::Identified);
    assert_eq!(host.ask(Halt).await, HaltReply::Halted);
    assert_eq!(host.machine.done(), [Done::Identified(a_bootstrap("other")), Done::Halted]);
}

#[tokio::test]
async fn a_failure_is_the_reply_with_its_kind() {
    let host = Host::with(Recorder::failing(), |_| {});
    assert_eq!(host.ask(Identify(a_bootstrap("other"))).await, IdentifyReply::Failed(a_failure()));
    assert_eq!(host.ask(Halt).await, HaltReply::Failed(a_failure()));
}

#[tokio::test]
async fn a_machine_that_halts_cannot_become_another_one() {
    let host = Host::new();
    assert_eq!(host.ask(Halt).await, HaltReply::Halted);
    let IdentifyReply::Failed(failure) = host.ask(Identify(a_bootstrap("other"))).await else {
        panic!("identified");
    };
    assert_eq!(failure.to_string(), "naming the machine: the machine is halting");
    assert_eq!(failure.kind, FailureKind::Other);
    assert_eq!(host.machine.done(), [Done::Halted]);
}

#[tokio::test]
async fn a_halt_that_failed_may_be_asked_for_again() {
    let host = Host::with(Recorder::failing(), |_| {});
    for _ in 0..2 {
        assert_eq!(host.ask(Halt).await, HaltReply::Failed(a_failure()));
    }
    assert_eq!(host.machine.done(), [Done::Halted, Done::Halted]);
}
