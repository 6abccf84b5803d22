//! Mounted directories. Their servers are on real sockets, so the clock is not paused.

use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::task::{LocalSet, spawn_blocking};

use super::fake::{Conditions, Fact, Supervised, fuse_message, packets};
use super::races::{ask, started};
use crate::protocol::{Event, Request};
use crate::{BootFailure, BootStage, MountError, MountPoint, RunError};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn point(guest: &str) -> MountPoint {
    MountPoint { host: "/src".into(), guest: guest.to_owned(), writable: true, owner: 0 }
}

/// The next message for a server; `None` when the directory is not mounted any more.
async fn next(server: &OwnedFd) -> Option<Vec<u8>> {
    let server = server.try_clone().unwrap();
    let received = spawn_blocking(move || {
        let mut message = vec![0; 1000];
        let (_, length) = recv(&server, &mut message[..], RecvFlags::empty()).unwrap();
        message.truncate(length);
        (length > 0).then_some(message)
    });
    received.await.unwrap()
}

#[test]
fn messages_pass_until_a_directory_is_unmounted() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let (server, socket) = packets().unwrap();
        client.mount(point("/mnt"), socket).await.unwrap();
        assert!(supervised.world.has(&Fact::MountsRecorded(vec!["/mnt".to_owned()])));
        assert_eq!(next(&server).await.unwrap(), fuse_message());
        send(&server, &fuse_message(), SendFlags::NOSIGNAL).unwrap();

        let (_second, socket) = packets().unwrap();
        let taken = client.mount(point("/mnt"), socket).await;
        assert!(matches!(taken, Err(MountError::Request(RunError::Refused { .. }))), "{taken:?}");
        assert!(!client.unmount("/other").await.unwrap());
        let (unmounted, ended) = tokio::join!(client.unmount("/mnt"), async {
            let ended = next(&server).await;
            drop(server);
            ended
        });
        assert!(unmounted.unwrap() && ended.is_none());
        assert!(supervised.world.has(&Fact::MountsRecorded(Vec::new())));
    });
}

#[test]
fn directories_of_the_start_are_mounted_before_the_vm_is_up_and_end_with_it() {
    run(async {
        let mounts = vec![point("/a"), point("/b")];
        let mut supervised = Supervised::start(Conditions { mounts, ..Conditions::task() });
        let server = supervised.servers.remove(0);
        assert_eq!(next(&server).await.unwrap(), fuse_message());
        assert!(!supervised.world.has(&Fact::StartRecorded));
        super::races::until(&supervised, |fact| matches!(fact, Fact::Notified(Event::Booted(_)))).await;
        let (_, ended) = tokio::join!(ask(&supervised, Request::Delete), async {
            let ended = next(&server).await;
            drop(server);
            ended
        });
        assert!(ended.is_none());
    });
}

#[test]
fn a_directory_that_the_guest_cannot_mount_is_a_failed_start() {
    run(async {
        let mounts = vec![point("/busy")];
        let mut supervised = Supervised::start(Conditions { mounts, ..Conditions::task() });
        supervised.ended().await;
        let facts = supervised.world.facts.borrow();
        let failure = facts.iter().find_map(|fact| match fact {
            Fact::Notified(Event::Failed(failure)) => Some(failure.clone()),
            _ => None,
        });
        let cause = "cannot mount /busy: mounting on /busy: it is busy".to_owned();
        assert_eq!(failure, Some(BootFailure::at(BootStage::Mounts, cause)));
        assert!(!facts.contains(&Fact::StartRecorded));
    });
}

#[test]
fn a_server_that_sends_what_is_no_message_loses_its_directory_and_nothing_else() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let (server, socket) = packets().unwrap();
        client.mount(point("/mnt"), socket).await.unwrap();
        next(&server).await.unwrap();
        // The guest's end checks messages again; here they only have to fit.
        send(&server, &vec![0; 150_000], SendFlags::NOSIGNAL).unwrap();
        assert!(next(&server).await.is_none());
        drop(server);
        assert!(client.unmount("/mnt").await.unwrap(), "it stays mounted until then");
        let (server, socket) = packets().unwrap();
        client.mount(point("/mnt"), socket).await.unwrap();
        assert_eq!(next(&server).await.unwrap(), fuse_message(), "it can be mounted again");
    });
}

#[test]
fn a_change_that_cannot_be_recorded_mounts_nothing() {
    run(async {
        let conditions = Conditions { begins_are_refused: true, ..Conditions::task() };
        let supervised = started(conditions).await;
        let (server, socket) = packets().unwrap();
        let client = supervised.client();
        let mounted = tokio::join!(client.mount(point("/mnt"), socket), async {
            next(&server).await.unwrap();
            assert!(next(&server).await.is_none());
            drop(server);
        });
        assert!(matches!(mounted.0, Err(MountError::NotRecorded { .. })), "{mounted:?}");
    });
}

#[test]
fn what_the_guest_could_not_write_out_is_reported_after_the_directory_is_unmounted() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let (_server, socket) = packets().unwrap();
        client.mount(point("/full"), socket).await.unwrap();
        let unmounted = client.unmount("/full").await;
        let Err(MountError::Request(RunError::Refused { cause })) = unmounted else {
            panic!("{unmounted:?}")
        };
        assert!(cause.contains("may be missing on this host") && cause.contains("no space left"), "{cause}");
        assert!(!client.unmount("/full").await.unwrap(), "it is unmounted all the same");
        assert!(supervised.world.has(&Fact::MountsRecorded(Vec::new())));
    });
}

#[test]
fn a_directory_whose_server_has_ended_stays_mounted_until_it_is_unmounted() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let (server, socket) = packets().unwrap();
        client.mount(point("/lost"), socket).await.unwrap();
        assert!(next(&server).await.is_some());
        drop(server);
        let (_second, socket) = packets().unwrap();
        let taken = client.mount(point("/lost"), socket).await;
        assert!(matches!(taken, Err(MountError::Request(RunError::Refused { .. }))), "{taken:?}");
        super::races::until(&supervised, |fact| {
            *fact == Fact::MountsRecorded(vec!["/lost (lost)".to_owned()])
        })
        .await;
        assert!(client.unmount("/lost").await.unwrap());
        let (_third, socket) = packets().unwrap();
        client.mount(point("/lost"), socket).await.unwrap();
    });
}

#[test]
fn what_the_guest_had_not_written_when_it_was_stopped_is_recorded() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let mut servers = Vec::new();
        for (guest, writable) in [("/mnt", true), ("/full", true), ("/lost", true), ("/read", false)] {
            let (server, socket) = packets().unwrap();
            client.mount(MountPoint { writable, ..point(guest) }, socket).await.unwrap();
            servers.push(server);
        }
        // Those of `/lost` and `/read`, which is read-only, end, and the others read until theirs is unmounted.
        for lost in ["/read (lost)", "/lost (lost)"] {
            assert!(next(&servers.pop().unwrap()).await.is_some());
            super::races::until(
                &supervised,
                |fact| matches!(fact, Fact::MountsRecorded(mounts) if mounts.contains(&lost.to_owned())),
            )
            .await;
        }
        let serving = servers.into_iter().map(|server| async move { while next(&server).await.is_some() {} });
        tokio::join!(ask(&supervised, Request::Stop), futures::future::join_all(serving));
        let loss = supervised.world.loss.borrow().clone().unwrap();
        let expected = "what the guest wrote to /full last may be missing on this host: writing it out: no space left on device\n\
                        what the guest wrote to /lost last may be missing on this host: the server of the directory has ended";
        assert_eq!(loss, expected);
    });
}

#[test]
fn a_directory_is_not_mounted_in_another_one() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let (_server, socket) = packets().unwrap();
        client.mount(point("/mnt/a"), socket).await.unwrap();
        for guest in ["/mnt", "/mnt/a/b"] {
            let (_other, socket) = packets().unwrap();
            let Err(MountError::Request(RunError::Refused { cause })) =
                client.mount(point(guest), socket).await
            else {
                panic!("{guest} is mounted")
            };
            assert_eq!(cause, "mounts cannot be nested: a directory is mounted on /mnt/a");
        }
        let (_other, socket) = packets().unwrap();
        client.mount(point("/mnt/ab"), socket).await.unwrap();
    });
}
