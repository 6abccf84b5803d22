//! Messages between the kernel and the host.

use std::io;

use bytes::Bytes;
use futures::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use pyro_wire::{Frame, FrameError, FuseMessages, MountInput, MountReply, OutputStream};

use super::device::Device;

/// Why messages do not pass any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it is to be unmounted")]
    Asked,
    #[error("it is not mounted any more")]
    Unmounted,
    #[error("the host answers no more messages")]
    Lost,
    #[error("the host closed the stream")]
    Closed,
    /// The kernel or the host does not follow the protocol.
    #[error(transparent)]
    Failed(io::Error),
}

/// Passes messages on, both ways, until one side ends that. The host may want the directory unmounted meanwhile: then `asked` is
/// called.
pub(super) async fn run(
    device: &Device,
    mut to_host: impl Sink<Frame<MountReply>, Error = FrameError> + Unpin,
    mut from_host: impl Stream<Item = Result<Frame<MountInput>, FrameError>> + Unpin,
    asked: impl Fn(),
) -> End {
    let up = async {
        let mut buffer = Device::buffer();
        loop {
            let mut next = Some(device.read(&mut buffer).await);
            while let Some(read) = next {
                let message = match read {
                    Ok(Some(message)) => message,
                    Ok(None) => return End::Unmounted,
                    Err(error) => return End::Failed(error),
                };
                for frame in FuseMessages::frames(message) {
                    if to_host.feed(Frame::Output(OutputStream::Stdout, frame)).await.is_err() {
                        return End::Closed;
                    }
                }
                // Those that wait already are sent with it.
                next = device.read(&mut buffer).now_or_never();
            }
            if to_host.flush().await.is_err() {
                return End::Closed;
            }
        }
    };
    let down = async {
        let mut messages = FuseMessages::default();
        loop {
            let frame: Bytes = match from_host.next().await {
                Some(Ok(Frame::Output(OutputStream::Stdout, frame))) => frame,
                Some(Ok(Frame::Control(MountInput::Unmount))) => {
                    asked();
                    continue;
                }
                Some(Ok(Frame::Control(MountInput::Lost))) => return End::Lost,
                Some(Ok(Frame::Output(OutputStream::Stderr, _))) => {
                    return End::Failed(io::ErrorKind::InvalidData.into());
                }
                Some(Err(_)) | None => return End::Closed,
            };
            let given = match messages.add(frame) {
                Ok(Some(message)) => device.write(&message).await,
                Ok(None) => Ok(()),
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = given {
                return End::Failed(error);
            }
        }
    };
    tokio::select! {
        end = up => end,
        end = down => end,
    }
}
