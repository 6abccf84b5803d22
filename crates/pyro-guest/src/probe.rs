//! Answers whether a server or a file is there.

use std::io;
use std::path::Path;

use pyro_wire::{Probe, ProbeReply};

use crate::connect;
use crate::failure::{failed, refused};

/// Looks once. A file on a file system that does not respond holds only this answer up.
pub(crate) async fn answer(probe: Probe, workspace: &Path) -> ProbeReply {
    match look(probe, workspace).await {
        Ok(()) => ProbeReply::Ready,
        Err(failure) => ProbeReply::NotReady(failure),
    }
}

async fn look(probe: Probe, workspace: &Path) -> Result<(), pyro_wire::Failure> {
    match probe {
        Probe::Port(port) => {
            let connected = connect::connect(port).await;
            connected.map(drop).map_err(|error| failed(format!("connecting to port {port}"), error))
        }
        Probe::File(path) => {
            let step = "looking for the file";
            let path = workspace.join(path);
            let looked = tokio::task::spawn_blocking(move || path.try_exists()).await;
            match looked.map_err(io::Error::from).flatten() {
                Ok(true) => Ok(()),
                Ok(false) => Err(refused(step, "it does not exist")),
                Err(error) => Err(failed(step, error)),
            }
        }
    }
}
