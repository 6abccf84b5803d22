//! The pool with supervisors that are scripts, and with spares that are fakes in this process.

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use futures::{SinkExt, StreamExt};
use pyro_machine::fake;
use pyro_supervisor::{Purpose, Retention};
use pyro_wire::{Frame, FrameCodec};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::codec::Framed;

use super::*;

const KIND: &str = "kind";

/// A state directory and a supervisor that does nothing until this is dropped.
struct Host {
    base: TempDir,
    /// The supervisors end when this is unlocked.
    until: File,
}

impl Host {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let script = base.path().join("script");
        let text = "#!/bin/sh\necho \"$@\" >> \"$0.log\"\nflock --shared \"$0.until\" true\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let until = File::create(base.path().join("script.until")).unwrap();
        until.lock().unwrap();
        Self { base, until }
    }

    fn pool(&self) -> Pool {
        Pool::new(self.base.path())
    }

    fn supervisor(&self) -> SupervisorCommand {
        SupervisorCommand { program: self.base.path().join("script"), base_dir: self.base.path().to_owned() }
    }

    async fn fill(&self, kind: &str, of_kind: u32, of_all: u32) -> Result<(), PoolError> {
        let target = Target { of_kind, of_all, idle: Duration::from_secs(300) };
        let places = self.pool().reserve(kind, target, &CancellationToken::new()).await?;
        super::fill(places, &self.supervisor(), &model(), target.idle).await
    }

    fn count(&self, kind: &str) -> usize {
        subdirectories(&self.pool().dir.join(kind)).len()
    }
}

fn model() -> LaunchSpec {
    LaunchSpec {
        vm_id: String::new(),
        dir: PathBuf::new(),
        retention: Retention::Caller,
        is_new: false,
        in_use_lock: None,
        expires_at: 0.0,
        boot_limit_seconds: 1,
        vmm: pyro_machine::Vmm::Qemu,
        pace: pyro_supervisor::Pace::USUAL,
        reports_stages: false,
        machine: fake::machine_config(),
        guest: fake::guest_image(),
        artifacts_are_open: false,
        template_dir: None,
        purpose: Purpose::Vm,
        requires_full_confinement: false,
        ports: Vec::new(),
        mounts: Vec::new(),
        mount_sockets: Default::default(),
        variables: Vec::new(),
        network: false,
        network_policy: Default::default(),
        host_settings: Default::default(),
    }
}

#[tokio::test]
async fn what_is_missing_is_started_with_the_command_that_was_given() {
    let host = Host::new();
    host.fill(KIND, 2, 9).await.unwrap();
    assert_eq!(host.count(KIND), 2);
    assert!(host.pool().all().iter().all(|spare| OwnerLock::is_held(spare)), "they have supervisors");
    host.fill(KIND, 2, 9).await.unwrap();
    assert_eq!(host.count(KIND), 2, "none is missing");
    host.fill(KIND, 3, 9).await.unwrap();
    assert_eq!(host.count(KIND), 3);
    let Host { base, until } = host;
    drop(until);
    for spare in Pool::new(base.path()).all() {
        Client::new(spare).released(Duration::from_secs(30)).await.unwrap();
    }
    let expected = format!("supervise {}\n", base.path().display()).repeat(3);
    assert_eq!(fs::read_to_string(base.path().join("script.log")).unwrap(), expected);
}

#[tokio::test]
async fn the_capacity_holds_for_spares_of_all_kinds_together() {
    let host = Host::new();
    host.fill(KIND, 2, 3).await.unwrap();
    host.fill("another", 2, 3).await.unwrap();
    assert_eq!((host.count(KIND), host.count("another")), (2, 1));
    host.fill("third", 1, 0).await.unwrap();
    assert_eq!(host.count("third"), 0);
}

#[tokio::test]
async fn engines_that_fill_the_pool_at_once_do_not_overfill_it() {
    let host = Host::new();
    let (a, b, c, d) = tokio::join!(
        host.fill(KIND, 2, 9),
        host.fill(KIND, 3, 9),
        host.fill(KIND, 2, 9),
        host.fill("another", 1, 9)
    );
    for filled in [a, b, c, d] {
        filled.unwrap();
    }
    // Nobody's target is lost because another one was counting.
    assert_eq!((host.count(KIND), host.count("another")), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_while_it_counts_does_not_keep_others() {
    let host = Host::new();
    make_dir(&host.pool().dir).unwrap();
    let _counting = host.pool().try_lock().unwrap().unwrap();
    let begun = Instant::now();
    let error = host.fill(KIND, 1, 9).await.unwrap_err();
    assert!(matches!(error, PoolError::Locked), "{error:?}");
    assert!(begun.elapsed() < COUNT_LIMIT * 2, "{:?}", begun.elapsed());
    // Nor does a run that has its result.
    let (stop_waiting, target) =
        (CancellationToken::new(), Target { of_kind: 1, of_all: 9, idle: COUNT_LIMIT });
    let (pool, begun) = (host.pool(), Instant::now());
    let (reserved, ()) =
        tokio::join!(pool.reserve(KIND, target, &stop_waiting), async { stop_waiting.cancel() });
    assert!(matches!(reserved, Err(PoolError::Locked)), "{reserved:?}");
    assert!(begun.elapsed() < COUNT_LIMIT, "{:?}", begun.elapsed());
    // A start does not wait for it either.
    host.pool().trim(0).await;
}

#[tokio::test]
async fn a_spare_that_cannot_be_started_leaves_nothing() {
    let host = Host::new();
    let supervisor = SupervisorCommand { program: "/nonexistent".into(), ..host.supervisor() };
    let target = Target { of_kind: 2, of_all: 9, idle: Duration::from_secs(1) };
    let places = host.pool().reserve(KIND, target, &CancellationToken::new()).await.unwrap();
    let error = super::fill(places, &supervisor, &model(), target.idle).await.unwrap_err();
    assert!(matches!(error, PoolError::Start(StartError::Spawn(_))), "{error:?}");
    assert_eq!(host.count(KIND), 0);
}

#[tokio::test]
async fn what_dead_spares_left_does_not_count() {
    let host = Host::new();
    let dead = host.pool().dir.join(KIND).join("dead");
    make_dir(&dead).unwrap();
    host.fill(KIND, 1, 1).await.unwrap();
    assert!(!dead.exists());
    assert_eq!(host.count(KIND), 1);
}

/// A spare in this process that was made some seconds ago.
fn spare(pool: &Pool, name: &str, age: u64) -> (PathBuf, OwnerLock) {
    let dir = pool.dir.join(KIND).join(name);
    make_dir(&dir).unwrap();
    let lock = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let made = SystemTime::now() - Duration::from_secs(age);
    File::open(&dir).unwrap().set_modified(made).unwrap();
    (dir, lock)
}

/// Has a spare wait for a client, and end when it is asked to.
fn serve((dir, lock): (PathBuf, OwnerLock)) -> JoinHandle<()> {
    let made = fs::metadata(&dir).unwrap().modified().unwrap();
    let listener = UnixListener::bind(dir.join(files::CONTROL_SOCKET)).unwrap();
    File::open(&dir).unwrap().set_modified(made).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut client: Framed<_, FrameCodec<Value, Value>> = Framed::new(stream, FrameCodec::default());
        assert_eq!(client.next().await.unwrap().unwrap(), Frame::Control(json!("delete")));
        fs::remove_dir_all(&dir).unwrap();
        drop(lock);
        client.send(Frame::Control(json!("done"))).await.unwrap();
    })
}

#[tokio::test]
async fn the_oldest_spare_that_can_be_ended_is_ended() {
    let host = Host::new();
    let pool = host.pool();
    // It is booting, or being claimed.
    let (busy, busy_lock) = spare(&pool, "busy", 30);
    let old = spare(&pool, "old", 20);
    let new = spare(&pool, "new", 10);
    let (old_dir, new_dir) = (old.0.clone(), new.0.clone());
    let (old, new) = (serve(old), serve(new));
    pool.trim(2).await;
    old.await.unwrap();
    assert_eq!([busy.exists(), old_dir.exists(), new_dir.exists()], [true, false, true]);
    pool.trim(0).await;
    new.await.unwrap();
    assert_eq!([busy.exists(), new_dir.exists()], [true, false]);
    assert!(OwnerLock::is_held(&busy));
    drop(busy_lock);
    pool.trim(0).await;
    assert!(!busy.exists(), "it is cleared away once no process holds it");
}

/// The kernel accepts connections for a process that is frozen.
#[tokio::test(start_paused = true)]
async fn frozen_spares_are_renewed_in_the_time_of_one() {
    let host = Host::new();
    let pool = host.pool();
    let frozen: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            let (dir, lock) = spare(&pool, name, 10);
            (UnixListener::bind(dir.join(files::CONTROL_SOCKET)).unwrap(), lock)
        })
        .into();
    let begun = Instant::now();
    pool.renew(Duration::from_secs(300)).await;
    assert!(begun.elapsed() < RENEW_LIMIT * 2, "{:?}", begun.elapsed());
    drop(frozen);
}
