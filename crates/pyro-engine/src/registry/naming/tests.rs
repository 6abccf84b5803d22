use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::limits::Sizing;
use crate::registry::NewVm;
use crate::{Naming, TtlFrom, Visibility};

fn client(name: &str, visibility: Visibility) -> Caller {
    Caller::Client { name: name.parse().unwrap(), visibility }
}

fn new(id: &str, name: Option<&str>, owner: Option<&str>) -> NewVm {
    NewVm {
        vm_id: VmId::parse(id).unwrap(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at: 1.0,
        kind: Kind::Task,
        ephemeral: false,
        disk_mib: None,
        network: None,
        mounts: Vec::new(),
        ports: Vec::new(),
        host_choice: Default::default(),
        host_access: crate::HostAccess::Denied,
        metadata: BTreeMap::new(),
        naming: Naming { name: name.map(str::to_owned), labels: BTreeMap::new() },
        ttl_from: TtlFrom::Create,
        owner: owner.map(|owner| owner.parse().unwrap()),
    }
}

fn with_tasks() -> (TempDir, Registry) {
    let directory = TempDir::new().unwrap();
    let registry = Registry::new(directory.path());
    for task in [
        new("abc000000001", Some("web"), None),
        new("abc000000002", None, None),
        new("abd000000003", Some("web"), Some("a")),
        new("fff000000004", Some("web"), Some("b")),
        NewVm { kind: Kind::Vm, ..new("aba000000005", None, None) },
    ] {
        registry.insert(&task, 100).unwrap();
    }
    (directory, registry)
}

fn resolved(registry: &Registry, caller: &Caller, text: &str) -> String {
    match registry.resolve(caller, text) {
        Ok(id) => id.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_text_stands_for_at_most_one_task_that_the_caller_finds() {
    let (_directory, registry) = with_tasks();
    let (a, b) = (client("a", Visibility::Own), client("b", Visibility::All));
    let operator = Caller::Operator;
    for (caller, text, expected) in [
        // The first digits of an id; VMs are not considered.
        (&operator, "abd", "abd000000003"),
        (&operator, "abc00000000", "'abc00000000' stands for several tasks: abc000000001, abc000000002"),
        (&operator, "aba", "task 'aba' does not exist"),
        (&a, "ab", "task 'ab' does not exist"),
        (&a, "abd", "abd000000003"),
        (&a, "abc", "task 'abc' does not exist"),
        // A name: the caller's own task first.
        (&operator, "web", "abc000000001"),
        (&a, "web", "abd000000003"),
        (&b, "web", "fff000000004"),
        (&operator, "Web", "task 'Web' does not exist"),
        (&operator, "we", "task 'we' does not exist"),
        (&operator, "%", "task '%' does not exist"),
        (&operator, "", "task '' does not exist"),
    ] {
        assert_eq!(resolved(&registry, caller, text), expected, "{caller:?} {text}");
    }
    let c = client("c", Visibility::All);
    let several = "'web' stands for several tasks: abc000000001, abd000000003, fff000000004";
    assert_eq!(resolved(&registry, &c, "web"), several);
    assert_eq!(registry.resolve(&c, "web").unwrap_err().kind, ErrorKind::InvalidInput);
}

#[test]
fn a_name_belongs_to_one_task_of_its_owner() {
    let (_directory, registry) = with_tasks();
    let taken = "task name 'web' is in use by task abc000000001";
    let error = registry.insert(&new("000000000006", Some("web"), None), 100).unwrap_err();
    assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::WrongState, taken));
    assert_eq!(registry.check_name(None, "web").unwrap_err().to_string(), taken);
    registry.check_name(Some(&"c".parse().unwrap()), "web").unwrap();
    let other = VmId::parse("abc000000002").unwrap();
    let named = |name: &str| TaskChanges { name: Some(name.to_owned()), ..TaskChanges::default() };
    assert_eq!(registry.update(&other, &named("web")).unwrap_err().to_string(), taken);
    let first = VmId::parse("abc000000001").unwrap();
    registry.update(&first, &named("web")).unwrap();
    registry.update(&first, &named("")).unwrap();
    registry.update(&other, &named("web")).unwrap();
    assert_eq!(resolved(&registry, &Caller::Operator, "web"), "abc000000002");
    registry.delete(&other).unwrap();
    registry.insert(&new("000000000006", Some("web"), None), 100).unwrap();
}

#[test]
fn labels_are_added_replaced_and_removed() {
    let (_directory, registry) = with_tasks();
    let id = VmId::parse("abc000000001").unwrap();
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let change = |set: &[(&str, &str)], remove: &[&str]| TaskChanges {
        labels: labels(set),
        remove_labels: remove.iter().map(ToString::to_string).collect(),
        ..TaskChanges::default()
    };
    registry.update(&id, &change(&[("a", "1"), ("b", "2")], &[])).unwrap();
    let use_it = TaskChanges { ttl_from: Some(TtlFrom::Use), ..change(&[("a", "3")], &["b", "x"]) };
    registry.update(&id, &use_it).unwrap();
    let record = registry.get(Kind::Task, &id).unwrap();
    assert_eq!((record.labels, record.ttl_from), (labels(&[("a", "3")]), TtlFrom::Use));
    assert_eq!(record.name.as_deref(), Some("web"));
    let many: Vec<String> = (0..32).map(|number| format!("k{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
    let error = registry.update(&id, &change(&many, &[])).unwrap_err();
    assert_eq!(error.to_string(), "too many labels: a task has at most 32");
    assert_eq!(registry.get(Kind::Task, &id).unwrap().labels, labels(&[("a", "3")]));
}

#[test]
fn a_task_of_an_earlier_version_has_no_name_and_no_labels() {
    let (directory, registry) = with_tasks();
    drop(registry);
    let other = rusqlite::Connection::open(directory.path().join("state.sqlite3")).unwrap();
    other
        .execute_batch(
            "DROP TABLE services; DROP INDEX vms_names; ALTER TABLE vms DROP COLUMN name; ALTER TABLE vms DROP COLUMN labels;
             ALTER TABLE vms DROP COLUMN ttl_from; ALTER TABLE vms DROP COLUMN mounts; PRAGMA user_version = 6",
        )
        .unwrap();
    drop(other);
    let registry = Registry::new(directory.path());
    let record = registry.get(Kind::Task, &VmId::parse("abc000000001").unwrap()).unwrap();
    assert_eq!((record.name, record.labels.len(), record.ttl_from), (None, 0, TtlFrom::Create));
    registry.check_name(None, "web").unwrap();
}
