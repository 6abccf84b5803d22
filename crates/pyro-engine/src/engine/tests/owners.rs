//! What one client creates does not exist for another, whichever operation asks.

use pyro_api::operations::*;
use pyro_api::{Caller, Operation, Visibility};
use serde_json::json;

use super::*;
use crate::{CallContext, Error, ErrorKind};

fn engine(root: &Path) -> Engine {
    let config = Config::new(root.join("state"), root.join("cache"), root.join("pyro"));
    Engine::new(Config { max_active_vms: 100, ..config })
}

fn client(name: &str, visibility: Visibility) -> Caller {
    Caller::Client { name: name.parse().unwrap(), visibility }
}

fn new(number: u32, kind: Kind) -> NewVm {
    NewVm {
        vm_id: VmId::parse(&format!("{number:012x}")).unwrap(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at: crate::clock::now(),
        kind,
        ephemeral: false,
        disk_mib: None,
        network: None,
        mounts: Vec::new(),
        ports: Vec::new(),
        host_choice: Default::default(),
        host_access: HostAccess::Denied,
        metadata: BTreeMap::new(),
        naming: Default::default(),
        ttl_from: Default::default(),
        owner: None,
    }
}

/// Records what client `name` has created.
async fn create(engine: &Engine, name: &str, vm: NewVm) -> VmId {
    let record = engine.on_behalf_of(&client(name, Visibility::Own)).insert(vm).await.unwrap();
    assert_eq!(record.owner.as_deref(), Some(name));
    record.vm_id
}

/// VMs and tasks of client `a` in every condition that operations tell apart.
async fn some_of_each(engine: &Engine) -> Vec<VmId> {
    let registry = &engine.shared.registry;
    let mut ids = Vec::new();
    for kind in [Kind::Vm, Kind::Task] {
        for condition in ["created", "started", "on host", "stopped", "damaged", "tombstone"] {
            let id = create(engine, "a", new(ids.len() as u32 + 1, kind)).await;
            match condition {
                "started" => drop(registry.set_started(&id, &VmPatch::default()).unwrap()),
                "on host" => {
                    let mode = Some(ExecutionMode::HostCompat);
                    let patch = VmPatch { execution_mode: mode, ..VmPatch::default() };
                    registry.set_started(&id, &patch).unwrap();
                }
                "stopped" => {
                    registry.set_started(&id, &VmPatch::default()).unwrap();
                    registry.mark_stopped(&id, StopReason::GuestEnded, Some("a secret")).unwrap();
                }
                "damaged" => {
                    let file = crate::state_dir::registry(&engine.config().base_dir);
                    let other = rusqlite::Connection::open(file).unwrap();
                    other.execute("UPDATE vms SET state = 'flying' WHERE vm_id = ?1", [id.as_str()]).unwrap();
                }
                "tombstone" => drop(registry.mark_expired(&id, 1.0).unwrap()),
                _ => {}
            }
            ids.push(id);
        }
    }
    ids
}

/// The error of an operation on `id` for a caller.
async fn refusal<O: Operation>(engine: &Engine, caller: &Caller, id: &VmId) -> Option<Error> {
    let mut all = json!({
        "vm_id": id, "task_id": id, "command": "true", "sequence": 1, "path": "x", "target": "/x", "source": "/x",
        "content": "x", "destination": "y", "ttl_seconds": 600, "mapping": "0:80", "host_port": 80, "shell_id": 1,
        "signal": "INT", "name": "web", "host": "/x", "guest": "/x",
    });
    let given = all.as_object_mut().unwrap();
    given.retain(|name, _| O::parameter_names().contains(name));
    let request = O::read(given).ok().filter(|request| request.target().is_some())?;
    let call = CallContext { caller: caller.clone(), ..CallContext::default() };
    Some(request.perform(engine, &call).await.err().unwrap())
}

macro_rules! each_operation {
    ($($Request:ident)+) => {
        #[tokio::test]
        async fn what_is_not_ones_own_is_answered_like_an_id_that_does_not_exist() {
            let root = TempDir::new().unwrap();
            let engine = engine(root.path());
            let ids = some_of_each(&engine).await;
            let unknown = VmId::parse("ffffffffffff").unwrap();
            $(
                for caller in [client("b", Visibility::Own), client("a.b", Visibility::Own)] {
                    let expected = refusal::<$Request>(&engine, &caller, &unknown).await;
                    for id in &ids {
                        let error = refusal::<$Request>(&engine, &caller, id).await;
                        let error = error.map(|error| format!("{error:?}").replace(id.as_str(), unknown.as_str()));
                        assert_eq!(error, expected.as_ref().map(|error| format!("{error:?}")), "{id}");
                    }
                    let names_one = |name: &str| $Request::parameter_names().iter().any(|known| known == name);
                    let expected = expected.map(|error| error.kind);
                    let is_concerned = names_one("vm_id") || names_one("task_id");
                    assert_eq!(expected, is_concerned.then_some(ErrorKind::NotFound), "{}", $Request::INFO.name);
                }
            )+
            // Nothing has changed for their owner.
            assert_eq!(engine.shared.registry.ids().unwrap().len(), ids.len() - 1);
        }
    };
}

pyro_api::for_each_operation!(each_operation);

#[tokio::test]
async fn lists_show_what_the_caller_may_find() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    let task = |number| NewVm { kind: Kind::Task, ..new(number, Kind::Task) };
    let of_a = create(&engine, "a", task(1)).await;
    let of_b = create(&engine, "b", task(2)).await;
    let of_operator = engine.insert(task(3)).await.unwrap().vm_id;
    for id in [&of_a, &of_b, &of_operator] {
        engine.shared.registry.set_started(id, &VmPatch::default()).unwrap();
    }
    let listed = async |caller: &Caller| -> Vec<VmId> {
        let list = engine.on_behalf_of(caller).list_tasks(Default::default()).await.unwrap();
        assert_eq!(list.count as usize, list.tasks.len() + list.damaged_task_ids.len());
        list.tasks.into_iter().map(|task| task.task_id).chain(list.damaged_task_ids).collect()
    };
    assert_eq!(listed(&client("a", Visibility::Own)).await, std::slice::from_ref(&of_a));
    assert_eq!(listed(&client("b", Visibility::Own)).await, std::slice::from_ref(&of_b));
    assert_eq!(listed(&client("c", Visibility::Own)).await, []);
    let everything = [of_a.clone(), of_b.clone(), of_operator.clone()];
    assert_eq!(listed(&client("c", Visibility::All)).await, everything);
    assert_eq!(listed(&Caller::Operator).await, everything);
    let file = crate::state_dir::registry(&engine.config().base_dir);
    rusqlite::Connection::open(file).unwrap().execute("UPDATE vms SET state = 'flying'", []).unwrap();
    assert_eq!(listed(&client("a", Visibility::Own)).await, [of_a]);
}

#[tokio::test]
async fn a_client_is_told_of_the_expiry_of_its_own_vms_only() {
    let root = TempDir::new().unwrap();
    let engine = engine(root.path());
    let of_a = create(&engine, "a", new(1, Kind::Vm)).await;
    let of_b = create(&engine, "b", new(2, Kind::Vm)).await;
    for id in [&of_a, &of_b] {
        engine.shared.registry.mark_expired(id, crate::clock::now()).unwrap();
    }
    let reaped = async |name| {
        let engine = engine.on_behalf_of(&client(name, Visibility::Own));
        engine.reap_expired().await.unwrap().deleted_vm_ids
    };
    assert_eq!(reaped("a").await, [of_a]);
    assert_eq!(reaped("a").await, []);
    assert_eq!(reaped("b").await, [of_b]);
}
