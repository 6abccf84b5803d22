//! Directories of the host: the kernel's FUSE messages pass between `/dev/fuse` and the host.

mod device;
mod place;
mod relay;
mod table;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, Stream, StreamExt};
use pyro_wire::{Failure, FailureKind, Frame, FrameError, Mount, MountInput, MountReply};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::io::{AsyncRead, AsyncWrite};

use self::device::Device;
use self::place::Attached;
use self::relay::End;
use self::table::Mounted;
pub(crate) use self::table::Mounts;
use crate::blocking::blocking;
use crate::failure::{During, failed, refused};
use crate::proc::Proc;
use crate::stream::{CallStream, finish};

/// The kernel's device for file systems in user space.
const DEVICE: &str = "/dev/fuse";
/// How the mount is listed in the guest.
const KIND: &str = "fuse.pyro";
/// Time limit for writing everything out before a directory is unmounted.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Mounts a directory and passes its messages on until it is unmounted or the host is lost. Processes that use it after that get
/// errors. A directory whose host is lost stays mounted until the host asks or the machine halts: what is written to its path must
/// not land on the guest's own disk.
pub(crate) async fn serve<S>(
    request: Mount,
    mounts: &Mounts,
    proc: Option<Arc<Proc>>,
    stream: CallStream<S, Mount>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(proc) = proc else {
        let failure = refused(format!("mounting on {}", request.path), "this is not a virtual machine");
        return finish(stream, MountReply::Failed(failure)).await;
    };
    let path = PathBuf::from(&request.path);
    mounts.end_left(&path).await;
    let mounted = match mounts.add(&path) {
        Some(mounted) => mounted,
        None => {
            let step = format!("mounting on {}", request.path);
            let failure = refused(step, "a directory of the host is mounted there already");
            return finish(stream, MountReply::Failed(failure)).await;
        }
    };
    match mount_at_its_place(request, &mounted, path, proc).await {
        Ok((device, attached)) => pass_on(device, &mounted, attached, stream).await,
        Err(failure) => finish(stream, MountReply::Failed(failure)).await,
    }
}

async fn mount_at_its_place(
    request: Mount,
    mounted: &Mounted,
    path: PathBuf,
    proc: Arc<Proc>,
) -> Result<(Device, Attached), Failure> {
    let step = format!("mounting on {}", request.path);
    let place = blocking(move || place::find(&path)).await?;
    mounted.occupy(&place).await.map_err(|other| {
        let cause = "mounts cannot be nested: a directory of the host is mounted on";
        refused(step, format!("{cause} {}", other.display()))
    })?;
    blocking(move || mount_on(&request, place, proc)).await
}

async fn pass_on<S>(device: Device, mounted: &Mounted, attached: Attached, mut stream: CallStream<S, Mount>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if stream.send(Frame::Control(MountReply::Mounted)).await.is_err() {
        drop(device);
        return detach(attached).await;
    }
    let mut not_written = None;
    let end = {
        let (to_host, mut from_host) = (&mut stream).split();
        // Messages pass while everything is written out.
        let end = tokio::select! {
            end = relay::run(&device, to_host, &mut from_host, || mounted.want_end()) => end,
            written = write_out_at_end(mounted, &attached) => {
                not_written = written.err();
                End::Asked
            }
        };
        // What is still in flight fails from here on, so nothing below waits for the host.
        drop(device);
        match end {
            End::Asked | End::Unmounted => end,
            End::Lost | End::Failed(_) => {
                eprintln!("pyro-guest: {attached} is lost: {end}");
                until_unmounted(mounted, from_host).await
            }
            End::Closed => {
                mounted.leave().await;
                end
            }
        }
    };
    detach(attached).await;
    if !matches!(end, End::Closed) {
        finish(stream, MountReply::Unmounted { not_written }).await;
    }
}

/// Unmounts a directory whose device is closed.
async fn detach(attached: Attached) {
    let unmounted = blocking(move || attached.detach().during(format!("unmounting {attached}")));
    if let Err(failure) = unmounted.await {
        eprintln!("pyro-guest: {failure}");
    }
}

/// Waits until the directory is to be unmounted, and writes everything out as far as the host takes it in time.
async fn write_out_at_end(mounted: &Mounted, attached: &Attached) -> Result<(), Failure> {
    mounted.end_wanted().await;
    let (step, writing) = (format!("writing {attached} out"), attached.clone());
    let too_slow = || {
        let cause = format!("the host did not take it within {} seconds", FLUSH_LIMIT.as_secs());
        Err(refused(&*step, cause))
    };
    tokio::select! {
        written = blocking(move || writing.write_out().during(format!("writing {writing} out"))) => written,
        () = tokio::time::sleep(FLUSH_LIMIT) => too_slow(),
        () = mounted.cut_off() => too_slow(),
    }
}

/// Waits until a lost directory is to be unmounted.
async fn until_unmounted(
    mounted: &Mounted,
    mut from_host: impl Stream<Item = Result<Frame<MountInput>, FrameError>> + Unpin,
) -> End {
    let asked = async {
        loop {
            match from_host.next().await {
                Some(Ok(Frame::Control(MountInput::Unmount))) => return End::Asked,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    mounted.leave().await;
                    return End::Closed;
                }
            }
        }
    };
    tokio::select! {
        end = asked => end,
        () = mounted.end_wanted() => End::Asked,
    }
}

fn mount_on(request: &Mount, place: PathBuf, proc: Arc<Proc>) -> Result<(Device, Attached), Failure> {
    let device = File::options().read(true).write(true).open(DEVICE).map_err(|error| {
        let failure = failed(format!("opening {DEVICE}"), error);
        match failure.kind {
            FailureKind::FileNotFound => {
                refused("mounting a directory of the host", "the kernel of this environment has no FUSE")
            }
            _ => failure,
        }
    })?;
    fs::create_dir_all(&place).during(format!("creating {}", request.path))?;
    let access = if request.writable { MountFlags::empty() } else { MountFlags::RDONLY };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME | access;
    let options = options(device.as_raw_fd());
    mount("pyro", &place, KIND, flags, options.as_c_str()).during(format!("mounting on {}", request.path))?;
    let prepared = Device::new(device).during("preparing the channel of a directory").and_then(|device| {
        Ok((device, Attached::at(proc, place.clone()).during("looking for a mounted directory")?))
    });
    prepared.inspect_err(|_| {
        let _ = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    })
}

/// Every user of the guest may use the directory. The host's server decides what is done.
fn options(device: i32) -> std::ffi::CString {
    let text = format!("fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=131072");
    std::ffi::CString::new(text).unwrap_or_default()
}
