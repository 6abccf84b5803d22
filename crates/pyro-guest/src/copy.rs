//! Copies files into the machine and out of it.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future};
use pyro_archive::{ArchiveError, Limits, Links, Report, Rules};
use pyro_wire::{
    ArchiveLimits, ArchiveReply, ArchiveReport, Failure, FailureKind, Frame, FrameError, OutputStream, Pack,
    Unpack,
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::blocking::blocking;
use crate::failure::kind_of;
use crate::stream::{CallStream, finish};

/// Sends a file or a directory.
pub(crate) async fn pack<S>(request: Pack, workspace: &Path, mut stream: CallStream<S, Pack>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let source = workspace.join(&request.path);
    let mut chunks = (&mut stream)
        .with(|chunk: Bytes| future::ready(Ok::<_, FrameError>(Frame::Output(OutputStream::Stdout, chunk))));
    let packed = pyro_archive::pack_into(source, limits(request.limits), &mut chunks).await;
    let reply = reply("packing", &request.path, packed);
    finish(stream, reply).await;
}

/// Receives a file or a directory.
pub(crate) async fn unpack<S>(request: Unpack, workspace: &Path, mut stream: CallStream<S, Unpack>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let target = workspace.join(&request.path);
    let mut chunks = (&mut stream).map(|frame| match frame {
        Ok(Frame::Output(OutputStream::Stdout, chunk)) => Ok(chunk),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(io::Error::other(error)),
    });
    let (exact, name) = (request.exact, OsString::from(request.name));
    let place = blocking(move || {
        Ok::<_, Failure>(match exact {
            true => pyro_archive::exact_destination(&target),
            false => pyro_archive::followed_destination(&target, Some(&name)),
        })
    });
    let place = match place.await {
        Ok(place) => place,
        Err(failure) => return finish(stream, ArchiveReply::Failed(failure)).await,
    };
    let unpacked = match place {
        Ok(place) => {
            // Symlinks keep their targets, wherever they lead. Writing over a file leaves its owner and mode as they are.
            let rules = Rules { keeps_owner: true, ..Rules::from(Links::Any) };
            pyro_archive::unpack_from(&mut chunks, place, limits(request.limits), rules).await
        }
        Err(error) => Err(error),
    };
    let reply = reply("unpacking", &request.path, unpacked);
    finish(stream, reply).await;
}

fn limits(limits: ArchiveLimits) -> Limits {
    Limits { max_entries: limits.max_entries, max_bytes: limits.max_bytes }
}

fn reply(action: &str, path: &str, outcome: Result<Report, ArchiveError>) -> ArchiveReply {
    match outcome {
        Ok(report) => {
            let Report { entries, bytes, left_out, examples } = report.named(path);
            ArchiveReply::Archived(ArchiveReport { entries, bytes, left_out, examples })
        }
        Err(error) => ArchiveReply::Failed(failure(format!("{action} {path}"), &error.named(path))),
    }
}

fn failure(step: String, error: &ArchiveError) -> Failure {
    let cause = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let (kind, errno) = match error {
        ArchiveError::Io { source, .. } => (kind_of(source), source.raw_os_error()),
        ArchiveError::NotAnItem { .. }
        | ArchiveError::OfTheKernel { .. }
        | ArchiveError::Unsupported { .. } => (FailureKind::Unsupported, None),
        _ => (FailureKind::Other, None),
    };
    Failure { kind, step, cause, errno }
}
