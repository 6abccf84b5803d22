//! Published ports. Their clients use real sockets, so the clock is not paused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::fake::{Conditions, Fact, SERVED_PORT, Supervised};
use super::races::{ask, started};
use crate::protocol::{Event, Reply, Request};
use crate::{BootFailure, BootStage, PortMapping, PublishError, PublishedPort, RunError};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn any(guest_port: u16) -> PortMapping {
    PortMapping { host: (Ipv4Addr::LOCALHOST, 0).into(), guest_port }
}

/// Has the server of the guest send something back.
async fn exchange(address: SocketAddr) -> io::Result<()> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"hello").await?;
    client.shutdown().await?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await?;
    assert_eq!(answer, b"hello");
    Ok(())
}

fn refused(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_published_port_leads_to_the_guest_until_it_is_closed() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let first = client.publish(any(SERVED_PORT)).await.unwrap();
        let six = PortMapping { host: (Ipv6Addr::LOCALHOST, 0).into(), guest_port: SERVED_PORT };
        let second = client.publish(six).await.unwrap();
        assert!(first.bound.port() != 0 && second.bound.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST));
        for _ in 0..3 {
            exchange(first.bound).await.unwrap();
            exchange(second.bound).await.unwrap();
        }
        assert!(supervised.world.has(&Fact::PortsRecorded(vec![first, second])));
        let mut open = TcpStream::connect(first.bound).await.unwrap();
        open.write_all(b"x").await.unwrap();
        open.read_exact(&mut [0]).await.unwrap();
        assert!(client.unpublish(first.bound.port()).await.unwrap());
        assert!(matches!(open.read(&mut [0]).await, Ok(0) | Err(_)), "its connections end");
        assert!(refused(first.bound));
        assert!(!client.unpublish(first.bound.port()).await.unwrap());
        assert!(supervised.world.has(&Fact::PortsRecorded(vec![second])));
        exchange(second.bound).await.unwrap();
    });
}

#[test]
fn one_of_two_ports_with_the_same_number_is_closed() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let first = client.publish(any(SERVED_PORT)).await.unwrap();
        let host = (Ipv4Addr::new(127, 0, 0, 2), first.bound.port()).into();
        let second = client.publish(PortMapping { host, guest_port: SERVED_PORT }).await.unwrap();
        assert!(client.unpublish_address(second.bound).await.unwrap());
        assert!(refused(second.bound) && !client.unpublish_address(second.bound).await.unwrap());
        exchange(first.bound).await.unwrap();
        assert!(supervised.world.has(&Fact::PortsRecorded(vec![first])));
    });
}

#[test]
fn a_server_that_is_not_there_resets_the_client() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let published = supervised.client().publish(any(81)).await.unwrap();
        let mut client = TcpStream::connect(published.bound).await.unwrap();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn ports_of_the_start_are_open_with_the_guest_and_gone_with_the_vm() {
    run(async {
        let supervised =
            Supervised::start(Conditions { ports: vec![any(SERVED_PORT)], ..Conditions::task() });
        let booted = |fact: &Fact| match fact {
            Fact::Notified(Event::Booted(info)) => info.ports.first().copied(),
            _ => None,
        };
        super::races::until(&supervised, |fact| booted(fact).is_some()).await;
        let published = supervised.world.facts.borrow().iter().find_map(booted).unwrap();
        exchange(published.bound).await.unwrap();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(refused(published.bound));
    });
}

#[test]
fn a_vm_whose_port_is_in_use_does_not_start() {
    run(async {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap();
        let ports = vec![PortMapping { host, guest_port: SERVED_PORT }];
        let mut supervised = Supervised::start(Conditions { ports, ..Conditions::task() });
        supervised.ended().await;
        let facts = supervised.world.facts.borrow();
        let failure = facts.iter().find_map(|fact| match fact {
            Fact::Notified(Event::Failed(failure)) => Some(failure.clone()),
            _ => None,
        });
        let cause = format!("cannot publish on {host}: the port is in use");
        assert_eq!(failure, Some(BootFailure::at(BootStage::Ports, cause)));
        assert!(!facts.contains(&Fact::MachineUp));
    });
}

#[test]
fn a_port_that_cannot_be_published_is_refused_with_the_reason() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let cause = async |host: SocketAddr| match client.publish(PortMapping { host, guest_port: 80 }).await
        {
            Err(
                PublishError::CannotListen { cause } | PublishError::Request(RunError::Refused { cause }),
            ) => cause,
            other => panic!("{other:?}"),
        };
        let taken = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _taken = StdListener::bind(taken).unwrap();
        assert_eq!(cause(taken).await, format!("cannot publish on {taken}: the port is in use"));
        let foreign = "192.0.2.1:0".parse().unwrap();
        assert_eq!(
            cause(foreign).await,
            "cannot publish on 192.0.2.1:0: the address is not one of this host"
        );
        for _ in 0..32 {
            client.publish(any(80)).await.unwrap();
        }
        assert_eq!(cause(any(80).host).await, "too many published ports: the maximum is 32");
    });
}

#[test]
fn a_port_that_cannot_be_recorded_is_closed_again() {
    run(async {
        let supervised = started(Conditions { begins_are_refused: true, ..Conditions::task() }).await;
        let free = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mapping = PortMapping { host: free, guest_port: SERVED_PORT };
        let refusal = supervised.client().publish(mapping).await.unwrap_err();
        assert!(matches!(&refusal, PublishError::NotRecorded { cause } if cause == "the disk is full"));
        assert!(refused(free));
    });
}

/// Clients beyond the maximum wait, and commands are not affected.
#[test]
fn more_clients_than_the_maximum_wait_for_others_to_end() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        let PublishedPort { bound, .. } = client.publish(any(SERVED_PORT)).await.unwrap();
        let other = client.publish(any(SERVED_PORT)).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..64 {
            let mut client = TcpStream::connect(bound).await.unwrap();
            client.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
            open.push(client);
        }
        let mut late = TcpStream::connect(bound).await.unwrap();
        late.write_all(b"x").await.unwrap();
        // One that came later, to a port with fewer clients, is served in the meantime.
        exchange(other.bound).await.unwrap();
        let nothing = late.try_read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "it waits");
        open.pop();
        late.read_exact(&mut [0]).await.unwrap();
    });
}
