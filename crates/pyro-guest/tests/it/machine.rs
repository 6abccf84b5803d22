//! Requests that concern the whole machine.

use pyro_wire::{Bootstrap, FailureKind, Halt, HaltReply, HostSettings, Identify, IdentifyReply};

use crate::host::{Done, Host, Recorder, a_bootstrap, a_failure};

#[tokio::test]
async fn a_machine_becomes_another_one_and_halts() {
    let host = Host::new();
    assert_eq!(host.ask(Identify(a_bootstrap("other"))).await, IdentifyReply::Identified);
    assert_eq!(host.ask(Halt).await, HaltReply::Halted);
    assert_eq!(
        host.machine.done(),
        [Done::Identified(a_bootstrap("other")), Done::ProcessesEnded, Done::Halted]
    );
}

#[tokio::test]
async fn commands_have_the_machines_variables_and_may_override_them() {
    let host = Host::new();
    let variables = [("A", "of the host"), ("B", "of the host")].map(|(k, v)| (k.into(), v.into())).into();
    let settings = HostSettings { variables, ..HostSettings::default() };
    let bootstrap = Bootstrap { host: settings, ..a_bootstrap("other") };
    assert_eq!(host.ask(Identify(bootstrap)).await, IdentifyReply::Identified);
    let mut exec = host.exec("echo $A, $B, $C");
    exec.env = [("B", "of the caller"), ("C", "more")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(host.run(exec).await.text(), "of the host, of the caller, more\n");
    // Another identity has other variables.
    assert_eq!(host.ask(Identify(a_bootstrap("third"))).await, IdentifyReply::Identified);
    assert_eq!(host.run(host.exec("echo $A")).await.text(), "\n");
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
    assert_eq!(host.machine.done(), [Done::ProcessesEnded, Done::Halted]);
}

#[tokio::test]
async fn a_halt_that_failed_may_be_asked_for_again() {
    let host = Host::with(Recorder::failing(), |_| {});
    for _ in 0..2 {
        assert_eq!(host.ask(Halt).await, HaltReply::Failed(a_failure()));
    }
    assert_eq!(host.machine.done(), [Done::ProcessesEnded, Done::Halted, Done::ProcessesEnded, Done::Halted]);
}
