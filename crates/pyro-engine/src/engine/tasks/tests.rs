use std::collections::BTreeMap;
use std::ffi::OsString;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::*;
use crate::Config;
use crate::limits::Sizing;
use crate::registry::VmPatch;

fn engine(root: &Path) -> Engine {
    Engine::new(Config {
        base_dir: root.join("state"),
        cache_dir: root.join("cache"),
        max_active_vms: Config::DEFAULT_MAX_ACTIVE_VMS,
        warm_spares: 0,
        spare_idle_seconds: Config::DEFAULT_SPARE_IDLE_SECONDS,
        program: root.join("pyro"),
        accelerator: None,
        vmm_program: None,
        guest_kernel: None,
        debian_mirror: None,
        search_path: OsString::new(),
    })
}

/// Answers as supervisors did that know no generations: it closes a connection whose first frame it does not understand.
async fn serve_as_an_older_version(listener: UnixListener) {
    while let Ok((mut client, _)) = listener.accept().await {
        let _ = client.read(&mut [0; 64]).await;
    }
}

#[tokio::test]
async fn a_lifetime_that_the_supervisor_cannot_extend_stays_as_recorded() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path());
    let id = VmId::parse("0123456789ab").unwrap();
    let task = NewVm {
        vm_id: id.clone(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        sizing: Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 },
        created_at: now(),
        kind: Kind::Task,
        ephemeral: false,
        disk_mib: None,
        network_enabled: false,
        host_access: crate::HostAccess::Denied,
        metadata: BTreeMap::new(),
    };
    engine.registry(move |registry| registry.insert(&task, 4)).await.unwrap();
    let started = id.clone();
    engine.registry(move |registry| registry.set_started(&started, &VmPatch::default())).await.unwrap();
    let dir = engine.vm_dir(&id);
    fs::create_dir_all(&dir).unwrap();
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
