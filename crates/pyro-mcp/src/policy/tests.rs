use pyro_api::operations::{CreateTask, ExtendTask, RunInVm};
use serde_json::json;

use super::*;

/// What a call goes on with, if the policy allows both the call and the request that its arguments make.
fn check(policy: &Policy, tool: Tool, given: Value) -> Result<Value, String> {
    let Value::Object(given) = given else { panic!("{given} is not an object") };
    let checked = || {
        let allowed = policy.allowed_arguments(tool, Arguments(given))?;
        let mut given = allowed.checked(tool.arguments())?;
        policy.apply_network_policy(&mut given)?;
        match tool {
            Tool::VmRun => policy.check(&given.request::<RunInVm>()?)?,
            Tool::TaskCreate => policy.check(&given.request::<CreateTask>()?)?,
            Tool::TaskExtend => policy.check(&given.request::<ExtendTask>()?)?,
            other => panic!("{other:?}"),
        }
        Ok(Value::Object(allowed.0))
    };
    match checked() {
        Ok(allowed) => Ok(allowed),
        Err(Failure::NotAllowed(sentence)) => Err(sentence),
        Err(Failure::Arguments(error)) => Err(error.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

fn strict() -> Policy {
    Policy {
        environments: vec!["debian:12".to_owned()],
        no_network: true,
        allow_host_compat: false,
        max_vcpu_count: Some(2),
        max_mem_mib: Some(512),
        max_disk_mib: Some(1024),
        max_ttl_seconds: Some(300),
        ..Policy::default()
    }
}

#[test]
fn what_is_beyond_a_limit_is_refused() {
    let policy = strict();
    let run = |argument: &str, value: Value| {
        let mut given = json!({ "environment": "debian:12", "command": "true" });
        given[argument] = value;
        check(&policy, Tool::VmRun, given).unwrap_err()
    };
    let refusals = [
        run("environment", json!("debian:12-build")),
        run("network", json!(true)),
        run("network", json!("true")),
        run("allow_host_compat", json!(true)),
        run("vcpu_count", json!(3)),
        run("mem_mib", json!("513")),
        run("ttl_seconds", json!(1e300)),
        run("timeout_seconds", json!(301)),
        check(&policy, Tool::TaskCreate, json!({ "environment": "debian:12", "disk_mib": 2048 }))
            .unwrap_err(),
        check(&policy, Tool::TaskExtend, json!({ "task_id": "x", "ttl_seconds": 301 })).unwrap_err(),
    ];
    insta::assert_snapshot!(refusals.join("\n"), @r"
    environment must be debian:12 on this server
    network is turned off on this server
    network is turned off on this server
    allow_host_compat is turned off on this server
    vcpu_count must be at most 2 on this server, not 3
    mem_mib must be at most 512 on this server, not 513
    ttl_seconds must be at most 300 on this server, not 9223372036854775807
    timeout_seconds must be at most 300 on this server, not 301
    disk_mib must be at most 1024 on this server, not 2048
    ttl_seconds must be at most 300 on this server, not 301
    ");
}

#[test]
fn a_default_beyond_a_limit_becomes_the_limit() {
    let given = json!({ "environment": "debian:12" });
    let checked = check(&strict(), Tool::TaskCreate, given.clone()).unwrap();
    let expected =
        json!({ "environment": "debian:12", "mem_mib": 512, "ttl_seconds": 300, "disk_mib": 1024 });
    assert_eq!(checked, expected);
    assert_eq!(check(&Policy::default(), Tool::TaskCreate, given.clone()).unwrap(), given);
    let properties = &strict().input_schema(Tool::TaskCreate)["properties"];
    let run = strict().input_schema(Tool::VmRun);
    let described = |name: &str| run["properties"][name]["description"].as_str().unwrap();
    assert!(described("mem_mib").ends_with("; default 512"), "{properties}");
    assert_eq!(properties["mem_mib"]["maximum"], 512);
    assert!(described("vcpu_count").ends_with("; default 1"), "{properties}");
    assert_eq!(properties["environment"]["enum"], json!(["debian:12"]));
    assert_eq!(described("network"), "Must be false on this server");
    let most = |tool: Tool, name: &str| strict().input_schema(tool)["properties"][name]["maximum"].as_i64();
    for tool in [Tool::VmRun, Tool::VmExec, Tool::TaskExec] {
        assert_eq!(most(tool, "timeout_seconds"), Some(300), "{tool:?}");
    }
    let timeout = strict().input_schema(Tool::TaskExec)["properties"]["timeout_seconds"].clone();
    let text = timeout["description"].as_str().unwrap();
    assert!(
        text.contains("at most what is left of the lifetime") && text.ends_with("; default 30"),
        "{text}"
    );
    assert_eq!(most(Tool::TaskWait, "timeout_seconds"), None, "a wait has no maximum of the operator");
}

#[test]
fn each_argument_is_described_where_a_client_first_meets_it() {
    for (profile, read_only) in [Profile::VmRun, Profile::Task, Profile::Full]
        .iter()
        .flat_map(|profile| [(*profile, false), (*profile, true)])
    {
        let policy = Policy { profile, read_only, ..Policy::default() };
        let mut known = std::collections::BTreeSet::new();
        for tool in policy.tools() {
            for (name, property) in policy.input_schema(tool)["properties"].as_object().unwrap() {
                let is_described = property.get("description").is_some();
                assert!(is_described || known.contains(name), "{tool:?} {name}, {profile:?}, {read_only}");
                known.insert(name.clone());
            }
        }
    }
    let read_only = Policy { read_only: true, ..Policy::default() };
    let described = |policy: &Policy, tool: Tool| {
        policy.input_schema(tool)["properties"]["task_id"].get("description").is_some()
    };
    assert!(described(&read_only, Tool::TaskStatus) && !described(&read_only, Tool::TaskLogs));
    assert!(
        described(&Policy::default(), Tool::TaskExec) && !described(&Policy::default(), Tool::TaskStatus)
    );
    // Many clients show a model only some of the tools.
    for tool in [Tool::VmRun, Tool::TaskCreate, Tool::TaskExec] {
        for (name, property) in Policy::default().input_schema(tool)["properties"].as_object().unwrap() {
            assert!(property.get("description").is_some(), "{tool:?} {name}");
        }
        assert!(!tool.description().contains("as for vm_run"), "{tool:?}");
    }
    let command = &Policy::default().input_schema(Tool::TaskExec)["properties"]["command"];
    assert!(command["description"].as_str().unwrap().contains("bash in debian:12-agent"), "{command}");
}

#[test]
fn machines_that_others_made_are_held_to_it() {
    let within = || Machine {
        name: "task x".to_owned(),
        environment: "debian:12".to_owned(),
        network_enabled: false,
        mounts: Vec::new(),
        host_proxy: false,
        network_policy: None,
        allow_host_compat: false,
        vcpu_count: 2,
        mem_mib: 512,
        ttl_seconds: 300,
        disk_mib: 1024,
    };
    assert!(strict().check_machine(&within()).is_ok());
    let beyond = [
        Machine { environment: "debian:12-base".to_owned(), ..within() },
        Machine { network_enabled: true, ..within() },
        Machine { host_proxy: true, ..within() },
        Machine { allow_host_compat: true, ..within() },
        Machine { vcpu_count: 3, ..within() },
        Machine { mem_mib: 513, ..within() },
        Machine { ttl_seconds: 301, ..within() },
        Machine { disk_mib: 1025, ..within() },
    ];
    for machine in beyond {
        assert!(matches!(strict().check_machine(&machine), Err(Failure::NotAllowed(_))));
        assert!(unlimited().check_machine(&machine).is_ok());
    }
}

fn network(policy: Value) -> NetworkPolicy {
    serde_json::from_value(policy).unwrap()
}

#[test]
fn a_call_can_only_narrow_what_its_guest_reaches() {
    let run = |policy: &Policy, given: Value| {
        let mut call = json!({ "environment": "debian:12", "command": "true" });
        call.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        check(policy, Tool::VmRun, call).map(drop)
    };
    let narrow = json!({ "network": true, "allow_domains": ["a.test"] });
    let wide = json!({ "network": true, "network_policy": { "allow_cidrs": ["127.0.0.0/8"] } });
    let default = Policy::default();
    assert_eq!(run(&default, narrow.clone()), Ok(()));
    assert_eq!(run(&default, wide), Ok(()), "an unknown argument is ignored");
    assert_eq!(
        run(&default, json!({ "allow_domains": ["a.test"] })),
        Err("`allow_domains` needs `network`".to_owned())
    );
    let pinned = Policy {
        network_policy: network(json!({ "egress": "allowlist", "allow_domains": ["*.b.test"] })),
        ..Policy::default()
    };
    assert_eq!(run(&pinned, json!({ "network": true })), Ok(()));
    assert_eq!(run(&pinned, json!({ "network": true, "allow_domains": ["x.b.test"] })), Ok(()));
    assert_eq!(run(&pinned, narrow), Err("allow_domains may not name a.test on this server".to_owned()));
}

#[test]
fn a_call_without_domains_gets_what_the_operator_allows() {
    let pinned = Policy {
        network_policy: network(json!({ "egress": "allowlist", "allow_hosts": ["db.test:5432"] })),
        ..Policy::default()
    };
    let mut given = Given(json!({ "network": true }).as_object().unwrap().clone());
    pinned.apply_network_policy(&mut given).unwrap();
    assert_eq!(network(given.0["network_policy"].clone()), pinned.network_policy);
    let mut none = Given(json!({ "network": false }).as_object().unwrap().clone());
    pinned.apply_network_policy(&mut none).unwrap();
    assert_eq!(none.0.get("network_policy"), None);
}

fn small_machine() -> Machine {
    Machine {
        name: "task x".to_owned(),
        environment: "debian:12".to_owned(),
        network_enabled: false,
        mounts: Vec::new(),
        host_proxy: false,
        network_policy: None,
        allow_host_compat: false,
        vcpu_count: 1,
        mem_mib: 512,
        ttl_seconds: 300,
        disk_mib: 0,
    }
}

fn allowing_mounts(roots: &[&str]) -> Policy {
    Policy { allow_mounts: roots.iter().map(|root| root.parse().unwrap()).collect(), ..Policy::default() }
}

#[test]
fn no_policy_lets_a_client_enter_a_machine_with_other_directories_mounted() {
    let allowing = allowing_mounts(&["/a", "/b:rw"]);
    let enter = |policy: &Policy, mounts: &[&str]| {
        let mounts = mounts.iter().map(|mount| mount.parse().unwrap()).collect();
        policy.check_machine(&Machine { mounts, ..small_machine() })
    };
    for allowed in [&[][..], &["/a/x:/x", "/b:/b:rw", "/b/y:/y"]] {
        assert!(enter(&allowing, allowed).is_ok(), "{allowed:?}");
    }
    for other in ["/ab:/x", "/secret:/x", "/a:/x:rw", "/:/x"] {
        for policy in [&allowing, &Policy::default()] {
            assert!(matches!(enter(policy, &["/b:/b", other]), Err(Failure::NotAllowed(_))), "{other}");
        }
    }
    let Err(Failure::NotAllowed(text)) = enter(&allowing, &["/a:/x:rw"]) else { panic!("it may enter") };
    insta::assert_snapshot!(text, @"task x cannot be used on this server: it has /a of this host mounted, writable");
}

#[test]
fn no_policy_lets_a_client_enter_a_machine_that_reaches_more() {
    let opened = Machine {
        network_enabled: true,
        network_policy: Some(network(json!({ "allow_cidrs": ["127.0.0.1/32"] }))),
        ..small_machine()
    };
    let Err(Failure::NotAllowed(text)) = Policy::default().check_machine(&opened) else {
        panic!("it may enter")
    };
    insta::assert_snapshot!(text, @"task x cannot be used on this server: its network reaches more than this server allows: allow_cidrs may not name 127.0.0.1/32");
}

fn unlimited() -> Policy {
    Policy { host_proxy: true, allow_host_compat: true, ..Policy::default() }
}

#[test]
fn nothing_runs_on_the_host_unless_the_operator_allows_it() {
    let asked = || json!({ "environment": "debian:12", "command": "true", "allow_host_compat": true });
    let refused = check(&Policy::default(), Tool::VmRun, asked()).unwrap_err();
    assert_eq!(refused, "allow_host_compat is turned off on this server");
    assert_eq!(check(&unlimited(), Tool::VmRun, asked()).unwrap(), asked());
    let declined = json!({ "environment": "debian:12", "command": "true", "allow_host_compat": false });
    assert_eq!(check(&Policy::default(), Tool::VmRun, declined.clone()).unwrap(), declined);
}

#[test]
fn profiles_are_sets_of_tools() {
    let names = |policy: Policy| policy.tools().map(Tool::name).collect::<Vec<_>>().join(" ");
    let profile = |profile, read_only| names(Policy { profile, read_only, ..Policy::default() });
    insta::assert_snapshot!([
        profile(Profile::VmRun, false),
        profile(Profile::VmRun, true),
        profile(Profile::Task, false),
        profile(Profile::Task, true),
        profile(Profile::Full, true),
    ].join("\n"), @r"
    vm_run vm_list_environments
    vm_list_environments
    vm_run vm_list_environments task_create task_exec task_status task_logs task_delete task_list task_wait task_kill task_start task_stop task_extend task_read_file task_write_file task_files task_change_files task_shell_open task_shell_read task_shell_write task_shell_signal task_shell_close task_service_start task_service_status task_service_logs task_service_stop
    vm_list_environments task_status task_logs task_list task_wait task_read_file task_files task_shell_read task_service_status task_service_logs
    vm_list_environments vm_status vm_network_info task_status task_logs task_list task_wait task_read_file task_files task_shell_read task_service_status task_service_logs
    ");
    assert_eq!(Policy::default().tools().count(), Tool::ALL.len());
    let policy = Policy { profile: Profile::VmRun, ..Policy::default() };
    assert_eq!(
        check(&policy, Tool::TaskList, json!({})).unwrap_err(),
        "this server does not offer task_list"
    );
}

#[test]
fn directories_of_the_host_are_mounted_only_where_the_operator_allows_them() {
    let allowing = allowing_mounts(&["/src:rw"]);
    for tool in [Tool::VmRun, Tool::VmCreate, Tool::TaskCreate] {
        let has_mounts = |policy: &Policy| policy.input_schema(tool)["properties"].get("mounts").is_some();
        assert!(has_mounts(&allowing) && !has_mounts(&Policy::default()), "{tool:?}");
    }
    let mounts = |texts: Value| {
        let mut given = Given([("mounts".to_owned(), texts)].into_iter().collect());
        allowing.apply_mounts(&mut given).map(|()| given.0["mounts"].clone())
    };
    assert_eq!(
        mounts(json!(["/src:/workspace:rw"])).unwrap(),
        json!([{ "host": "/src", "guest": "/workspace", "writable": true, "uid": 0 }])
    );
    assert!(mounts(json!(["/src"])).is_err());
    let mut spec = pyro_api::VmSpec::new("debian:12");
    spec.mounts = vec!["/src:/workspace".parse().unwrap()];
    let request = pyro_api::operations::CreateVm { spec };
    assert!(allowing.check(&request).is_ok());
    let refused = Policy::default().check(&request).unwrap_err();
    assert!(matches!(refused, Failure::NotAllowed(text) if text == "mounts is turned off on this server"));
}
