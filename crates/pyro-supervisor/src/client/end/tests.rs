//! Ends with real processes that hold the lock as supervisors do, as their standard output.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::client::tests::holder;
use crate::files;

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

/// A VM's lock is also held by the process that starts it, with the words of its user among its arguments.
#[tokio::test]
async fn a_holder_with_the_word_supervise_among_its_arguments_is_not_a_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
    let mut caller = Command::new("/bin/sh")
        .args(["-c", "read line", "run", "--", "supervise", "/svc"])
        .stdin(Stdio::piped())
        .stdout(lock.share().unwrap())
        .spawn()
        .unwrap();
    drop(lock);
    assert!(Process::holding(dir.path()).is_none());
    for how in [EndRequest::Delete, EndRequest::Stop] {
        let ended = Client::new(dir.path()).end(how, Duration::from_millis(2500)).await;
        assert!(matches!(ended, Err(EndError::Held)), "{ended:?}");
    }
    assert!(caller.try_wait().unwrap().is_none(), "it lives");
    drop(caller.stdin.take());
    caller.wait().unwrap();
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

/// A process that only checks whether a VM has an owner holds its lock for an instant.
#[tokio::test]
async fn a_passing_look_at_the_lock_is_not_another_owner() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = holder(dir.path(), "read line");
    let mut file = LockFile::open(dir.path()).unwrap();
    let mut looks = 0;
    let try_lock = || match file.try_lock()? {
        Some(_) if looks < 3 => {
            looks += 1;
            Ok(None)
        }
        lock => Ok(lock),
    };
    let client = Client::new(dir.path());
    let deadline = tokio::time::Instant::now() + LIMIT;
    let ended = client.release_by(Some(EndRequest::Stop), deadline, try_lock).await.unwrap();
    assert!(matches!(ended, Ended::Released(Some(_))), "{ended:?}");
    holder.wait().unwrap();
}

#[tokio::test]
async fn a_vm_that_another_process_takes_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = holder(dir.path(), "read line");
    let client = Client::new(dir.path());
    let deadline = tokio::time::Instant::now() + LIMIT;
    let began = Instant::now();
    let ended = client.release_by(Some(EndRequest::Stop), deadline, || Ok(None)).await.unwrap();
    assert!(matches!(ended, Ended::TakenAgain), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    holder.wait().unwrap();
}

/// Lets time pass at once for as long as clients wait for an answer, and then as it does, for signals to take effect.
async fn skip_to(answer_is_overdue: Duration) {
    tokio::time::sleep(answer_is_overdue.saturating_sub(Duration::from_millis(50))).await;
    tokio::time::resume();
}

fn signal_of(mut holder: Child) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&holder.wait().unwrap())
}

fn stop(holder: &Child) {
    let pid = rustix::process::Pid::from_child(holder);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
}

/// Announces the holder as the owner, and stops it.
fn announce_and_stop(holder: &Child, dir: &std::path::Path) {
    let pid = rustix::process::Pid::from_child(holder);
    let started = dir::start_time(pid.as_raw_pid()).unwrap();
    let owner = Owner { pid: pid.as_raw_pid(), started, ..Owner::this(crate::Phase::Running) };
    owner.announce(dir).unwrap();
    stop(holder);
    let stopped = rustix::process::WaitOptions::UNTRACED;
    rustix::process::waitpid(Some(pid), stopped).unwrap().unwrap();
}

#[tokio::test]
async fn a_supervisor_that_was_stopped_is_killed_at_once_when_its_vm_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = dir::listen(dir.path()).unwrap();
    let holder = holder(dir.path(), "read line");
    announce_and_stop(&holder, dir.path());
    let began = Instant::now();
    let ended = Client::new(dir.path()).end(EndRequest::Delete, LIMIT).await;
    assert!(matches!(ended, Ok(Ended::Released(Some(_)))), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(signal_of(holder), Some(9));
}

#[tokio::test]
async fn a_supervisor_that_was_stopped_goes_on_at_once_when_its_vm_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let listener = dir::listen(dir.path()).unwrap();
    let mut holder = holder(dir.path(), "read line");
    announce_and_stop(&holder, dir.path());
    let began = Instant::now();
    let serve = async {
        let mut asked = crate::client::tests::accept(&listener).await;
        assert_eq!(asked.next().await.unwrap().unwrap(), Frame::Control(Request::Stop));
        drop(holder.stdin.take());
        holder
    };
    let client = Client::new(dir.path());
    let (ended, holder) = tokio::join!(client.end(EndRequest::Stop, LIMIT), serve);
    assert!(matches!(ended, Ok(Ended::Released(Some(_)))), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(signal_of(holder), None, "it exited");
}

/// The kernel accepts connections for a process that is stopped. This one has not announced itself.
#[tokio::test(start_paused = true)]
async fn a_stopped_supervisor_goes_on_to_end_its_vm_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = dir::listen(dir.path()).unwrap();
    let holder = holder(dir.path(), "read line");
    stop(&holder);
    let client = Client::new(dir.path());
    let (ended, ()) =
        tokio::join!(client.end(EndRequest::Stop, LIMIT), skip_to(ANSWER_LIMIT + CONTINUE_LIMIT));
    assert!(matches!(ended, Ok(Ended::Released(Some(_)))), "{ended:?}");
    assert_eq!(signal_of(holder), Some(15), "it was continued, and did not respond even then");
}

/// It records the reason of its end, which a signal would not say.
#[tokio::test]
async fn a_stopped_supervisor_that_goes_on_is_asked_and_not_terminated() {
    for how in [EndRequest::Stop, EndRequest::Expire] {
        tokio::time::pause();
        let dir = tempfile::tempdir().unwrap();
        let listener = dir::listen(dir.path()).unwrap();
        let mut holder = holder(dir.path(), "read line");
        stop(&holder);
        let client = Client::new(dir.path());
        let serve = async {
            skip_to(ANSWER_LIMIT).await;
            // The connection that is given up because it was stopped.
            let _given_up = listener.accept().await.unwrap();
            let mut asked = crate::client::tests::accept(&listener).await;
            assert_eq!(asked.next().await.unwrap().unwrap(), Frame::Control(how.into()));
            drop(holder.stdin.take());
            holder
        };
        let (ended, holder) = tokio::join!(client.end(how, LIMIT), serve);
        assert!(matches!(ended, Ok(Ended::Released(Some(_)))), "{ended:?}");
        assert_eq!(signal_of(holder), None, "it exited");
    }
}

/// Stands for one that is frozen by other means than a signal.
#[tokio::test]
async fn a_supervisor_that_ignores_signals_is_killed_before_the_limit_of_a_stop() {
    for how in [EndRequest::Stop, EndRequest::Expire] {
        tokio::time::pause();
        let dir = tempfile::tempdir().unwrap();
        let _listener = dir::listen(dir.path()).unwrap();
        let mut holder = holder(dir.path(), "trap '' TERM; echo ready >&2; read line");
        let mut ready = [0];
        std::io::Read::read_exact(holder.stderr.as_mut().unwrap(), &mut ready).unwrap();
        let client = Client::new(dir.path());
        let patience = ANSWER_LIMIT + Duration::from_secs(10);
        let (ended, ()) = tokio::join!(client.end(how, patience + KILL_RESERVE), skip_to(patience));
        assert!(matches!(ended, Ok(Ended::Killed(_))), "{ended:?}");
        assert_eq!(signal_of(holder), Some(9));
    }
}

/// It has answered the greeting, so it could be asked.
#[tokio::test]
async fn a_supervisor_that_froze_after_its_greeting_is_taken_over() {
    for (how, signal) in [(EndRequest::Delete, 9), (EndRequest::Stop, 15)] {
        tokio::time::pause();
        let dir = tempfile::tempdir().unwrap();
        let listener = dir::listen(dir.path()).unwrap();
        let holder = holder(dir.path(), "read line");
        let client = Client::new(dir.path());
        let greet = async {
            let _greeted = crate::client::tests::accept(&listener).await;
            let overdue = PROBE_AFTER + ANSWER_LIMIT;
            skip_to(if how == EndRequest::Delete { overdue } else { overdue + CONTINUE_LIMIT }).await;
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = client.end(how, LIMIT) => ended,
            () = greet => unreachable!(),
        };
        assert!(matches!(ended, Ok(Ended::Released(Some(_)))), "{ended:?}");
        assert_eq!(signal_of(holder), Some(signal));
    }
}
