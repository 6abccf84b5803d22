//! Questions about what a service needs to be ready.

use futures::StreamExt;
use pyro_wire::{FailureKind, Frame, Probe, ProbeReply};
use tokio::net::TcpListener;

use crate::host::Host;

async fn answer(host: &Host, probe: Probe) -> ProbeReply {
    match host.call(probe).await.next().await {
        Some(Ok(Frame::Control(reply))) => reply,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_port_is_there_while_a_server_accepts_connections() {
    let host = Host::new();
    for address in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(answer(&host, Probe::Port(port)).await, ProbeReply::Ready);
        drop(listener);
        let ProbeReply::NotReady(failure) = answer(&host, Probe::Port(port)).await else { panic!() };
        assert_eq!(failure.step, format!("connecting to port {port}"));
    }
}

#[tokio::test]
async fn a_file_is_looked_for_below_the_workspace() {
    let host = Host::new();
    let missing = answer(&host, Probe::File("ready".to_owned())).await;
    assert!(matches!(&missing, ProbeReply::NotReady(failure) if failure.cause == "it does not exist"));
    let absolute = tempfile::NamedTempFile::new().unwrap();
    let path = absolute.path().to_str().unwrap().to_owned();
    assert_eq!(answer(&host, Probe::File(path.clone())).await, ProbeReply::Ready);
    // What cannot be looked into is not ready, and says why.
    let ProbeReply::NotReady(failure) = answer(&host, Probe::File(format!("{path}/below"))).await else {
        panic!()
    };
    assert_eq!(failure.kind, FailureKind::NotADirectory);
}
