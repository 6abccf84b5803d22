//! Ends with real processes that hold the lock as supervisors do, as their standard output.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::files;

/// Starts a process that holds the lock of the VM in `dir` and looks like a supervisor, but does not listen.
fn holder(dir: &Path, script: &str) -> Child {
    let lock = OwnerLock::try_acquire(dir).unwrap().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", "supervise"]).stdin(Stdio::piped()).stdout(lock.share().unwrap());
    command.spawn().unwrap()
}

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_supervisor_without_a_socket_is_taken_over_by_its_descriptor() {
    for (how, signal) in [(EndRequest::Stop, 15), (EndRequest::Delete, 9)] {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = holder(dir.path(), "read line");
        let began = Instant::now();
        let ended = Client::new(dir.path()).end(how, LIMIT).await.unwrap();
        assert!(matches!(ended, Ended::Released(Some(_))), "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let status = holder.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal));
    }
}

/// Its id may have been reused by a process that has nothing to do with the VM.
#[tokio::test]
async fn a_process_that_does_not_hold_the_lock_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut bystander = holder(other.path(), "read line");
    let _lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let pid = i32::try_from(bystander.id()).unwrap();
    let owner = Owner { pid, started: dir::start_time(pid).unwrap(), ..Owner::this(crate::Phase::Running) };
    owner.announce(dir.path()).unwrap();
    let ended = Client::new(dir.path()).end(EndRequest::Delete, Duration::from_secs(3)).await;
    assert!(matches!(ended, Err(EndError::Held)), "{ended:?}");
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn the_release_of_a_lock_is_seen_without_a_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path());
    assert!(client.released(LIMIT).await.unwrap().is_some(), "nobody holds it");
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    assert!(matches!(client.released(Duration::from_millis(300)).await, Err(EndError::Held)));
    let began = Instant::now();
    let (released, ()) = tokio::join!(client.released(LIMIT), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(lock);
    });
    assert!(released.unwrap().is_some());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let gone = Client::new(dir.path().join("none"));
    assert!(gone.released(LIMIT).await.unwrap().is_none());
    assert!(!dir.path().join(files::CONTROL_SOCKET).exists());
}

#[tokio::test]
async fn many_waits_take_no_threads() {
    let dir = tempfile::tempdir().unwrap();
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let client = Client::new(dir.path());
    let waits = (0..50).map(|_| client.released(Duration::from_millis(400)));
    let during = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        threads()
    };
    let (waited, during) = tokio::join!(futures::future::join_all(waits), during);
    assert!(waited.iter().all(Result::is_err));
    assert!(during <= before + 2, "{before} threads became {during}");
    drop(lock);
}

/// A closed lock file wakes those who wait for the lock. What they do themselves must not.
#[tokio::test]
async fn a_wait_does_not_wake_itself_or_others() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let client = Client::new(dir.path());
    let attempts = std::cell::Cell::new(0);
    let wait = async || {
        let mut file = LockFile::open(dir.path()).unwrap();
        let try_lock = || {
            attempts.set(attempts.get() + 1);
            file.try_lock()
        };
        client.release_by(None, (Instant::now() + Duration::from_millis(800)).into(), try_lock).await
    };
    let (one, other) = tokio::join!(wait(), wait());
    assert!(matches!((one, other), (Err(EndError::Held), Err(EndError::Held))));
    // Each tries after 1, 2, 4, ... 128 milliseconds, and then four times a second.
    assert!(attempts.get() < 40, "{} attempts", attempts.get());
}

#[tokio::test]
async fn the_lock_of_a_removed_file_is_not_taken_for_that_of_the_vm() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = LockFile::open(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join(files::OWNER_LOCK)).unwrap();
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    assert!(file.try_lock().unwrap().is_none());
    drop(lock);
    let lock = file.try_lock().unwrap().unwrap();
    assert!(OwnerLock::is_held(dir.path()));
    std::fs::remove_dir_all(dir.path()).unwrap();
    drop(lock);
    assert_eq!(file.try_lock().unwrap_err().kind(), io::ErrorKind::NotFound);
}
