//! Files in and out of the machine.

use std::error::Error;
use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future};
use pyro_archive::{ArchiveError, Limits, Links, Report};
use pyro_wire::{
    ArchiveLimits, ArchiveReport, ExecFailure, Frame, FrameError, OutputStream, Pack, Reply, Unpack,
    WORKSPACE,
};

use crate::agent::HostStream;
use crate::exec;

/// Sends a file or a directory.
pub(crate) async fn pack(request: Pack, mut stream: HostStream) {
    let source = Path::new(WORKSPACE).join(&request.path);
    let mut chunks = (&mut stream)
        .with(|chunk: Bytes| future::ready(Ok::<_, FrameError>(Frame::Output(OutputStream::Stdout, chunk))));
    let packed = pyro_archive::pack_into(source, limits(request.limits), &mut chunks).await;
    let reply = reply("packing", &request.path, packed);
    exec::finish(stream, reply).await;
}

/// Takes a file or a directory.
pub(crate) async fn unpack(request: Unpack, mut stream: HostStream) {
    let target = Path::new(WORKSPACE).join(&request.path);
    let mut chunks = (&mut stream).map(|frame| match frame {
        Ok(Frame::Output(OutputStream::Stdout, chunk)) => Ok(chunk),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(io::Error::other(error)),
    });
    let place = match request.exact {
        true => pyro_archive::exact_destination(&target),
        false => pyro_archive::destination(&target, Some(request.name.as_ref())),
    };
    let unpacked = match place {
        // Links of the host's files lead where they led there.
        Ok(place) => pyro_archive::unpack_from(&mut chunks, place, limits(request.limits), Links::Any).await,
        Err(error) => Err(error),
    };
    let reply = reply("unpacking", &request.path, unpacked);
    exec::finish(stream, reply).await;
}

fn limits(limits: ArchiveLimits) -> Limits {
    Limits { max_entries: limits.max_entries, max_bytes: limits.max_bytes }
}

fn reply(doing: &str, path: &str, done: Result<Report, ArchiveError>) -> Reply {
    match done {
        Ok(Report { entries, bytes, left_out, examples }) => {
            Reply::Archived(ArchiveReport { entries, bytes, left_out, examples })
        }
        Err(error) => {
            let cause = match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            Reply::NotStarted(ExecFailure { step: format!("{doing} {path}"), errno: 0, cause })
        }
    }
}
