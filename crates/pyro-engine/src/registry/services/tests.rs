use std::time::Duration;

use pyro_supervisor::{Exec, ExitStatus, ReadyCheck, Restart, ServiceState as State};
use tempfile::TempDir;

use super::*;
use crate::registry::VmPatch;
use crate::registry::tests::{raw, with_task};
use crate::{StopReason, VmState};

fn definition(name: &str) -> ServiceDefinition {
    ServiceDefinition {
        name: name.to_owned(),
        exec: Exec::new("server", Duration::from_secs(1)),
        ready: Some(ReadyCheck::Http { host: "localhost".to_owned(), port: 80, path: "/".to_owned() }),
        ready_timeout_ms: 60_000,
        restart: Restart::OnFailure,
        start_with_vm: true,
    }
}

fn status(state: State) -> ServiceStatus {
    ServiceStatus { state, restarts: 0, end: None, reason: None }
}

fn with_services(names: &[&str]) -> (TempDir, Registry, VmId) {
    let (directory, registry, task) = with_task();
    for name in names {
        registry.set_service(&task, &definition(name), &status(State::Starting), 1.0).unwrap();
    }
    (directory, registry, task)
}

#[test]
fn services_keep_their_order_and_are_replaced_by_name() {
    let (_directory, registry, task) = with_services(&["web", "database"]);
    let other = ServiceDefinition { restart: Restart::No, ..definition("web") };
    let failed = ServiceStatus {
        state: State::Failed,
        restarts: 3,
        end: Some(ExitStatus::Signal(9)),
        reason: Some("why".to_owned()),
    };
    registry.set_service(&task, &other, &status(State::Starting), 2.0).unwrap();
    registry.set_service_status(&task, "web", &failed, 3.0).unwrap();
    let services = registry.services(&task).unwrap();
    let expected = ServiceRecord {
        name: "web".to_owned(),
        definition: Some(other),
        state: ServiceState::Failed,
        since: 3.0,
        restarts: 3,
        exit_code: Some(-9),
        reason: Some("why".to_owned()),
    };
    assert_eq!((services.len(), &services[0]), (2, &expected));
    assert_eq!(registry.service(&task, "web").unwrap(), expected);
    let states = registry.service_states(&task).unwrap();
    assert_eq!(states.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["web", "database"]);
    // What was wrong with an earlier start is forgotten.
    registry.set_service(&task, &definition("web"), &status(State::Starting), 4.0).unwrap();
    let again = registry.service(&task, "web").unwrap();
    assert_eq!((again.exit_code, again.reason, again.restarts), (None, None, 0));
}

#[test]
fn a_task_has_a_maximum_of_services() {
    let (_directory, registry, task) = with_services(&[]);
    for number in 0..MAX_SERVICES {
        registry
            .set_service(&task, &definition(&format!("s{number}")), &status(State::Starting), 1.0)
            .unwrap();
    }
    let error = registry.set_service(&task, &definition("more"), &status(State::Starting), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "too many services: the maximum is 32; remove one first");
    assert_eq!(registry.services(&task).unwrap().len(), MAX_SERVICES);
    // One that exists can be replaced.
    registry.set_service(&task, &definition("s1"), &status(State::Starting), 1.0).unwrap();
}

#[test]
fn nothing_of_a_stopped_task_runs() {
    let (_directory, registry, task) = with_services(&["web", "done"]);
    registry.set_started(&task, &VmPatch::default()).unwrap();
    registry.set_service_status(&task, "web", &status(State::Ready), 2.0).unwrap();
    registry.set_service_status(&task, "done", &status(State::Exited), 2.0).unwrap();
    let record = registry.mark_stopped(&task, StopReason::OwnerVanished, None).unwrap();
    assert_eq!(record.state, VmState::Stopped);
    let states: Vec<_> =
        registry.service_states(&task).unwrap().into_iter().map(|service| service.state).collect();
    assert_eq!(states, [ServiceState::Stopped, ServiceState::Exited]);
}

#[test]
fn a_removed_service_stays_removed_and_goes_with_its_task() {
    let (_directory, registry, task) = with_services(&["web", "other"]);
    assert!(registry.delete_service(&task, "web").unwrap());
    assert!(!registry.delete_service(&task, "web").unwrap());
    registry.set_service_status(&task, "web", &status(State::Stopped), 2.0).unwrap();
    let error = registry.service(&task, "web").unwrap_err();
    assert_eq!((error.kind, error.hints), (ErrorKind::NotFound, vec![Hint::ListServices]));
    registry.delete(&task).unwrap();
    assert_eq!(registry.services(&task).unwrap(), []);
}

#[test]
fn a_damaged_service_does_not_hide_the_others() {
    let (directory, registry, task) = with_services(&["web", "other"]);
    raw(directory.path()).execute_batch("UPDATE services SET definition = '{' WHERE name = 'web'").unwrap();
    let services = registry.services(&task).unwrap();
    let shown: Vec<_> =
        services.iter().map(|service| (service.name.as_str(), service.definition.is_some())).collect();
    assert_eq!(shown, [("web", false), ("other", true)]);
    assert_eq!(registry.service(&task, "web").unwrap().definition, None);
    assert!(registry.delete_service(&task, "web").unwrap());
}
