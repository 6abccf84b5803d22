//! Services: their states, their restarts, their logs, and how they end.

use std::time::Duration;

use futures::SinkExt;
use pyro_wire::{Frame, Probe, Request as GuestRequest, Stat, Status};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::commands::finish;
use super::fake::{Conditions, Fact, HTTP_PORT, StoreBehaviour, Supervised};
use super::races::{ask, exec, run, started, until};
use crate::protocol::{Reply, Request, ServiceReply, ServiceRequest};
use crate::{
    EndReason, MAX_SERVICES, ReadyCheck, Restart, ServiceDefinition, ServiceError, ServiceState,
    ServiceStatus, files, read_service_log, service_log_end,
};

fn service(name: &str, command: &str) -> ServiceDefinition {
    ServiceDefinition {
        name: name.to_owned(),
        exec: exec(command),
        ready: None,
        ready_timeout_ms: 60_000,
        restart: Restart::No,
        start_with_vm: false,
    }
}

async fn start(supervised: &Supervised, definition: ServiceDefinition) -> ServiceStatus {
    let name = definition.name.clone();
    supervised.client().start_service(&name, Some(definition), true).await.unwrap()
}

/// The states that were recorded of a service, in order.
fn states(supervised: &Supervised, name: &str) -> Vec<ServiceState> {
    let facts = supervised.world.facts.borrow();
    let recorded = facts.iter().filter_map(|fact| match fact {
        Fact::ServiceRecorded(recorded, status) if recorded == name => Some(status.state),
        _ => None,
    });
    recorded.collect()
}

async fn until_state(supervised: &Supervised, name: &str, state: ServiceState) -> ServiceStatus {
    for _ in 0..200_000 {
        let latest = supervised.world.facts.borrow().iter().rev().find_map(|fact| match fact {
            Fact::ServiceRecorded(recorded, status) if recorded == name => Some(status.clone()),
            _ => None,
        });
        if let Some(latest) = latest.filter(|latest| latest.state == state) {
            return latest;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("{:?}", states(supervised, name));
}

fn began(supervised: &Supervised, command: &str) -> usize {
    let began = Fact::Began(command.to_owned());
    supervised.world.facts.borrow().iter().filter(|fact| **fact == began).count()
}

#[test]
fn a_service_without_a_check_runs_until_it_is_stopped() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let status = start(&supervised, service("web", "sleep 1000000000")).await;
        assert_eq!(
            status,
            ServiceStatus { state: ServiceState::Running, restarts: 0, end: None, reason: None }
        );
        assert_eq!(states(&supervised, "web"), [ServiceState::Starting, ServiceState::Running]);
        let again = supervised.client().start_service("web", None, true).await;
        assert!(matches!(again, Err(ServiceError::Running)), "{again:?}");
        let stopped = supervised.client().stop_service("web").await.unwrap();
        assert_eq!((stopped.state, stopped.end), (ServiceState::Stopped, Some(Status::Signal(15))));
        // What is stopped is not running, and can be started by its name.
        assert_eq!(supervised.client().stop_service("web").await.unwrap(), stopped);
        let again = supervised.client().start_service("web", None, true).await.unwrap();
        assert_eq!((again.state, again.end), (ServiceState::Running, None));
        finish(supervised).await;
    });
}

#[test]
fn a_service_is_no_command_of_the_journal() {
    run(async {
        let supervised = started(Conditions::task()).await;
        start(&supervised, service("web", "sleep 1000000")).await;
        assert!(!supervised.world.facts.borrow().iter().any(|fact| matches!(fact, Fact::CommandRecorded(_))));
        finish(supervised).await;
    });
}

#[test]
fn what_does_not_exist_is_not_found() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let client = supervised.client();
        assert!(matches!(client.start_service("x", None, true).await, Err(ServiceError::NotFound)));
        assert!(matches!(client.stop_service("x").await, Err(ServiceError::NotFound)));
        assert!(matches!(client.remove_service("x").await, Err(ServiceError::NotFound)));
        let followed = client.follow_service("x", 0, async |_, _| {}).await;
        assert!(matches!(followed, Err(ServiceError::NotStarted)), "{followed:?}");
        finish(supervised).await;
    });
}

#[test]
fn a_port_and_a_file_are_tried_until_they_are_there() {
    run(async {
        for (check, probe) in [
            (ReadyCheck::Tcp(80), GuestRequest::Probe(Probe { port: 80 })),
            (ReadyCheck::File("up".to_owned()), GuestRequest::Stat(Stat { path: "up".to_owned() })),
        ] {
            let supervised = started(Conditions::task()).await;
            let definition = ServiceDefinition { ready: Some(check), ..service("web", "sleep 1000000") };
            let client = supervised.client();
            let starting =
                spawn_local(async move { client.start_service("web", Some(definition), true).await });
            sleep(Duration::from_secs(20)).await;
            assert!(!starting.is_finished());
            assert_eq!(states(&supervised, "web"), [ServiceState::Starting]);
            supervised.world.is_ready.set(true);
            let began = Instant::now();
            assert_eq!(starting.await.unwrap().unwrap().state, ServiceState::Ready);
            assert!(began.elapsed() < Duration::from_millis(1100), "{:?}", began.elapsed());
            let probes = supervised.world.probes.borrow().clone();
            // 50 ms, which double up to a second: 5 attempts in the first second, then one each second.
            assert!(
                probes.iter().all(|asked| *asked == probe) && (20..30).contains(&probes.len()),
                "{probes:?}"
            );
            finish(supervised).await;
        }
    });
}

#[test]
fn an_http_server_is_ready_when_it_answers_without_an_error() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let ready = Some(ReadyCheck::Http {
            host: "127.0.0.1".to_owned(),
            port: HTTP_PORT,
            path: "/health?full=1".to_owned(),
        });
        let client = supervised.client();
        let definition =
            ServiceDefinition { ready, ready_timeout_ms: 5000, ..service("web", "sleep 1000000") };
        let failed = start(&supervised, definition).await;
        assert_eq!(failed.state, ServiceState::Failed);
        assert_eq!(failed.reason.unwrap(), "not ready within 5 seconds: the HTTP status is 503");
        supervised.world.is_ready.set(true);
        let ready = client.start_service("web", None, true).await.unwrap();
        assert_eq!((ready.state, ready.reason), (ServiceState::Ready, None));
        let request = supervised.world.steered.borrow().last().unwrap().1.clone();
        assert!(request.starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: 127.0.0.1:8080\r\n"), "{request}");
        finish(supervised).await;
    });
}

#[test]
fn what_cannot_be_reached_or_is_no_http_server_is_not_ready() {
    run(async {
        let supervised = started(Conditions::task()).await;
        for (port, cause) in
            [(81, "connecting: refused"), (super::fake::SERVED_PORT, "no valid HTTP response from port 80")]
        {
            let ready = Some(ReadyCheck::Http { host: "localhost".to_owned(), port, path: "/".to_owned() });
            let definition =
                ServiceDefinition { ready, ready_timeout_ms: 3000, ..service("web", "sleep 1000000") };
            let reason = start(&supervised, definition).await.reason.unwrap();
            assert!(reason.starts_with(&format!("not ready within 3 seconds: {cause}")), "{reason}");
        }
        finish(supervised).await;
    });
}

#[test]
fn a_command_decides_by_its_exit_code() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let check = |command| Some(ReadyCheck::Command(Box::new(exec(command))));
        let definition = |command| ServiceDefinition {
            ready: check(command),
            ready_timeout_ms: 3000,
            ..service("web", "sleep 1000000")
        };
        assert_eq!(start(&supervised, definition("true")).await.state, ServiceState::Ready);
        supervised.client().stop_service("web").await.unwrap();
        let reason = start(&supervised, definition("fail 10")).await.reason.unwrap();
        assert_eq!(reason, "not ready within 3 seconds: the command ended with exit code 3");
        // One that hangs is ended with the time limit.
        let began = Instant::now();
        let reason = start(&supervised, definition("stubborn 1000000")).await.reason.unwrap();
        assert_eq!(reason, "not ready within 3 seconds: no answer");
        assert!(began.elapsed() < Duration::from_secs(4));
        finish(supervised).await;
    });
}

#[test]
fn a_service_that_ends_before_it_is_ready_says_so_at_once() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let definition = ServiceDefinition { ready: Some(ReadyCheck::Tcp(80)), ..service("web", "fail 300") };
        let began = Instant::now();
        let failed = start(&supervised, definition).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!((failed.state, failed.end), (ServiceState::Failed, Some(Status::Code(3))));
        let missing = start(
            &supervised,
            ServiceDefinition { ready: Some(ReadyCheck::Tcp(80)), ..service("x", "missing") },
        )
        .await;
        assert_eq!(missing.state, ServiceState::Failed);
        assert!(missing.reason.unwrap().ends_with("not found"));
        finish(supervised).await;
    });
}

#[test]
fn restarts_follow_the_policy_and_pause_longer_each_time() {
    run(async {
        let supervised = started(Conditions { lifetime: 100_000, ..Conditions::task() }).await;
        let restarting = |name, command, restart| ServiceDefinition { restart, ..service(name, command) };
        start(&supervised, restarting("done", "true", Restart::OnFailure)).await;
        let exited = until_state(&supervised, "done", ServiceState::Exited).await;
        assert_eq!((exited.restarts, exited.end), (0, Some(Status::Code(0))));
        start(&supervised, restarting("bad", "fail 0", Restart::OnFailure)).await;
        start(&supervised, restarting("loop", "sleep 0", Restart::Always)).await;
        start(&supervised, restarting("steady", "fail 61000", Restart::OnFailure)).await;
        // After 0, 1, 3, 7, 15, 31, 63 seconds, and then each minute.
        sleep(Duration::from_secs(62)).await;
        assert_eq!((began(&supervised, "fail 0"), began(&supervised, "sleep 0")), (6, 6));
        sleep(Duration::from_secs(240)).await;
        assert_eq!(began(&supervised, "fail 0"), 6 + 4);
        // One that ran for more than a minute each time has short pauses.
        assert_eq!(began(&supervised, "fail 61000"), 5);
        let status = until_state(&supervised, "bad", ServiceState::Restarting).await;
        assert_eq!((status.restarts, status.end), (9, Some(Status::Code(3))));
        finish(supervised).await;
    });
}

#[test]
fn a_service_that_is_stopped_is_not_run_again() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let definition = ServiceDefinition { restart: Restart::Always, ..service("web", "fail 0") };
        start(&supervised, definition.clone()).await;
        until_state(&supervised, "web", ServiceState::Restarting).await;
        let began_at = Instant::now();
        let stopped = supervised.client().stop_service("web").await.unwrap();
        assert!(began_at.elapsed() < Duration::from_millis(500), "a pause is not waited for");
        assert_eq!(stopped.state, ServiceState::Stopped);
        let before = began(&supervised, "fail 0");
        sleep(Duration::from_secs(100)).await;
        assert_eq!(began(&supervised, "fail 0"), before);
        // While it becomes ready.
        let definition =
            ServiceDefinition { exec: exec("sleep 1000000"), ready: Some(ReadyCheck::Tcp(80)), ..definition };
        let client = supervised.client();
        let starting = spawn_local(async move { client.start_service("web", Some(definition), true).await });
        until_state(&supervised, "web", ServiceState::Starting).await;
        sleep(Duration::from_secs(1)).await;
        supervised.client().stop_service("web").await.unwrap();
        assert_eq!(starting.await.unwrap().unwrap().state, ServiceState::Stopped);
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_disconnects_while_it_waits_changes_nothing() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let definition =
            ServiceDefinition { ready: Some(ReadyCheck::Tcp(80)), ..service("web", "sleep 1000000") };
        let mut leaving = supervised.client().connect().await.unwrap().stream;
        let request = ServiceRequest::Start { definition: Some(Box::new(definition)), wait: true };
        leaving.send(Frame::Control(Request::Service { name: "web".to_owned(), request })).await.unwrap();
        until_state(&supervised, "web", ServiceState::Starting).await;
        drop(leaving);
        sleep(Duration::from_secs(5)).await;
        supervised.world.is_ready.set(true);
        until_state(&supervised, "web", ServiceState::Ready).await;
        assert_eq!(began(&supervised, "sleep 1000000"), 1);
        finish(supervised).await;
    });
}

#[test]
fn the_end_of_the_vm_ends_services_the_latest_first() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        for name in ["database", "web"] {
            start(&supervised, service(name, &format!("sleep 100000000 {name}"))).await;
        }
        start(&supervised, ServiceDefinition { restart: Restart::Always, ..service("bad", "fail 0") }).await;
        until_state(&supervised, "bad", ServiceState::Restarting).await;
        let began_at = Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(began_at.elapsed() < Duration::from_secs(2), "{:?}", began_at.elapsed());
        supervised.ended().await;
        let facts = supervised.world.facts.borrow();
        let stopped: Vec<_> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::ServiceRecorded(name, status) if status.state == ServiceState::Stopped => {
                    Some(name.as_str())
                }
                Fact::Halted => Some("halt"),
                _ => None,
            })
            .collect();
        assert_eq!(stopped, ["bad", "web", "database", "halt"]);
        assert!(facts.contains(&Fact::EndRecorded(EndReason::Stopped)));
    });
}

#[test]
fn services_that_do_not_end_hold_the_end_of_the_vm_up_for_seconds_only() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        for number in 0..MAX_SERVICES {
            start(&supervised, service(&format!("s{number}"), &format!("stubborn 1000000 {number}"))).await;
        }
        let began_at = Instant::now();
        assert_eq!(ask(&supervised, Request::Stop).await, Some(Reply::Done));
        assert!(began_at.elapsed() < Duration::from_secs(6), "{:?}", began_at.elapsed());
        supervised.ended().await;
    });
}

#[test]
fn services_start_with_the_vm_if_they_are_meant_to_and_do_not_delay_it() {
    run(async {
        let with_vm = |name: &str, command: &str| ServiceDefinition {
            start_with_vm: true,
            ready: Some(ReadyCheck::Tcp(80)),
            ..service(name, command)
        };
        let services = vec![
            with_vm("web", "sleep 1000000"),
            service("other", "sleep 2000000"),
            with_vm("bad", "fail 0"),
        ];
        let supervised = started(Conditions { services, ..Conditions::task() }).await;
        until_state(&supervised, "web", ServiceState::Starting).await;
        let failed = until_state(&supervised, "bad", ServiceState::Failed).await;
        assert_eq!(failed.end, Some(Status::Code(3)));
        assert_eq!(began(&supervised, "sleep 2000000"), 0);
        supervised.world.is_ready.set(true);
        until_state(&supervised, "web", ServiceState::Ready).await;
        assert!(matches!(supervised.client().stop_service("other").await, Err(ServiceError::NotStarted)));
        finish(supervised).await;
    });
}

#[test]
fn a_guest_that_is_gone_ends_its_services() {
    run(async {
        let mut supervised = started(Conditions::task()).await;
        start(&supervised, ServiceDefinition { restart: Restart::Always, ..service("web", "sleep 1000000") })
            .await;
        supervised.world.channel_loss.cancel();
        supervised.ended().await;
        assert_eq!(began(&supervised, "sleep 1000000"), 1);
        assert_eq!(until_state(&supervised, "web", ServiceState::Failed).await.end, None);
    });
}

#[test]
fn a_service_that_is_removed_leaves_nothing() {
    run(async {
        let supervised = started(Conditions::task()).await;
        start(&supervised, service("web", "print 1000")).await;
        let log = supervised.dir.join(files::SERVICES).join("web");
        while service_log_end(&log).unwrap() < 1000 {
            sleep(Duration::from_millis(1)).await;
        }
        supervised.client().remove_service("web").await.unwrap();
        assert!(!log.exists() && supervised.world.has(&Fact::ServiceForgotten("web".to_owned())));
        assert!(matches!(
            supervised.client().start_service("web", None, true).await,
            Err(ServiceError::NotFound)
        ));
        finish(supervised).await;
    });
}

#[test]
fn a_flood_of_output_keeps_the_latest_and_followers_see_all_runs() {
    run(async {
        let supervised = started(Conditions::task()).await;
        // It prints 6 MB, ends, and does so again a second later.
        let definition = ServiceDefinition { restart: Restart::Always, ..service("web", "burst 6000000") };
        start(&supervised, definition).await;
        let client = supervised.client();
        let following = spawn_local(async move {
            let mut received = 0;
            let status = client.follow_service("web", 0, async |_, bytes| received += bytes.len()).await;
            (status, received)
        });
        // One that never reads, and one that leaves.
        let mut silent = supervised.client().connect().await.unwrap().stream;
        let follow =
            || Request::Service { name: "web".to_owned(), request: ServiceRequest::Follow { offset: 0 } };
        silent.send(Frame::Control(follow())).await.unwrap();
        let log = supervised.dir.join(files::SERVICES).join("web");
        while service_log_end(&log).unwrap() < 18_000_000 {
            sleep(Duration::from_millis(10)).await;
        }
        let kept = service_log_end(&log).unwrap() - read_service_log(&log, 0, 1).unwrap().offset;
        assert!((4 << 20..9 << 20).contains(&kept), "{kept}");
        timeout(Duration::from_secs(100), supervised.client().stop_service("web")).await.unwrap().unwrap();
        let (status, received) = following.await.unwrap();
        assert_eq!(status.unwrap().state, ServiceState::Stopped);
        assert!(received as u64 >= 18_000_000, "{received}");
        drop(silent);
        finish(supervised).await;
    });
}

#[test]
fn a_status_is_reported_when_it_is_recorded_even_if_that_fails_at_first() {
    run(async {
        let store = StoreBehaviour::FailsAtFirst;
        let supervised = started(Conditions { store, ..Conditions::task() }).await;
        let began = Instant::now();
        let status = start(&supervised, service("web", "sleep 1000000")).await;
        assert_eq!(status.state, ServiceState::Running);
        assert!(began.elapsed() >= Duration::from_secs(1 + 2 + 4));
        finish(supervised).await;
    });
}

#[test]
fn a_service_that_cannot_be_recorded_is_not_started() {
    run(async {
        let supervised = started(Conditions { begins_are_refused: true, ..Conditions::task() }).await;
        let definition = service("web", "sleep 1000000");
        let error = supervised.client().start_service("web", Some(definition), true).await.unwrap_err();
        assert!(
            matches!(&error, ServiceError::NotRecorded { cause, .. } if cause == "the disk is full"),
            "{error:?}"
        );
        assert!(!supervised.began_anything());
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_gives_up_before_its_request_is_served_starts_nothing() {
    run(async {
        let supervised = Supervised::start(Conditions { store_ms: 500, ..Conditions::task() });
        until(&supervised, |fact| matches!(fact, Fact::MachineUp)).await;
        let mut leaving = supervised.client().connect().await.unwrap().stream;
        let request =
            ServiceRequest::Start { definition: Some(Box::new(service("web", "true"))), wait: false };
        leaving.send(Frame::Control(Request::Service { name: "web".to_owned(), request })).await.unwrap();
        drop(leaving);
        until(&supervised, |fact| matches!(fact, Fact::StartRecorded)).await;
        sleep(Duration::from_secs(10)).await;
        assert!(!supervised.began_anything());
        let not_found = Reply::Service(ServiceReply::NotFound);
        let stop = Request::Service { name: "web".to_owned(), request: ServiceRequest::Stop };
        assert_eq!(ask(&supervised, stop).await, Some(not_found));
        finish(supervised).await;
    });
}

#[test]
fn a_service_that_the_guest_cannot_start_has_failed_also_without_a_check() {
    run(async {
        let supervised = started(Conditions::task()).await;
        let failed = start(&supervised, service("web", "missing")).await;
        assert_eq!(failed.state, ServiceState::Failed);
        assert!(failed.reason.unwrap().ends_with("not found"));
        finish(supervised).await;
    });
}

#[test]
fn a_service_whose_state_cannot_be_recorded_holds_no_other_one_up() {
    run(async {
        let store = StoreBehaviour::RefusesStatus;
        let supervised = started(Conditions { store, ..Conditions::task() }).await;
        let client = supervised.client();
        let full = |result: Result<ServiceStatus, ServiceError>| {
            let Err(ServiceError::NotRecorded { cause, .. }) = result else { panic!("{result:?}") };
            assert_eq!(cause, "the state of the service cannot be recorded: the disk is full");
        };
        let definition = service("web", "sleep 1000000");
        let started_at = Instant::now();
        full(client.start_service("web", Some(definition), true).await);
        full(client.stop_service("web").await);
        assert!(started_at.elapsed() < Duration::from_secs(25), "{:?}", started_at.elapsed());
        // It does not run, so it can be started again, and so can others.
        for name in ["web", "db"] {
            let definition = service(name, "sleep 2000000");
            let status = client.start_service(name, Some(definition), false).await.unwrap();
            assert_eq!(status.state, ServiceState::Starting);
        }
        // A removal needs no record of the end.
        let removing = Instant::now();
        client.remove_service("web").await.unwrap();
        assert!(removing.elapsed() < Duration::from_secs(1));
        let started = client.start_service("other", Some(service("other", "true")), false);
        timeout(Duration::from_secs(1), started).await.unwrap().unwrap();
        finish(supervised).await;
    });
}

#[test]
fn a_client_that_leaves_while_another_service_is_being_recorded_starts_nothing() {
    run(async {
        let supervised = started(Conditions { store_ms: 500, ..Conditions::task() }).await;
        let request = |name: &str, command| Request::Service {
            name: name.to_owned(),
            request: ServiceRequest::Start {
                definition: Some(Box::new(service(name, command))),
                wait: false,
            },
        };
        let mut first = supervised.client().connect().await.unwrap().stream;
        first.send(Frame::Control(request("first", "sleep 1000000"))).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let mut second = supervised.client().connect().await.unwrap().stream;
        second.send(Frame::Control(request("second", "sleep 2000000"))).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        drop(second);
        until_state(&supervised, "first", ServiceState::Running).await;
        sleep(Duration::from_secs(10)).await;
        assert_eq!((began(&supervised, "sleep 1000000"), began(&supervised, "sleep 2000000")), (1, 0));
        finish(supervised).await;
    });
}

#[test]
fn a_stop_waits_for_a_service_that_is_being_started() {
    run(async {
        let supervised = started(Conditions { store_ms: 500, ..Conditions::task() }).await;
        let client = supervised.client();
        let definition = service("web", "sleep 1000000");
        let starting = spawn_local(async move { client.start_service("web", Some(definition), true).await });
        sleep(Duration::from_millis(100)).await;
        let stopped = supervised.client().stop_service("web").await.unwrap();
        assert_eq!(stopped.state, ServiceState::Stopped);
        starting.await.unwrap().unwrap();
        finish(supervised).await;
    });
}

#[test]
fn a_service_that_is_stopped_before_it_starts_with_the_vm_does_not_start() {
    run(async {
        let with_vm =
            |name: &str, command: &str| ServiceDefinition { start_with_vm: true, ..service(name, command) };
        let services = vec![with_vm("first", "sleep 1000000"), with_vm("second", "sleep 2000000")];
        let supervised = started(Conditions { services, store_ms: 500, ..Conditions::task() }).await;
        let answer = supervised.client().stop_service("second").await;
        assert!(matches!(answer, Err(ServiceError::NotStarted)), "{answer:?}");
        until_state(&supervised, "first", ServiceState::Running).await;
        sleep(Duration::from_secs(10)).await;
        assert_eq!((began(&supervised, "sleep 1000000"), began(&supervised, "sleep 2000000")), (1, 0));
        finish(supervised).await;
    });
}

#[test]
fn services_start_with_the_vm_once_the_store_works() {
    run(async {
        let services = vec![ServiceDefinition { start_with_vm: true, ..service("web", "sleep 1000000") }];
        let store = StoreBehaviour::FailsAtFirst;
        let supervised = started(Conditions { services, store, ..Conditions::task() }).await;
        until_state(&supervised, "web", ServiceState::Running).await;
        finish(supervised).await;
    });
}

#[test]
fn the_pauses_of_a_service_that_never_becomes_ready_double() {
    run(async {
        let supervised = started(Conditions { lifetime: 100_000, ..Conditions::task() }).await;
        let definition = ServiceDefinition {
            ready: Some(ReadyCheck::Tcp(80)),
            restart: Restart::Always,
            ..service("web", "sleep 1000000000")
        };
        start(&supervised, definition).await;
        // The first run is over. Each takes a minute, with pauses of 1, 2, 4, 8, and 16 seconds between them.
        sleep(Duration::from_secs(4 * 60 + 15 + 10)).await;
        assert_eq!(began(&supervised, "sleep 1000000000"), 5);
        sleep(Duration::from_secs(16)).await;
        assert_eq!(began(&supervised, "sleep 1000000000"), 6);
        finish(supervised).await;
    });
}

#[test]
fn an_end_that_the_guest_does_not_confirm_is_reported_and_nothing_runs_again() {
    run(async {
        let supervised = started(Conditions::task()).await;
        start(&supervised, service("web", "stubborn 1000000")).await;
        let began_at = Instant::now();
        let stopped = supervised.client().stop_service("web").await.unwrap();
        let reason = "the guest did not confirm its end";
        assert_eq!((stopped.state, stopped.reason.as_deref()), (ServiceState::Stopped, Some(reason)));
        assert!(began_at.elapsed() < Duration::from_secs(20), "{:?}", began_at.elapsed());
        let definition = ServiceDefinition {
            ready: Some(ReadyCheck::Tcp(80)),
            ready_timeout_ms: 1000,
            restart: Restart::Always,
            ..service("db", "stubborn 2000000")
        };
        start(&supervised, definition).await;
        let failed = until_state(&supervised, "db", ServiceState::Failed).await;
        assert!(failed.reason.unwrap().ends_with(reason));
        assert_eq!(began(&supervised, "stubborn 2000000"), 1);
        finish(supervised).await;
    });
}
