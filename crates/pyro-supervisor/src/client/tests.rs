//! Requests to supervisors in this process that fall silent, with the clock paused.

use std::cell::Cell;
use std::process::{Child, Command, Stdio};

use tokio::net::UnixListener;
use tokio::task::spawn_local;

use super::*;
use crate::OwnerLock;

/// A supervisor that greets as many clients as `greets` says, keeps their connections open, and reads no request.
struct Silent {
    base: tempfile::TempDir,
    requests: std::rc::Rc<std::cell::RefCell<Vec<ClientEnd>>>,
}

pub(super) type ClientEnd = Framed<UnixStream, FrameCodec<Request, Reply>>;

impl Silent {
    fn greeting(greets: usize) -> Self {
        let base = tempfile::tempdir().unwrap();
        let listener = dir::listen(base.path()).unwrap();
        let requests = std::rc::Rc::<std::cell::RefCell<Vec<_>>>::default();
        let greeted = std::rc::Rc::clone(&requests);
        spawn_local(async move {
            for _ in 0..greets {
                let client = accept(&listener).await;
                greeted.borrow_mut().push(client);
            }
            // The kernel goes on accepting connections for it.
            std::future::pending::<()>().await;
            drop(listener);
        });
        Self { base, requests }
    }

    fn client(&self) -> Client {
        Client::new(self.base.path())
    }
}

pub(super) async fn accept(listener: &UnixListener) -> ClientEnd {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream: Framed<_, FrameCodec<Opening, Opening>> = Framed::new(stream, FrameCodec::default());
    stream.next().await.unwrap().unwrap();
    stream.send(Frame::Control(Opening::Hello(Greeting::own()))).await.unwrap();
    stream.map_codec(|_| FrameCodec::default())
}

/// Starts a process that holds the lock of the VM in `dir` and looks like a supervisor, but does not listen. The name of
/// its script is its first argument, as `supervise` is of a supervisor.
pub(crate) fn holder(dir: &Path, script: &str) -> Child {
    std::fs::write(dir.join("supervise"), script).unwrap();
    let lock = OwnerLock::try_acquire(dir).unwrap().unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg("supervise").current_dir(dir).stdin(Stdio::piped()).stdout(lock.share().unwrap());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn on_paused_clock(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A request that does not fit into the buffer of a socket.
fn large_command() -> Run {
    let exec = Exec::new("true", Duration::from_secs(5));
    let env = [("LARGE".to_owned(), "x".repeat(900_000))].into();
    Run { exec: Exec { env, ..exec }, journal: true }
}

#[test]
fn a_supervisor_that_takes_no_request_is_unresponsive() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(1);
        let began = Instant::now();
        let cancel = CancellationToken::new();
        let ran = supervisor.client().run(large_command(), &cancel, async |_| {}).await;
        assert!(matches!(ran, Err(RunError::NotDelivered(ConnectError::Unresponsive))), "{ran:?}");
        assert!(began.elapsed() <= ANSWER_LIMIT * 2, "{:?}", began.elapsed());
    });
}

#[test]
fn a_request_that_is_not_taken_can_be_cancelled() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(1);
        let cancel = CancellationToken::new();
        let client = supervisor.client();
        let run = client.run(large_command(), &cancel, async |_| {});
        let began = Instant::now();
        let (ran, ()) = tokio::join!(run, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        });
        assert!(matches!(ran, Err(RunError::Cancelled)), "{ran:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    });
}

#[test]
fn a_kill_does_not_wait_for_a_supervisor_that_froze() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(1);
        let began = Instant::now();
        let killed = supervisor.client().kill(1).await;
        assert!(matches!(killed, Err(RunError::Unanswered)), "{killed:?}");
        assert!(began.elapsed() <= PROBE_AFTER + ANSWER_LIMIT * 2, "{:?}", began.elapsed());
    });
}

#[test]
fn a_kill_waits_for_a_supervisor_that_responds_but_not_without_limit() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(usize::MAX);
        let answered = Cell::new(false);
        let answer = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let mut client = supervisor.requests.borrow_mut().remove(0);
            assert_eq!(client.next().await.unwrap().unwrap(), Frame::Control(Request::Kill { sequence: 1 }));
            client.send(Frame::Control(Reply::NotRunning)).await.unwrap();
            answered.set(true);
        };
        let client = supervisor.client();
        let (killed, ()) = tokio::join!(client.kill(1), answer);
        assert!(matches!(killed, Ok(None)) && answered.get(), "{killed:?}");

        let supervisor = Silent::greeting(usize::MAX);
        let killed = supervisor.client().kill(1).await;
        assert!(matches!(killed, Err(RunError::Unanswered)), "{killed:?}");
    });
}

#[test]
fn a_new_lifetime_that_is_not_confirmed_is_an_error_of_its_own() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(1);
        let extended = supervisor.client().extend(1.0).await;
        assert!(matches!(extended, Err(RunError::Unanswered)), "{extended:?}");
    });
}

#[test]
fn a_watch_does_not_wait_for_a_supervisor_that_froze() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(1);
        let began = Instant::now();
        let watched = supervisor.client().watch(1, true, async |_| {}).await;
        assert!(matches!(watched, Err(RunError::NotDelivered(ConnectError::Unresponsive))), "{watched:?}");
        assert!(began.elapsed() <= WATCH_PROBE_AFTER + ANSWER_LIMIT * 2, "{:?}", began.elapsed());
    });
}

#[test]
fn a_watch_waits_without_limit_for_a_supervisor_that_responds() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(usize::MAX);
        let answer = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let mut client = supervisor.requests.borrow_mut().remove(0);
            client.next().await.unwrap().unwrap();
            client.send(Frame::Control(Reply::NotRunning)).await.unwrap();
        };
        let client = supervisor.client();
        let (watched, ()) = tokio::join!(client.watch(1, false, async |_| {}), answer);
        assert!(matches!(watched, Ok(None)), "{watched:?}");
    });
}

/// Its registry makes a supervisor wait, at most 10 seconds for the start of the VM and as long for the command's number.
#[test]
fn a_command_that_waits_for_the_registry_is_not_given_up() {
    on_paused_clock(async {
        let supervisor = Silent::greeting(usize::MAX);
        let refuse = async {
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_secs(21)).await;
                let mut client = supervisor.requests.borrow_mut().remove(0);
                client.next().await.unwrap().unwrap();
                let reply = Reply::Refused { cause: "the registry is locked".to_owned() };
                client.send(Frame::Control(reply)).await.unwrap();
                supervisor.requests.borrow_mut().clear();
            }
        };
        let client = supervisor.client();
        let run = async {
            let exec = Exec::new("true", Duration::from_secs(5));
            let cancel = CancellationToken::new();
            let run = Run { exec: exec.clone(), journal: true };
            let ran = client.run(run, &cancel, async |_| {}).await;
            assert!(matches!(ran, Err(RunError::Refused { .. })), "{ran:?}");
            let detached = client.detach(exec).await;
            assert!(matches!(detached, Err(RunError::Refused { .. })), "{detached:?}");
        };
        tokio::join!(run, refuse);
    });
}
