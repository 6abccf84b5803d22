//! Starts and claims whose supervisors fall silent.

use std::os::unix::process::ExitStatusExt;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::time::Instant;

use super::*;
use crate::client::tests::{accept, holder};
use crate::server::tests::spec as fake_spec;
use crate::{Client, Retention};

fn spec(dir: &Path) -> LaunchSpec {
    LaunchSpec {
        retention: Retention::Caller,
        is_new: true,
        expires_at: 0.0,
        boot_limit_seconds: 7,
        ..fake_spec(dir.to_owned())
    }
}

/// A signal takes its time, whatever the clock of the test says.
async fn assert_released(dir: &Path) {
    tokio::time::resume();
    Client::new(dir).released(Duration::from_secs(20)).await.unwrap();
}

/// Stands for a supervisor that freezes during the boot: it takes the lifeline and says nothing.
#[tokio::test(start_paused = true)]
async fn a_supervisor_that_freezes_during_the_boot_is_killed_after_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let began = Instant::now();
    let args = ["-c", "trap '' TERM; exec sleep 1000"].map(OsStr::new);
    let started = start(Path::new("/bin/sh"), &args, spec(dir.path()), &lock, async |_| {}).await;
    assert!(matches!(started, Err(StartError::Unresponsive)), "{started:?}");
    let limit = Duration::from_secs(7) + REPORT_LIMIT;
    assert!(began.elapsed() >= limit && began.elapsed() < limit + EXIT_LIMIT * 3, "{:?}", began.elapsed());
    drop(lock);
    assert_released(dir.path()).await;
}

#[tokio::test(start_paused = true)]
async fn a_template_is_not_awaited_without_limit_either() {
    let dir = tempfile::tempdir().unwrap();
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let args = ["-c", "exec sleep 1000"].map(OsStr::new);
    let made = make_template(Path::new("/bin/sh"), &args, spec(dir.path()), &lock, async |_| {}).await;
    assert!(matches!(made, Err(StartError::Unresponsive)), "{made:?}");
    drop(lock);
    assert_released(dir.path()).await;
}

/// Grants one claim, takes over the lock, and says nothing more.
async fn grant(listener: UnixListener) {
    let mut claimer = accept(&listener).await;
    claimer.next().await.unwrap().unwrap();
    claimer.send(Frame::Control(Reply::Done)).await.unwrap();
    let mut stream = claimer.into_inner();
    let _lock = handover::receive(&stream).await.unwrap();
    // Until the claimer hangs up.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_spare_that_freezes_after_the_handover_is_not_awaited_without_limit() {
    let (spare, vm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lock = OwnerLock::try_acquire(vm.path()).unwrap().unwrap();
    let listener = vm_dir::listen(spare.path()).unwrap();
    let began = Instant::now();
    let (claimed, ()) = tokio::join!(claim(spare.path(), spec(vm.path()), &lock), grant(listener));
    assert!(matches!(claimed, Some(Err(StartError::Unresponsive))), "{claimed:?}");
    assert_eq!(began.elapsed().as_secs(), (CLAIM_LIMIT + REPORT_LIMIT).as_secs());
}

#[tokio::test]
async fn a_frozen_spare_costs_one_start_a_second_and_is_killed() {
    let (spare, vm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut supervisor = holder(spare.path(), "read line");
    let _listener = vm_dir::listen(spare.path()).unwrap();
    let lock = OwnerLock::try_acquire(vm.path()).unwrap().unwrap();
    assert!(claim(spare.path(), spec(vm.path()), &lock).await.is_none());
    assert_eq!(supervisor.wait().unwrap().signal(), Some(9));
}

/// A spare that grants a claim closes its socket, and with it every connection that it has not accepted. It lives on.
#[tokio::test(start_paused = true)]
async fn the_loser_of_a_claim_does_not_wait_and_kills_nothing() {
    let (spare, vm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut supervisor = holder(spare.path(), "read line");
    let listener = vm_dir::listen(spare.path()).unwrap();
    let lock = OwnerLock::try_acquire(vm.path()).unwrap().unwrap();
    let began = Instant::now();
    let (claimed, ()) = tokio::join!(biased; claim(spare.path(), spec(vm.path()), &lock), async {
        tokio::task::yield_now().await;
        drop(listener);
    });
    assert!(claimed.is_none(), "{claimed:?}");
    assert!(began.elapsed() < SPARE_LIMIT, "{:?}", began.elapsed());
    assert!(!kill_silent_spare(spare.path()).await, "it accepts no connection");
    assert!(supervisor.try_wait().unwrap().is_none(), "it goes on");
    drop(supervisor.stdin.take());
    supervisor.wait().unwrap();
}

/// Where the process of a test is to stand for a frozen spare.
const FROZEN_SPARE: &str = "PYRO_TEST_FROZEN_SPARE";

/// Does nothing, unless the test below has started it as another process.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test is configured by its environment")]
async fn a_frozen_spare_as_another_process() {
    let Some(dir) = std::env::var_os(FROZEN_SPARE) else { return };
    let mut claimer = accept(&vm_dir::listen(Path::new(&dir)).unwrap()).await;
    claimer.next().await.unwrap().unwrap();
    claimer.send(Frame::Control(Reply::Done)).await.unwrap();
    // Blocks this process until its parent is gone.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

/// Otherwise it takes over the VM, which another supervisor may run by then, when it goes on.
#[tokio::test]
async fn a_spare_that_freezes_before_the_handover_is_killed() {
    let (spare, vm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lock = OwnerLock::try_acquire(vm.path()).unwrap().unwrap();
    // The first argument makes it a supervisor. As the name of a test it has no meaning.
    let args = ["supervise", "--exact", "client::start::tests::a_frozen_spare_as_another_process"];
    let mut frozen = std::process::Command::new(std::env::current_exe().unwrap())
        .args(args)
        .env(FROZEN_SPARE, spare.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let granted = timeout(Duration::from_secs(60), async {
        loop {
            // It may not listen yet.
            if let Some(granted) = request_claim(spare.path(), spec(vm.path())).await {
                return granted;
            }
            tokio::task::yield_now().await;
        }
    });
    let stream = granted.await.unwrap().into_inner();
    handover::send(&stream, &lock).await.unwrap();
    let lifeline = Lifeline { supervisor: None, stream: Framed::new(stream, FrameCodec::default()) };
    tokio::time::pause();
    let booted = lifeline.booted(CLAIM_LIMIT, async |_| {}).await;
    assert!(matches!(booted, Err(StartError::Unresponsive)), "{booted:?}");
    tokio::time::resume();
    assert_eq!(frozen.wait().unwrap().signal(), Some(9));
    drop(lock);
    assert!(!OwnerLock::is_held(vm.path()), "the lock in its socket is gone with it");
}
