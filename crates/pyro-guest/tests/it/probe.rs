//! Questions about servers.

use futures::StreamExt;
use pyro_wire::{Frame, Probe, ProbeReply};
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
        assert_eq!(answer(&host, Probe { port }).await, ProbeReply::Ready);
        drop(listener);
        let ProbeReply::NotReady(failure) = answer(&host, Probe { port }).await else { panic!() };
        assert_eq!(failure.step, format!("connecting to port {port}"));
    }
}
