use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use futures::{SinkExt, StreamExt};
use pyro_api::operations::*;
use pyro_supervisor::{CopyError, Owner, Phase, Report};
use pyro_wire::{Frame, FrameCodec};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::codec::Framed;

use super::*;
use crate::limits::Sizing;
use crate::registry::{NewCommand, VmPatch};
use crate::{CallContext, Config};
use crate::{Outcome, TaskChanges, TaskFilter, TtlFrom};

pub(super) fn engine(root: &Path) -> Engine {
    Engine::new(Config::new(root.join("state"), root.join("cache"), root.join("pyro")))
}

/// Answers as supervisors did that know no generations: it closes a connection whose first frame it does not understand.
async fn serve_as_an_older_version(listener: UnixListener) {
    while let Ok((mut client, _)) = listener.accept().await {
        let _ = client.read(&mut [0; 64]).await;
    }
}

/// Records a task that is running. Returns its directory too.
pub(super) async fn started_task(engine: &Engine) -> (VmId, PathBuf) {
    let (id, dir) = created(engine, Kind::Task).await;
    let started = id.clone();
    engine.registry(move |registry| registry.set_started(&started, &VmPatch::default())).await.unwrap();
    (id, dir)
}

/// Records a VM or a task that was never started. Returns its directory too.
pub(super) async fn created(engine: &Engine, kind: Kind) -> (VmId, PathBuf) {
    let id = VmId::parse("0123456789ab").unwrap();
    let task = NewVm {
        vm_id: id.clone(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at: now(),
        kind,
        ephemeral: false,
        disk_mib: None,
        network: None,
        mounts: Vec::new(),
        ports: Vec::new(),
        host_choice: Default::default(),
        host_access: crate::HostAccess::Denied,
        metadata: BTreeMap::new(),
        naming: Default::default(),
        ttl_from: Default::default(),
        owner: None,
    };
    engine.registry(move |registry| registry.insert(&task, 4)).await.unwrap();
    let dir = engine.vm_dir(&id);
    fs::create_dir_all(&dir).unwrap();
    (id, dir)
}

/// Accepts a command of a task, which has not ended.
async fn running_command(engine: &Engine, id: &VmId) -> u64 {
    let (id, new) = (
        id.clone(),
        NewCommand {
            command: "sleep 1000".to_owned(),
            cwd: WORKSPACE.to_owned(),
            execution_mode: ExecutionMode::GuestVsock,
            accepted_at: now(),
        },
    );
    engine.registry(move |registry| registry.accept_command(&id, &new)).await.unwrap()
}

#[tokio::test]
async fn a_lifetime_that_the_supervisor_cannot_extend_stays_as_recorded() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();
    let serving = tokio::spawn(serve_as_an_older_version(listener));

    let before = engine.status_task(id.as_str()).await.unwrap();
    let error = engine.extend_task(id.as_str(), 3600).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotDelivered, "{error}");
    let after = engine.status_task(id.as_str()).await.unwrap();
    assert_eq!((after.expires_at, after.ttl_seconds), (before.expires_at, before.ttl_seconds));
    serving.abort();
}

/// A supervisor that has lost its socket still ends the task at the old time; one that is exiting does not.
#[tokio::test]
async fn a_lifetime_is_extended_without_a_supervisor_only_if_none_holds_the_task() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let before = engine.status_task(id.as_str()).await.unwrap();
    let error = engine.extend_task(id.as_str(), 3600).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotDelivered, "{error}");
    let after = engine.status_task(id.as_str()).await.unwrap();
    assert_eq!((after.expires_at, after.ttl_seconds), (before.expires_at, before.ttl_seconds));

    let (extended, ()) = tokio::join!(engine.extend_task(id.as_str(), 3600), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(owner);
    });
    assert_eq!(extended.unwrap().ttl_seconds, 3600);
}

/// Serves one request to extend the lifetime, and returns the new end.
async fn serve_extension(listener: &UnixListener) -> f64 {
    let (stream, _) = listener.accept().await.unwrap();
    let mut client: Framed<_, FrameCodec<Value, Value>> = Framed::new(stream, FrameCodec::default());
    let hello = client.next().await.unwrap().unwrap();
    client.send(hello).await.unwrap();
    let Frame::Control(request) = client.next().await.unwrap().unwrap() else { panic!() };
    client.send(Frame::Control(json!("done"))).await.unwrap();
    request["extend"]["expires_at"].as_f64().unwrap()
}

/// The start has read the old end of the lifetime, and is recorded after the task was seen as stopped.
#[tokio::test]
async fn a_task_that_is_started_while_it_is_extended_gets_its_new_lifetime() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let running = engine.get(Kind::Task, &id).await.unwrap();
    let seen = VmRecord { state: VmState::Stopped, ..running };
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();
    let (extended, end) = tokio::join!(engine.extend_seen(&seen, 3600), serve_extension(&listener));
    extended.unwrap();
    let recorded = engine.get(Kind::Task, &id).await.unwrap();
    assert_eq!((recorded.expires_at, recorded.sizing.ttl_seconds), (end, 3600));

    // One that cannot be reached keeps its end, and the record does too.
    drop(listener);
    let error = engine.extend_seen(&VmRecord { state: VmState::Stopped, ..recorded }, 60).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotDelivered, "{error}");
    let recorded = engine.get(Kind::Task, &id).await.unwrap();
    assert_eq!((recorded.expires_at, recorded.sizing.ttl_seconds), (end, 3600));
}

/// A start in between would be recorded as vanished, or run with the old lifetime.
#[tokio::test]
async fn no_process_can_start_an_expired_task_while_it_is_extended() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    engine.renew(&id, 60, 1.0).await.unwrap();
    // Another process writes to the registry.
    let writer = rusqlite::Connection::open(root.path().join("state/state.sqlite3")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let extending = {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::spawn(async move { engine.extend_task(id.as_str(), 3600).await })
    };
    let is_held_on = async {
        while !OwnerLock::is_held(&dir) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        OwnerLock::is_held(&dir)
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), is_held_on).await, Ok(true));
    writer.execute_batch("ROLLBACK").unwrap();
    assert_eq!(extending.await.unwrap().unwrap().ttl_seconds, 3600);
    assert!(!OwnerLock::is_held(&dir));
}

/// It goes on, so waiting for its end would only delay the answer, and report another cause.
#[tokio::test]
async fn a_supervisor_of_another_version_is_not_awaited_for_the_end_of_a_command() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let sequence = running_command(&engine, &id).await;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();
    let serving = tokio::spawn(serve_as_an_older_version(listener));

    let (began, never) = (std::time::Instant::now(), CancellationToken::new());
    let (events, id) = (Events::none(), id.as_str());
    let (killed, waited, followed) = tokio::join!(
        engine.kill_task(id, sequence),
        engine.wait_task(id, sequence, &never),
        engine.follow_task(id, sequence, &events, &never),
    );
    for error in [killed.unwrap_err(), waited.unwrap_err(), followed.unwrap_err()] {
        assert_eq!(
            (error.kind, &error.hints[..]),
            (ErrorKind::NotDelivered, &[Hint::StopAndStart][..]),
            "{error}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    serving.abort();
}

/// The kernel accepts connections for a process that is frozen.
#[tokio::test(start_paused = true)]
async fn a_frozen_supervisor_is_named_as_the_cause_and_not_awaited() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let sequence = running_command(&engine, &id).await;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let _listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();

    let began = tokio::time::Instant::now();
    let error = engine.kill_task(id.as_str(), sequence).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(error.to_string().contains("does not respond"), "{error}");
}

/// Starts a process that holds the lock of the task in `dir` and looks like a supervisor, but takes no signal except
/// SIGKILL.
fn frozen_supervisor(dir: &Path) -> Child {
    let lock = fs::File::create(dir.join(vm_files::OWNER_LOCK)).unwrap();
    lock.lock().unwrap();
    // The name of the script is the first argument, as of a supervisor.
    fs::write(dir.join("supervise"), "trap '' TERM; echo ready >&2; read line").unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg("supervise").current_dir(dir);
    command.stdin(Stdio::piped()).stdout(lock).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut [0]).unwrap();
    child
}

#[tokio::test(start_paused = true)]
async fn a_stop_kills_a_supervisor_that_does_not_respond_and_records_it() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let sequence = running_command(&engine, &id).await;
    let mut supervisor = frozen_supervisor(&dir);
    let _listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();

    let real_time = async {
        // From here on a signal takes its time.
        tokio::time::sleep(Duration::from_millis(46_900)).await;
        tokio::time::resume();
    };
    let (stopped, ()) = tokio::join!(engine.stop_task(id.as_str()), real_time);
    let stopped = stopped.unwrap();
    assert_eq!((stopped.state, stopped.stop_reason), (VmState::Stopped, Some(StopReason::ExplicitStop)));
    assert!(stopped.last_error.unwrap().contains("did not respond and was killed"));
    let entry = engine.entry(&id, sequence).await.unwrap();
    assert_eq!(entry.outcome, crate::Outcome::Unknown);
    assert!(!supervisor.wait().unwrap().success());
}

/// What holds a task is called a task.
#[tokio::test(start_paused = true)]
async fn the_error_for_a_held_task_names_a_task() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let error = engine.stop_task(id.as_str()).await.unwrap_err();
    assert_eq!(error.message, format!("task {id} is held by a process that does not react"));
}

#[tokio::test]
async fn waits_for_a_command_on_the_host_end_soon_after_it_and_take_no_threads() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let id = VmId::parse("0123456789ab").unwrap();
    let commands = engine.vm_dir(&id).join(vm_files::COMMANDS);
    fs::create_dir_all(&commands).unwrap();
    let lock = commands.join("000001.lock");
    let holder = fs::File::create(&lock).unwrap();
    holder.lock().unwrap();

    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let mut waits = JoinSet::new();
    for _ in 0..20 {
        let (engine, id) = (engine.clone(), id.clone());
        waits.spawn(async move { engine.await_on_host(&id, 1).await });
    }
    let end = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let during = threads();
        // As the process does that ran it.
        fs::remove_file(&lock).unwrap();
        drop(holder);
        (during, std::time::Instant::now())
    };
    let (waited, (during, ended)) = tokio::join!(waits.join_all(), end);
    assert!(waited.iter().all(Result::is_ok), "{waited:?}");
    assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
    assert!(during <= before + 1, "{before} threads became {during}");
}

/// It was stopped between the sequence of a command and its lock.
#[tokio::test(start_paused = true)]
async fn a_process_that_stops_while_its_command_begins_is_not_awaited_without_limit() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = created(&engine, Kind::Task).await;
    let (started, patch) =
        (id.clone(), VmPatch { execution_mode: Some(ExecutionMode::HostCompat), ..VmPatch::default() });
    engine.registry(move |registry| registry.set_started(&started, &patch)).await.unwrap();
    let new = NewCommand {
        command: "true".to_owned(),
        cwd: WORKSPACE.to_owned(),
        execution_mode: ExecutionMode::HostCompat,
        accepted_at: now(),
    };
    let task = id.clone();
    engine.registry(move |registry| registry.accept_command(&task, &new)).await.unwrap();
    let commands = dir.join(vm_files::COMMANDS);
    fs::create_dir_all(&commands).unwrap();
    let holder = fs::File::create(commands.join("beginning.lock")).unwrap();
    holder.lock().unwrap();

    let (began, never, task_id) = (tokio::time::Instant::now(), CancellationToken::new(), id.as_str());
    let request = || crate::operations::ExecTask {
        task: task_id.into(),
        command: crate::Command::new("true"),
        lasting: crate::Lasting::default(),
        output: crate::CommandOutput::default(),
    };
    let events = Events::none();
    let errors = [
        engine.stop_task(task_id).await.unwrap_err(),
        engine.delete_task(task_id).await.unwrap_err(),
        engine.logs_task(task_id, None).await.unwrap_err(),
        engine.wait_task(task_id, 1, &never).await.unwrap_err(),
        engine.exec_task(request(), &CallContext::new(events.clone(), never.clone())).await.unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(error.kind, ErrorKind::WrongState, "{error}");
        assert!(matches!(&error.hints[..], [Hint::FindHolder { .. }]), "{error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let error =
        engine.exec_task(request(), &CallContext::new(events.clone(), cancelled.clone())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");

    drop(holder);
    assert_eq!(engine.logs_task(task_id, None).await.unwrap().entries[0].outcome, crate::Outcome::Unknown);
    engine.stop_task(task_id).await.unwrap();
}

/// Announces this process as the supervisor of the VM in `dir`.
fn announce(dir: &Path, phase: Phase) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let owner = Owner {
        pid: i32::try_from(std::process::id()).unwrap(),
        started: fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap(),
        version: "2.1.0".to_owned(),
        generation: pyro_supervisor::GENERATION,
        phase,
    };
    fs::write(dir.join(vm_files::OWNER), serde_json::to_vec(&owner).unwrap()).unwrap();
}

#[tokio::test]
async fn a_transition_in_progress_shows_in_the_status_of_vms_and_tasks() {
    for kind in [Kind::Vm, Kind::Task] {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let (id, dir) = created(&engine, kind).await;
        let transition = async || {
            let metadata = match kind {
                Kind::Vm => engine.status_vm(id.as_str()).await.unwrap().metadata,
                Kind::Task => engine.status_task(id.as_str()).await.unwrap().metadata,
            };
            metadata.get("transition").cloned()
        };
        let owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
        assert_eq!(transition().await, None);
        announce(&dir, Phase::Starting);
        assert_eq!(transition().await.as_deref(), Some("starting"));
        let started = id.clone();
        engine.registry(move |registry| registry.set_started(&started, &VmPatch::default())).await.unwrap();
        assert_eq!(transition().await, None);
        announce(&dir, Phase::Stopping);
        assert_eq!(transition().await.as_deref(), Some("stopping"));
        drop(owner);
        assert_eq!(transition().await, None, "a lock that is not held says nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_cancels_does_not_wait_for_the_reason_of_a_loss() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let (began, cancel) = (tokio::time::Instant::now(), CancellationToken::new());
    let unknown = Error::outcome_unknown(Kind::Task, id.as_str());
    let (error, ()) = tokio::join!(engine.explain_loss(Kind::Task, &id, unknown.clone(), &cancel), async {
        cancel.cancel()
    },);
    assert_eq!(error, unknown);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// The journal of a busy task lacks its beginning, and every reader sees how much is missing.
#[tokio::test]
async fn a_journal_that_dropped_commands_says_how_many() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    let other = rusqlite::Connection::open(crate::state_dir::registry(&engine.config().base_dir)).unwrap();
    for sequence in 21..=1020 {
        let sql = "INSERT INTO commands (task_id, sequence, command, cwd, execution_mode, accepted_at, outcome, exit_code, \
                   duration_ms) VALUES (?1, ?2, 'true', '/', 'guest_vsock', 1.0, 'exited', 0, 1)";
        other.execute(sql, rusqlite::params![id.as_str(), sequence]).unwrap();
    }
    let logs = engine.logs_task(id.as_str(), None).await.unwrap();
    assert_eq!((logs.count, logs.dropped, logs.entries[0].sequence), (1000, 20, 21));
    assert_eq!(engine.status_task(id.as_str()).await.unwrap().command_count, 1020);
    let page = async |after| {
        let entries = crate::operations::LogsTask {
            task: id.as_str().into(),
            entries: pyro_api::Entries { sequence: None, after },
        };
        let engine: &dyn pyro_api::Contract = &engine;
        engine.logs_task(entries, &crate::CallContext::default()).await.unwrap()
    };
    let first = page(0).await;
    assert_eq!((first.logs.count, first.logs.dropped, first.next_after), (1000, 20, None));
    let rest = page(1015).await;
    assert_eq!((rest.logs.count, rest.logs.dropped, rest.next_after), (5, 20, None));
    let error = engine.logs_task(id.as_str(), Some(7)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(
        error.message,
        format!("the journal of task '{id}' no longer has command 7: it keeps the latest ones")
    );
}

/// Records that a task ran in a guest. Returns its id and the path of its disk.
async fn ran_in_guest(engine: &Engine) -> (VmId, PathBuf) {
    let (id, dir) = created(engine, Kind::Task).await;
    let started = id.clone();
    let patch = VmPatch { execution_mode: Some(ExecutionMode::GuestVsock), ..VmPatch::default() };
    engine.registry(move |registry| registry.set_started(&started, &patch)).await.unwrap();
    (id, dir.join(vm_files::LAYER))
}

/// A missing disk must not become an empty one.
#[tokio::test]
async fn a_task_whose_disk_is_gone_is_not_started_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, layer) = ran_in_guest(&engine).await;
    engine.stop_task(id.as_str()).await.unwrap();
    let record = engine.get(Kind::Task, &id).await.unwrap();
    let disk_state = async || engine.status_task(id.as_str()).await.unwrap().disk_state;

    assert_eq!(disk_state().await, Some(DiskState::Missing));
    let error = engine.check_disk(&record).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::StateUnusable);
    assert_eq!(error.message, format!("the disk of task {id} is missing: {}", layer.display()));

    fs::write(&layer, [0; 4096]).unwrap();
    assert_eq!(disk_state().await, Some(DiskState::Damaged));
    let error = engine.check_disk(&record).await.unwrap_err();
    assert_eq!(error.message, format!("the disk of task {id} is damaged: {}", layer.display()));

    #[expect(clippy::disallowed_methods, reason = "tests use the host's programs")]
    let search_path = std::env::var_os("PATH").unwrap();
    let templates = disk::LayerTemplates::new(root.path().join("layers"), search_path);
    let whole = templates.of_size(512, disk::LayerLifetime::ManyStarts).unwrap();
    fs::remove_file(&layer).unwrap();
    disk::instantiate(&whole.into(), &layer).unwrap();
    assert_eq!(disk_state().await, Some(DiskState::Ok));
    engine.check_disk(&record).await.unwrap();
}

#[tokio::test]
async fn a_task_that_never_ran_in_a_guest_has_no_disk_to_miss() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = created(&engine, Kind::Task).await;
    assert_eq!(engine.status_task(id.as_str()).await.unwrap().disk_state, None);
    engine.check_disk(&engine.get(Kind::Task, &id).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn every_operation_takes_a_name_or_the_first_digits_of_an_id() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    let changes = TaskChanges { name: Some("build".to_owned()), ..TaskChanges::default() };
    assert_eq!(engine.update_task("0123", changes).await.unwrap().name.as_deref(), Some("build"));
    running_command(&engine, &id).await;
    assert_eq!(engine.status_task("build").await.unwrap().task_id, id);
    assert_eq!(engine.logs_task("build", Some(1)).await.unwrap().task_id, id);
    assert_eq!(engine.logged_commands("012").await.unwrap(), [1]);
    assert_eq!(engine.stop_task("build").await.unwrap().task_id, id);
    assert_eq!(
        engine.wait_task("build", 1, &CancellationToken::new()).await.unwrap().outcome,
        Outcome::Unknown
    );
    assert_eq!(engine.kill_task("build", 1).await.unwrap().outcome, Outcome::Unknown);
    assert_eq!(engine.extend_task("build", 60).await.unwrap().ttl_seconds, 60);
    let error = engine.status_task("01").await.unwrap_err();
    assert_eq!(error.to_string(), "task '01' does not exist");
    assert_eq!(engine.delete_task("build").await.unwrap().task_id, id);
}

#[tokio::test]
async fn a_list_has_the_tasks_with_the_labels_that_are_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    let changes =
        TaskChanges { labels: [("ci".to_owned(), "1".to_owned())].into(), ..TaskChanges::default() };
    engine.update_task(id.as_str(), changes).await.unwrap();
    for (label, count) in [("ci", 1), ("ci=1", 1), ("ci=2", 0), ("x", 0)] {
        let filter = TaskFilter { labels: vec![label.to_owned()] };
        assert_eq!(engine.list_tasks(filter).await.unwrap().count, count, "{label}");
    }
}

/// The use goes on whether its lifetime can be renewed or not; a task that is not renewed by its use is left alone.
#[tokio::test]
async fn a_use_begins_a_new_lifetime_if_its_creator_asked_for_that() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let before = engine.get(Kind::Task, &id).await.unwrap();
    engine.record_for_use(&id, None).await.unwrap();
    assert_eq!(engine.get(Kind::Task, &id).await.unwrap().expires_at, before.expires_at);

    let changes = TaskChanges { ttl_from: Some(TtlFrom::Use), ..TaskChanges::default() };
    engine.update_task(id.as_str(), changes).await.unwrap();
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();
    let (used, extended) = tokio::join!(engine.record_for_use(&id, None), serve_extension(&listener));
    used.unwrap();
    assert!(extended > before.expires_at, "{extended}");
    assert_eq!(engine.get(Kind::Task, &id).await.unwrap().expires_at, extended);

    // A command may run for longer than the lifetime.
    let longest = Some(Duration::from_secs(1000));
    let (used, prolonged) = tokio::join!(engine.record_for_use(&id, longest), serve_extension(&listener));
    used.unwrap();
    assert!(prolonged >= extended + 400.0, "{prolonged}");

    // Not if the operator of a server does not allow it.
    let config = Config { max_raised_ttl_seconds: 600, ..engine.shared.config.clone() };
    let longest = Some(Duration::from_secs(3000));
    Engine::new(config).record_for_use(&id, longest).await.unwrap();
    assert_eq!(engine.get(Kind::Task, &id).await.unwrap().expires_at, prolonged);

    // The supervisor is not asked to shorten the lifetime, and cannot be asked any more.
    drop(listener);
    engine.record_for_use(&id, None).await.unwrap();
    let after = engine.get(Kind::Task, &id).await.unwrap();
    assert_eq!((after.expires_at, after.sizing.ttl_seconds), (prolonged, 600));

    // It was extended and updated while a command ran.
    engine.renew(&id, 3600, now() + 3600.0).await.unwrap();
    let changes = TaskChanges { ttl_from: Some(TtlFrom::Create), ..TaskChanges::default() };
    let longer = engine.update_task(id.as_str(), changes).await.unwrap();
    engine.renew_used(&id, None).await;
    let after = engine.get(Kind::Task, &id).await.unwrap();
    assert_eq!((after.expires_at, after.sizing.ttl_seconds), (longer.expires_at, 3600));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_gets_input_is_renewed_again_and_again() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, dir) = started_task(&engine).await;
    let changes = TaskChanges { ttl_from: Some(TtlFrom::Use), ..TaskChanges::default() };
    engine.update_task(id.as_str(), changes).await.unwrap();
    let before = engine.get(Kind::Task, &id).await.unwrap().expires_at;
    let _owner = OwnerLock::try_acquire(&dir).unwrap().unwrap();
    let listener = UnixListener::bind(dir.join(vm_files::CONTROL_SOCKET)).unwrap();
    let typed = Notify::new();
    let mut renewing = std::pin::pin!(engine.renew_at(&typed, &id));
    let mut ends = vec![before];
    for _ in 0..2 {
        typed.notify_one();
        let end = tokio::select! {
            never = &mut renewing => match never {},
            end = serve_extension(&listener) => end,
        };
        ends.push(end);
    }
    assert!(ends.is_sorted_by(|one, next| one < next), "{ends:?}");
    // Without input, it is left alone.
    let renewed = tokio::select! {
        never = &mut renewing => match never {},
        _ = serve_extension(&listener) => true,
        () = tokio::time::sleep(RENEW_INTERVAL * 100) => false,
    };
    assert!(!renewed);
}

/// Every parameter of an operation on a task, with the least that it needs.
fn parameters(task: &str) -> serde_json::Map<String, Value> {
    let all = json!({
        "task_id": task, "ttl_seconds": 600, "mapping": "8080:80", "host_port": 8080,
        "shell_id": 1, "host": "/x", "guest": "/x", "signal": "INT", "command": "true", "sequence": 1,
        "path": "file", "target": "/nonexistent/target", "source": "/nonexistent/source", "content": "text",
        "destination": "other", "name": "build",
    });
    all.as_object().unwrap().clone()
}

/// Performs the operation in a state directory whose only task has a name. Returns what it says.
async fn with_named_task<O: Operation>(name: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = created(&engine, Kind::Task).await;
    let changes = TaskChanges { name: Some("build".to_owned()), ..TaskChanges::default() };
    engine.update_task(id.as_str(), changes).await.unwrap();
    let mut given = parameters(name);
    given.retain(|parameter, _| O::parameter_names().contains(parameter));
    let cancel = CancellationToken::new();
    // Nothing is to be installed or started.
    cancel.cancel();
    let call = CallContext::new(Events::none(), cancel);
    match O::read(&given).unwrap().perform(&engine, &call).await {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn every_operation_on_a_task_finds_it_by_its_name() {
    let mut walked = 0;
    macro_rules! walk {
        ($($Request:ident)+) => {$(
            if $Request::parameter_names().iter().any(|name| name == "task_id") {
                walked += 1;
                let text = with_named_task::<$Request>("build").await;
                assert!(!text.contains("'build' does not exist"), "{}: {text}", $Request::INFO.name);
                let text = with_named_task::<$Request>("other").await;
                assert_eq!(text, "task 'other' does not exist", "{}", $Request::INFO.name);
            }
        )+};
    }
    pyro_api::for_each_operation!(walk);
    assert!(walked > 15, "{walked}");
}

/// None of them is about the command line or the parameters.
#[test]
fn a_copy_that_fails_is_not_an_invalid_request() {
    let id = VmId::parse("0123456789ab").unwrap();
    let full = files::copy_error(&id, CopyError::Guest { cause: "No space left on device".to_owned() });
    assert_eq!(
        (full.kind, full.message.as_str()),
        (ErrorKind::FileFailed, "in the VM: No space left on device")
    );
    let left_out =
        Report { left_out: 1, examples: vec!["/dev/null: a device".to_owned()], ..Report::default() };
    assert_eq!(files::copied(&id, left_out, true).unwrap_err().kind, ErrorKind::FileFailed);
    assert_eq!(files::absolute(Path::new("/nonexistent/file")).unwrap_err().kind, ErrorKind::FileFailed);
}

#[tokio::test]
async fn a_damaged_entry_is_named_and_does_not_hide_the_others() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    for _ in 0..3 {
        running_command(&engine, &id).await;
    }
    let connection = rusqlite::Connection::open(root.path().join("state/state.sqlite3")).unwrap();
    connection.execute("UPDATE commands SET outcome = 'odd' WHERE sequence = 2", []).unwrap();
    let page = LogsTask { task: id.as_str().into(), entries: Default::default() };
    let page = page.perform(&engine, &CallContext::default()).await.unwrap().logs;
    for logs in [engine.logs_task(id.as_str(), None).await.unwrap(), page] {
        let sequences: Vec<u64> = logs.entries.iter().map(|entry| entry.sequence).collect();
        assert_eq!((sequences, logs.damaged, logs.dropped), (vec![1, 3], vec![2], 0));
    }
}

#[tokio::test]
async fn a_time_limit_beyond_the_lifetime_of_a_task_is_refused_with_what_is_left() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    let mut record = engine.get(Kind::Task, &id).await.unwrap();
    record.expires_at = now() + 100.5;
    outlast(&record, 100, 3600).unwrap();
    let error = outlast(&record, 101, 3600).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidInput);
    let text = "timeout_seconds must be at most 100, which is left of the task's lifetime";
    assert_eq!(error.message, text);
    // The start of a VM takes a part of its lifetime, and a time limit may be as long as all of it: for a minute of a long one, and
    // for a tenth of a short one.
    for (ttl_seconds, begun) in [(600, 0.5), (600, 55.5), (3600, 55.5), (60, 3.5)] {
        record.sizing.ttl_seconds = ttl_seconds;
        record.expires_at = now() + f64::from(ttl_seconds) - begun;
        outlast(&record, ttl_seconds.into(), 3600).unwrap();
        let error = outlast(&record, i64::from(ttl_seconds) + 1, 3600).unwrap_err();
        assert!(error.message.contains(&format!("at most {ttl_seconds},")), "{begun}: {error}");
    }
    for (ttl_seconds, begun, left) in [(600, 62.5, 537), (3600, 62.5, 3537), (60, 8.5, 51)] {
        record.sizing.ttl_seconds = ttl_seconds;
        record.expires_at = now() + f64::from(ttl_seconds) - begun;
        let error = outlast(&record, ttl_seconds.into(), 3600).unwrap_err();
        assert!(error.message.contains(&format!("at most {left},")), "{begun}: {error}");
    }
    // One that was prolonged.
    record.sizing.ttl_seconds = 60;
    record.expires_at = now() + 100.5;
    outlast(&record, 100, 3600).unwrap();
    assert!(outlast(&record, 101, 3600).unwrap_err().message.contains("at most 100,"));
    // A lifetime that begins with each use is raised.
    record.ttl_from = TtlFrom::Use;
    outlast(&record, 600, 600).unwrap();
    assert!(outlast(&record, 3601, 3600).unwrap_err().message.contains("at most 3600"));
    assert!(outlast(&record, 301, 300).unwrap_err().message.contains("at most 300,"));
    outlast(&record, 100, 60).unwrap();
}

/// Every caller is refused, not only the command line.
#[tokio::test]
async fn a_command_whose_time_limit_is_beyond_the_lifetime_is_not_started() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    let command = |timeout_seconds| crate::Command { timeout_seconds, ..crate::Command::new("true") };
    let exec = async |timeout_seconds, extends_lifetime| {
        let lasting = crate::Lasting { extends_lifetime };
        let command = command(timeout_seconds);
        let output = crate::CommandOutput::default();
        let request = crate::operations::ExecTask { task: id.as_str().into(), command, lasting, output };
        engine.exec_task(request, &CallContext::default()).await.unwrap_err()
    };
    let detach = async |timeout_seconds, extends_lifetime| {
        let lasting = crate::Lasting { extends_lifetime };
        let command = command(timeout_seconds);
        let request = crate::operations::DetachTask { task: id.as_str().into(), command, lasting };
        engine.detach_task(request).await.unwrap_err()
    };
    for error in [exec(Some(601), false).await, detach(Some(601), false).await] {
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{error}");
        assert!(error.message.ends_with("which is left of the task's lifetime"), "{error}");
    }
    // These get as far as the supervisor, which does not exist here.
    for error in [exec(Some(600), false).await, detach(Some(600), false).await] {
        assert_ne!(error.kind, ErrorKind::InvalidInput, "{error}");
    }
    for error in [exec(Some(60), false).await, exec(Some(601), true).await, detach(Some(601), true).await] {
        assert_ne!(error.kind, ErrorKind::InvalidInput, "{error}");
    }
    engine.renew(&id, 600, now() + 10.0).await.unwrap();
    assert_ne!(exec(None, false).await.kind, ErrorKind::InvalidInput);
    assert_eq!(exec(Some(30), false).await.kind, ErrorKind::InvalidInput);
}
