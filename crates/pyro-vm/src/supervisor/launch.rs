//! The VMM process: started with its descriptors, followed on its console, and watched while work goes on.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::LocalSet;

use crate::console::Console;
use crate::process;
use crate::vmm::LaunchPlan;

/// Time within which a VMM whose guest channel has closed is seen to end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A VMM process that was just started. Dropping it kills the process.
pub(super) struct VmmProcess {
    pub(super) child: Child,
    pub(super) console: Console,
}

/// Our ends of the connections to a VMM.
pub(super) struct Connections {
    pub(super) channel: UnixStream,
    pub(super) control: Option<UnixStream>,
}

/// Starts the VMM.
pub(super) fn launch(
    plan: &LaunchPlan,
    needs_control: bool,
    network: Option<OwnedFd>,
    serial_log: &Path,
    tasks: &LocalSet,
) -> Result<(VmmProcess, Connections), String> {
    let console = File::create(serial_log)
        .map(Console::new)
        .map_err(|error| format!("cannot make {}: {error}", serial_log.display()))?;
    let pair = || pair().map_err(|error| format!("cannot make a socket pair: {error}"));
    let (channel, vmm_channel) = pair()?;
    let mut inherited = vec![(vmm_channel, LaunchPlan::CHANNEL_FD)];
    inherited.extend(network.map(|fd| (fd, LaunchPlan::NETWORK_FD)));
    let mut control = None;
    if needs_control {
        let (ours, theirs) = pair()?;
        inherited.push((theirs, LaunchPlan::CONTROL_FD));
        control = Some(ours);
    }
    let mut command = Command::new(&plan.program);
    command
        .args(&plan.args)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    process::bind_to_parent(&mut command, inherited);
    process::shield_from_group_signals(&mut command);
    if !plan.huge_pages {
        process::forgo_huge_pages(&mut command);
    }
    // The command, gone at the end of this function, holds our copies of the VMM's ends, which must close for
    // its death to be seen.
    let mut child =
        command.spawn().map_err(|error| format!("cannot run {}: {error}", plan.program.display()))?;
    if let Some(stdout) = child.stdout.take() {
        tasks.spawn_local(console.follow(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        tasks.spawn_local(console.follow(stderr));
    }
    Ok((VmmProcess { child, console }, Connections { channel, control }))
}

fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into_std()?.into()))
}

impl VmmProcess {
    /// Does `work`, which needs a living VMM. If the VMM ends, that is the reason it failed.
    pub(super) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let failure = tokio::select! {
            done = work => match done {
                Ok(value) => return Ok(value),
                Err(cause) => cause,
            },
            status = self.child.wait() => return Err(ended(status)),
        };
        // A connection closes when the VMM dies, which may be seen first; its status says more.
        match tokio::time::timeout(END_LIMIT, self.child.wait()).await {
            Ok(status) => Err(format!("{}: {failure}", ended(status))),
            Err(_) => Err(failure),
        }
    }
}

fn ended(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("the VMM ended: {status}"),
        Err(error) => format!("the VMM was lost: {error}"),
    }
}
