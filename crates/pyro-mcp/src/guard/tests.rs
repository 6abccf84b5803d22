//! A contract that only remembers what it was asked for stands in for an engine.

use std::sync::Mutex;

use pyro_api::operations::*;
use pyro_api::{
    Error, ExecutionMode, LocalFuture, Reply, Task, TaskName, Visibility, Vm, VmId, VmName, VmSpec, VmState,
};

use serde_json::{Value, json};

use super::*;

/// Knows one VM and one task, both with a network, and does nothing.
#[derive(Debug, Default)]
struct Fake(Mutex<Vec<&'static str>>);

/// The client of all tests. Every operation is asked for on its behalf, whatever the call says.
fn client() -> Caller {
    Caller::Client { name: "a".parse().unwrap(), visibility: Visibility::Own }
}

fn id() -> VmId {
    "de259a89b184".parse().unwrap()
}

fn vm() -> Vm {
    Vm {
        vm_id: id(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 600,
        created_at: 0.0,
        expires_at: 600.0,
        state: VmState::Started,
        network_enabled: true,
        network_policy: None,
        allow_host_compat: false,
        guest_ip: None,
        tap_name: None,
        execution_mode: ExecutionMode::GuestVsock,
        metadata: Default::default(),
        accelerator: None,
        mounts: Vec::new(),
        owner: None,
    }
}

fn task() -> Task {
    let vm = vm();
    Task {
        task_id: vm.vm_id,
        environment: vm.environment,
        environment_version: None,
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 600,
        created_at: 0.0,
        expires_at: 600.0,
        state: VmState::Started,
        network_enabled: true,
        network_policy: None,
        allow_host_compat: false,
        guest_ip: None,
        tap_name: None,
        name: None,
        labels: Default::default(),
        ttl_from: Default::default(),
        disk_state: None,
        execution_mode: ExecutionMode::GuestVsock,
        workspace_path: "/workspace".to_owned(),
        command_count: 0,
        last_command: None,
        metadata: Default::default(),
        accelerator: None,
        stop_reason: None,
        last_error: None,
        disk_mib: None,
        disk_used_bytes: 0,
        published_ports: Vec::new(),
        services: Vec::new(),
        mounts: Vec::new(),
        lost_mounts: Vec::new(),
        network_denials: Vec::new(),
        owner: None,
    }
}

macro_rules! fake {
    ($($method:ident $Request:ident)+) => {
        impl Contract for Fake {
            fn max_active_vms(&self) -> u32 {
                4
            }

            fn keep_spares<'a>(&'a self, _: VmSpec, _: &'a CancellationToken) -> LocalFuture<'a, ()> {
                Box::pin(async {})
            }

            fn status_vm<'a>(&'a self, _: StatusVm, call: &'a CallContext) -> Reply<'a, Vm> {
                assert_eq!(call.caller, client());
                self.0.lock().unwrap().push("status_vm");
                Box::pin(async { Ok(vm()) })
            }

            fn status_task<'a>(&'a self, _: StatusTask, call: &'a CallContext) -> Reply<'a, Task> {
                assert_eq!(call.caller, client());
                self.0.lock().unwrap().push("status_task");
                Box::pin(async { Ok(task()) })
            }

            $(
                fn $method<'a>(
                    &'a self,
                    _: $Request,
                    call: &'a CallContext,
                ) -> Reply<'a, <$Request as Operation>::Result> {
                    assert_eq!(call.caller, client());
                    self.0.lock().unwrap().push(stringify!($method));
                    Box::pin(async { Err(Error::cancelled()) })
                }
            )+
        }
    };
}

fake! {
    list_environments ListEnvironments pull_environment PullEnvironment inspect_environment InspectEnvironment
    prune_environments PruneEnvironments remove_environment RemoveEnvironment create_vm CreateVm start_vm StartVm exec_vm ExecVm stop_vm StopVm
    delete_vm DeleteVm network_info_vm NetworkInfoVm reap_expired ReapExpired run_in_vm RunInVm
    create_task CreateTask start_task StartTask stop_task StopTask delete_task DeleteTask list_tasks ListTasks
    update_task UpdateTask extend_task ExtendTask publish_task PublishTask unpublish_task UnpublishTask mount_task MountTask unmount_task UnmountTask exec_task ExecTask detach_task DetachTask wait_task WaitTask follow_task FollowTask input_task InputTask
    kill_task KillTask logs_task LogsTask copy_from_task CopyFromTask copy_to_task CopyToTask
    read_task_file ReadTaskFile write_task_file WriteTaskFile stat_task_file StatTaskFile list_task_files ListTaskFiles move_task_file MoveTaskFile remove_task_file RemoveTaskFile make_task_directory MakeTaskDirectory watch_task_files WatchTaskFiles doctor Doctor open_task_shell OpenTaskShell list_task_shells ListTaskShells read_task_shell ReadTaskShell write_task_shell WriteTaskShell signal_task_shell SignalTaskShell resize_task_shell ResizeTaskShell close_task_shell CloseTaskShell attach_task_shell AttachTaskShell start_task_service StartTaskService list_task_services ListTaskServices status_task_service StatusTaskService logs_task_service LogsTaskService follow_task_service FollowTaskService stop_task_service StopTaskService remove_task_service RemoveTaskService
}

/// What becomes of a request under a policy, and what the contract is asked for meanwhile.
async fn attempt<O: Operation>(policy: Policy, request: O) -> (Result<(), Failure>, Vec<&'static str>) {
    let fake = Arc::new(Fake::default());
    let gate = Gate::new(Arc::clone(&fake) as Arc<dyn Contract>, policy);
    let guard = gate.guard(client());
    let done = guard.perform(request, &CallContext::default()).await.map(drop);
    let asked = fake.0.lock().unwrap().clone();
    (done, asked)
}

/// A request with some value for each parameter that has no default.
fn some<O: Operation>() -> O {
    with(json!({}))
}

/// The same with these parameters, as far as the request has them.
fn with<O: Operation>(more: Value) -> O {
    let mut all = json!({
        "environment": "debian:12", "vm_id": "de259a89b184", "task_id": "de259a89b184", "command": "true",
        "sequence": 1, "path": "x", "target": "/x", "source": "/x", "content": "x", "destination": "y", "ttl_seconds": 600,
        "platform": "linux-x86_64", "mapping": "0:80", "host_port": 80, "shell_id": 1, "signal": "INT",
        "name": "web", "host": "/x", "guest": "/x",
    });
    let given = all.as_object_mut().unwrap();
    given.extend(more.as_object().unwrap().clone());
    given.retain(|name, _| O::parameter_names().contains(name));
    O::read(given).unwrap()
}

fn closed() -> Policy {
    Policy { no_network: true, allow_host_compat: true, ..Policy::default() }
}

macro_rules! for_each {
    ($($Request:ident)+) => {
        /// The table's classes decide, whichever tool asks.
        #[tokio::test]
        async fn each_operation_is_held_to_its_class_of_access() {
            $({
                let info = $Request::INFO;
                let (done, asked) = attempt(closed(), some::<$Request>()).await;
                match info.access {
                    Access::HostFiles | Access::Operate => {
                        assert!(matches!(done, Err(Failure::NotAllowed(_))), "{}", info.name);
                        assert!(asked.is_empty(), "{asked:?}");
                    }
                    Access::Enter | Access::ReadInside => {
                        let Err(Failure::NotAllowed(why)) = done else { panic!("{} is let in", info.name) };
                        assert!(why.ends_with("cannot be used on this server: it has a network"), "{why}");
                        assert!(matches!(asked[..], ["status_vm" | "status_task"]), "{asked:?}");
                    }
                    Access::Read | Access::Create | Access::Manage => assert_eq!(asked, [info.name]),
                }
                let (done, asked) = attempt(Policy { read_only: true, ..closed() }, some::<$Request>()).await;
                if !info.access.reads_only() {
                    assert!(matches!(done, Err(Failure::NotAllowed(_))), "{}", info.name);
                    assert!(asked.is_empty(), "{asked:?}");
                }
                let open = Policy { allow_host_compat: true, ..Policy::default() };
                let (_, asked) = attempt(open, some::<$Request>()).await;
                match info.access {
                    Access::HostFiles | Access::Operate => assert!(asked.is_empty(), "{asked:?}"),
                    Access::Enter | Access::ReadInside => assert_eq!(asked[1..], [info.name]),
                    Access::Read | Access::Create | Access::Manage => assert_eq!(asked, [info.name]),
                }
            })+
        }
    };
}

pyro_api::for_each_operation!(for_each);

fn limited() -> Policy {
    Policy {
        environments: vec!["debian:12".to_owned()],
        no_network: true,
        allow_host_compat: false,
        max_vcpu_count: Some(2),
        max_mem_mib: Some(1024),
        max_disk_mib: Some(8192),
        max_ttl_seconds: Some(600),
        ..Policy::default()
    }
}

/// Each parameter at its limit, and beyond it.
fn limits() -> [(&'static str, Value, Value); 8] {
    [
        ("environment", json!("debian:12"), json!("debian:12-build")),
        ("vcpu_count", json!(2), json!(3)),
        ("mem_mib", json!(1024), json!(1025)),
        ("ttl_seconds", json!(600), json!(601)),
        ("timeout_seconds", json!(600), json!(601)),
        ("disk_mib", json!(8192), json!(8193)),
        ("network", json!(false), json!(true)),
        ("allow_host_compat", json!(false), json!(true)),
    ]
}

macro_rules! beyond_limits {
    ($($Request:ident)+) => {
        /// No tool is involved: the request alone decides.
        #[tokio::test]
        async fn what_asks_for_more_than_a_limit_is_rejected_by_the_guard_alone() {
            let mut rejected = Vec::new();
            $(
                let name = $Request::INFO.name;
                for (parameter, within, beyond) in limits() {
                    let has_it = $Request::parameter_names().iter().any(|known| known == parameter);
                    // A watch uses nothing.
                    let is_wait = parameter == "timeout_seconds" && name == "watch_task_files";
                    if !has_it || is_wait || $Request::INFO.access == Access::Operate {
                        continue;
                    }
                    let request = with::<$Request>(json!({ parameter: within }));
                    let (_, asked) = attempt(limited(), request).await;
                    // A request that enters a machine gets as far as the check of the machine.
                    let is_taken = match $Request::INFO.access.enters() {
                        true => matches!(asked[..], ["status_vm" | "status_task"]),
                        false => asked == [name],
                    };
                    assert!(is_taken, "{name} {parameter}: {asked:?}");
                    let request = with::<$Request>(json!({ parameter: beyond }));
                    let (done, asked) = attempt(limited(), request).await;
                    assert!(matches!(done, Err(Failure::NotAllowed(_))), "{name} {parameter}: {done:?}");
                    assert!(asked.is_empty(), "{asked:?}");
                    rejected.push(format!("{name} {parameter}"));
                }
            )+
            let creates = |name: &str| limits().map(|(parameter, ..)| format!("{name} {parameter}"));
            let mut expected = vec!["inspect_environment environment".to_owned()];
            for name in ["create_vm", "run_in_vm", "create_task"] {
                expected.extend(creates(name).into_iter().filter(|row| {
                    (name == "create_task" || !row.ends_with(" disk_mib"))
                        && (name == "run_in_vm" || !row.ends_with(" timeout_seconds"))
                }));
            }
            expected.push("extend_task ttl_seconds".to_owned());
            for name in ["exec_vm", "exec_task", "detach_task"] {
                expected.push(format!("{name} timeout_seconds"));
            }
            rejected.sort();
            expected.sort();
            assert_eq!(rejected, expected);
        }
    };
}

pyro_api::for_each_operation!(beyond_limits);

#[tokio::test]
async fn the_default_size_of_a_disk_is_held_to_the_limit_too() {
    let policy = Policy { max_disk_mib: Some(4096), ..limited() };
    let (done, asked) = attempt(policy, some::<CreateTask>()).await;
    let refused = "disk_mib must be at most 4096 on this server, not 8192";
    assert!(matches!(done, Err(Failure::NotAllowed(why)) if why == refused));
    assert!(asked.is_empty(), "{asked:?}");
}

#[tokio::test]
async fn no_client_publishes_ports() {
    let request = with::<CreateTask>(json!({ "publish": ["0:80"] }));
    let (done, asked) = attempt(Policy { allow_host_compat: true, ..Policy::default() }, request).await;
    assert!(matches!(done, Err(Failure::NotAllowed(why)) if why == "publish is turned off on this server"));
    assert!(asked.is_empty(), "{asked:?}");
    let request = with::<StartTaskService>(json!({ "publish": ["0:80"] }));
    let (done, asked) = attempt(Policy { allow_host_compat: true, ..Policy::default() }, request).await;
    assert!(matches!(done, Err(Failure::NotAllowed(why)) if why == "publish is turned off on this server"));
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn the_names_of_machines_are_found() {
    let vm = StartVm { vm: VmName::from("x") };
    assert_eq!(vm.target(), Some(Target { kind: Kind::Vm, id: "x" }));
    let task = StartTask { task: TaskName::from("y") };
    assert_eq!(task.target(), Some(Target { kind: Kind::Task, id: "y" }));
}
