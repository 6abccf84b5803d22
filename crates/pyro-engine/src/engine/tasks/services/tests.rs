use pyro_api::{LogPart, ServiceOptions};
use pyro_supervisor::{Exec, Restart, ServiceState as State, ServiceStatus};
use tokio::sync::mpsc;

use super::*;
use crate::ServiceCommand;
use crate::engine::tasks::tests::{created, engine, started_task};

fn definition(name: &str) -> ServiceDefinition {
    ServiceDefinition {
        name: name.to_owned(),
        exec: Exec::new("server --port 80", Duration::from_secs(1)),
        ready: Some(ReadyCheck::Tcp(80)),
        ready_timeout_ms: 60_000,
        restart: Restart::Always,
        start_with_vm: true,
    }
}

/// Records a service of a task, which has written something.
async fn recorded(engine: &Engine, id: &VmId, name: &str, state: State) {
    let dir = engine.log_dir(id, name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("00000000000000000100.log"), "one\ntwo\nthree\n").unwrap();
    let (task, definition) = (id.clone(), definition(name));
    let status = ServiceStatus { state, restarts: 2, end: None, reason: None };
    let record =
        move |registry: &crate::registry::Registry| registry.set_service(&task, &definition, &status, 1.0);
    engine.registry(record).await.unwrap();
}

fn log(id: &VmId, part: LogPart) -> LogsTaskService {
    LogsTaskService { task: id.as_str().into(), service: "web".into(), part }
}

fn start(id: &VmId) -> StartTaskService {
    let command = ServiceCommand { command: Some("true".to_owned()), ..ServiceCommand::default() };
    StartTaskService {
        task: id.as_str().into(),
        service: "web".into(),
        command,
        options: ServiceOptions::default(),
        ports: Vec::new().into(),
    }
}

#[test]
fn nothing_runs_in_a_task_that_does_not() {
    for state in ServiceState::ALL {
        assert_eq!(as_in_task(VmState::Started, *state), *state);
        assert!(!as_in_task(VmState::Stopped, *state).is_active());
    }
    assert_eq!(as_in_task(VmState::Stopped, ServiceState::Failed), ServiceState::Failed);
}

#[tokio::test]
async fn services_of_a_stopped_task_are_seen_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = created(&engine, Kind::Task).await;
    recorded(&engine, &id, "web", State::Ready).await;
    recorded(&engine, &id, "broken", State::Failed).await;
    let list = engine.list_task_services(id.as_str()).await.unwrap();
    let [web, broken] = list.services.as_slice() else { panic!("{list:?}") };
    assert_eq!((web.state, web.ready, web.restarts), (ServiceState::Stopped, Some(false), 2));
    assert_eq!((web.command.as_str(), web.start_with_task), ("server --port 80", true));
    assert_eq!(broken.last_output.as_ref().unwrap().to_text(), "one\ntwo\nthree\n");
    assert_eq!(web.last_output, None, "nothing is wrong with it");
    let brief = engine.status_task(id.as_str()).await.unwrap().services;
    assert_eq!(
        brief.iter().map(|service| service.state).collect::<Vec<_>>(),
        [ServiceState::Stopped, ServiceState::Failed]
    );

    // There is nothing to stop, and nothing to start it in.
    assert_eq!(engine.stop_task_service(id.as_str(), "web").await.unwrap(), *web);
    let error =
        engine.start_task_service(start(&id), &Events::none(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WrongState, "{error}");

    engine.remove_task_service(id.as_str(), "web").await.unwrap();
    assert!(!engine.log_dir(&id, "web").exists() && engine.log_dir(&id, "broken").exists());
    for error in [
        engine.status_task_service(id.as_str(), "web").await.unwrap_err(),
        engine.stop_task_service(id.as_str(), "web").await.unwrap_err(),
        engine.remove_task_service(id.as_str(), "web").await.unwrap_err(),
        engine.logs_task_service(log(&id, LogPart::default())).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.hints), (ErrorKind::NotFound, vec![Hint::ListServices]));
    }
}

#[tokio::test]
async fn a_log_is_read_in_parts_and_from_its_last_lines_on() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = created(&engine, Kind::Task).await;
    recorded(&engine, &id, "web", State::Exited).await;
    let read = async |tail, offset, max_bytes| {
        let log = engine.logs_task_service(log(&id, LogPart { tail, offset, max_bytes })).await.unwrap();
        (log.offset, log.output.to_text().into_owned(), log.next_offset, log.end_offset)
    };
    assert_eq!(read(None, None, None).await, (100, "one\ntwo\nthree\n".to_owned(), 114, 114));
    assert_eq!(read(Some(1), None, None).await, (108, "three\n".to_owned(), 114, 114));
    assert_eq!(read(None, Some(104), Some(3)).await, (104, "two".to_owned(), 107, 114));
    assert_eq!(read(None, Some(114), None).await, (114, String::new(), 114, 114));
    for part in [
        LogPart { tail: Some(1), offset: Some(1), max_bytes: None },
        LogPart { max_bytes: Some(0), ..LogPart::default() },
        LogPart { max_bytes: Some((16 << 20) + 1), ..LogPart::default() },
    ] {
        assert_eq!(engine.logs_task_service(log(&id, part)).await.unwrap_err().kind, ErrorKind::InvalidInput);
    }
    let (sender, mut events) = mpsc::channel(8);
    let never = CancellationToken::new();
    let followed =
        engine.follow_task_service(id.as_str(), "web", Some(2), &Events::to(sender), &never).await.unwrap();
    assert_eq!(followed.state, ServiceState::Exited);
    let Some(Event::Output { bytes, .. }) = events.recv().await else { panic!("no output") };
    assert_eq!(bytes, "two\nthree\n");
}

#[tokio::test]
async fn names_never_lead_out_of_the_directory_of_logs() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = started_task(&engine).await;
    for name in ["..", ".", "", "a/../../b", "/etc", "-x"] {
        let error = engine.remove_task_service(id.as_str(), name).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{name:?}");
        let request = StartTaskService { service: name.into(), ..start(&id) };
        let error =
            engine.start_task_service(request, &Events::none(), &CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{name:?}");
    }
}

#[tokio::test]
async fn a_damaged_service_is_shown_with_the_reason_and_can_be_removed() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let (id, _) = created(&engine, Kind::Task).await;
    recorded(&engine, &id, "web", State::Stopped).await;
    let database = rusqlite::Connection::open(root.path().join("state/state.sqlite3")).unwrap();
    database.execute_batch("UPDATE services SET definition = '{}'").unwrap();
    let list = engine.list_task_services(id.as_str()).await.unwrap();
    let reason = list.services[0].reason.as_deref().unwrap();
    assert!(reason.starts_with("its definition on record is damaged"), "{reason}");
    engine.logs_task_service(log(&id, LogPart::default())).await.unwrap();
    engine.stop_task_service(id.as_str(), "web").await.unwrap();
    engine.remove_task_service(id.as_str(), "web").await.unwrap();
    assert_eq!(engine.list_task_services(id.as_str()).await.unwrap().count, 0);
}
