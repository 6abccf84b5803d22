//! Answers whether a server is there.

use pyro_wire::{Probe, ProbeReply};

use crate::connect;
use crate::failure::failed;

/// Looks once.
pub(crate) async fn answer(Probe { port }: Probe) -> ProbeReply {
    match connect::connect(port).await {
        Ok(_) => ProbeReply::Ready,
        Err(error) => ProbeReply::NotReady(failed(format!("connecting to port {port}"), error)),
    }
}
