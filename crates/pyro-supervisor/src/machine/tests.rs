//! Starts of VMs on a fake platform, with guests that follow the handshake.

use std::fs;
use std::rc::Rc;

use futures::{SinkExt, StreamExt};
use pyro_machine::fake::{FakeHandle, FakePlatform, Step, powered_off};
use pyro_machine::{Accelerator, Exit, GuestImage, GuestKernel, MachineConfig};
use pyro_wire::{Failure, FailureKind, Frame, FrameCodec, Hello, SetupReply};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::Framed;

use super::*;
use crate::spec::{Purpose, Retention};

struct Fixture {
    dir: tempfile::TempDir,
    platform: FakePlatform,
    tasks: LocalSet,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "modules", "layer-template"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("vm")).unwrap();
        Self { dir, platform: FakePlatform::new(), tasks: LocalSet::new() }
    }

    fn spec(&self) -> LaunchSpec {
        let path = |name: &str| self.dir.path().join(name);
        LaunchSpec {
            vm_id: "0123456789ab".to_owned(),
            dir: path("vm"),
            retention: Retention::Caller,
            is_new: false,
            in_use_lock: None,
            expires_at: f64::MAX,
            boot_limit_seconds: 30,
            vmm: pyro_machine::Vmm::Qemu,
            pace: crate::Pace::USUAL,
            reports_stages: false,
            machine: MachineConfig {
                vmm_program: "/none".into(),
                accelerator: Accelerator::Tcg,
                vcpu_count: 1,
                mem_mib: 1,
            },
            guest: GuestImage {
                digest: "digest".to_owned(),
                kernel: GuestKernel::WithModules {
                    image: path("kernel").into(),
                    modules: path("modules").into(),
                },
                base_image: "/none".into(),
                base_filesystem: "erofs".to_owned(),
                layer_template: path("layer-template"),
            },
            artifacts_are_open: false,
            template_dir: None,
            network: false,
            network_policy: Default::default(),
            host_settings: Default::default(),
            purpose: Purpose::Vm,
            requires_full_confinement: false,
            mounts: Vec::new(),
            mount_sockets: Default::default(),
            ports: Vec::new(),
            variables: Vec::new(),
        }
    }

    fn spec_with_template(&self) -> LaunchSpec {
        LaunchSpec { template_dir: Some(self.dir.path().join("templates")), ..self.spec() }
    }

    /// Starts a VM while `guests` does for its machines what guests do.
    async fn boot(
        &self,
        spec: &LaunchSpec,
        guests: impl AsyncFn(FakeHandle) + 'static,
    ) -> Result<(BootInfo, FakeMachine), BootFailure> {
        let platform = self.platform.clone();
        let serving = self.tasks.spawn_local(async move {
            let guests = Rc::new(guests);
            loop {
                let handle = platform.launched().await;
                let guests = Rc::clone(&guests);
                tokio::task::spawn_local(async move { guests(handle).await });
            }
        });
        let booted = self.tasks.run_until(boot(spec, &self.platform, &self.tasks, Rc::new(drop))).await;
        serving.abort();
        booted.map(|running| (running.info, running.machine))
    }

    fn templates(&self) -> usize {
        let entries = fs::read_dir(self.dir.path().join("templates")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
    }
}

type FakeMachine = <FakePlatform as Platform>::Machine;

/// A guest that follows the handshake and then only keeps its channel open.
async fn good_guest(handle: FakeHandle) {
    let mut stream = Framed::new(handle.take_guest().unwrap(), FrameCodec::<Value, Value>::default());
    let done = || Frame::Control(serde_json::to_value(SetupReply::Done).unwrap());
    if matches!(handle.launch().start, Start::Kernel { .. }) {
        let hello = Hello {
            generation: GENERATION,
            agent_version: "0".to_owned(),
            kernel_release: "6.1-fake".to_owned(),
        };
        stream.send(Frame::Control(json!(hello))).await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.send(done()).await.unwrap();
    }
    // A machine that is made to be saved ends here.
    let Some(Ok(Frame::Control(bootstrap))) = stream.next().await else { return };
    assert_eq!(bootstrap["hostname"], "pyro-0123456789ab");
    assert_eq!(bootstrap["network"].is_null(), handle.launch().network.is_none());
    stream.send(done()).await.unwrap();
    let _ = stream.into_inner().read(&mut [0]).await;
}

fn names(info: &BootInfo) -> Vec<&'static str> {
    info.stages.iter().map(|time| time.stage.name()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_machine_boots_its_kernel() {
    let fixture = Fixture::new();
    let spec = LaunchSpec { network: true, ..fixture.spec() };
    let (info, mut machine) = fixture.boot(&spec, good_guest).await.unwrap();
    assert_eq!((info.start_mode, &*info.kernel_release), (StartMode::Cold, "6.1-fake"));
    assert_eq!(names(&info), ["disks", "network", "disks", "vmm", "kernel", "guest", "identity"]);
    assert_eq!(info.network.unwrap().subnet(), "10.0.2.0/24");
    assert_eq!(fs::read(spec.dir.join(files::LAYER)).unwrap(), b"layer-template");
    assert!(machine.take_channel().is_none(), "the guest's streams use it");
}

#[tokio::test(start_paused = true)]
async fn a_template_is_made_once_and_used_from_then_on() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
    assert_eq!((info.start_mode, info.warning), (StartMode::Template, None));
    assert_eq!((fixture.platform.launches(), fixture.templates()), (2, 1));

    fs::remove_file(spec.dir.join(files::LAYER)).unwrap();
    let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
    assert_eq!(names(&info), ["disks", "vmm", "restore", "identity"]);
    assert_eq!(fixture.platform.launches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_template_that_cannot_be_restored_is_discarded_and_the_kernel_boots() {
    let fixture = Fixture::new();
    let refused = MachineError::Refused { command: "load".to_owned(), reason: "damaged".to_owned() };
    fixture.platform.fail_restore(refused);
    let (info, _machine) = fixture.boot(&fixture.spec_with_template(), good_guest).await.unwrap();
    assert_eq!(info.start_mode, StartMode::Cold);
    assert_eq!(info.warning.as_deref(), Some("the VMM refused load: damaged"));
    assert_eq!(fixture.templates(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_network_that_fails_says_nothing_about_the_template() {
    let fixture = Fixture::new();
    let spec = LaunchSpec { network: true, ..fixture.spec_with_template() };
    fixture.platform.hold(Step::Restore);
    let guests = async |handle: FakeHandle| {
        if matches!(handle.launch().start, Start::Saved { .. }) {
            let (status, messages) = ("exit status: 1".to_owned(), "no route".to_owned());
            handle.fail_network(NetworkError::Ended { status, messages });
        }
        good_guest(handle).await;
    };
    let (info, _machine) = fixture.boot(&spec, guests).await.unwrap();
    assert_eq!(info.start_mode, StartMode::Cold);
    assert_eq!(info.warning.as_deref(), Some("the network process ended (exit status: 1): no route"));
    assert_eq!(fixture.templates(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_template_that_could_not_be_saved_is_not_tried_again_at_once() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    fixture.platform.fail_save(MachineError::NotSaved { status: "failed".to_owned() });
    for launches in [2, 3] {
        let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
        assert_eq!(info.warning.as_deref(), Some("the VMM could not save its state: failed"));
        assert_eq!(fixture.platform.launches(), launches);
        fs::remove_file(spec.dir.join(files::LAYER)).unwrap();
    }
    assert_eq!(fixture.templates(), 0);
}

/// Only the guests that are to be saved hang.
#[tokio::test(start_paused = true)]
async fn a_template_that_hangs_is_given_up_and_the_kernel_boots() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    let guests = async |handle: FakeHandle| match handle.launch().start {
        Start::Kernel { save_in: Some(_) } => drop(handle.until_ended().await),
        _ => good_guest(handle).await,
    };
    let (info, _machine) = fixture.boot(&spec, guests).await.unwrap();
    let warning = "timed out after 15 seconds waiting for the template";
    assert_eq!((info.start_mode, info.warning.as_deref()), (StartMode::Cold, Some(warning)));
    assert_eq!((fixture.platform.launches(), fixture.templates()), (2, 0));
    // The next start does not try it again.
    fs::remove_file(spec.dir.join(files::LAYER)).unwrap();
    let (info, _machine) = fixture.boot(&spec, guests).await.unwrap();
    assert_eq!((info.start_mode, info.warning.as_deref()), (StartMode::Cold, Some(warning)));
    assert_eq!(fixture.platform.launches(), 3);
}

/// Only the guests that were saved hang.
#[tokio::test(start_paused = true)]
async fn a_template_whose_guests_hang_is_discarded_and_the_kernel_boots() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    let guests = async |handle: FakeHandle| match handle.launch().start {
        Start::Saved { .. } => drop(handle.until_ended().await),
        Start::Kernel { .. } => good_guest(handle).await,
    };
    let warning = "timed out after 15 seconds waiting for the guest that was started from the template";
    // The second start does not try it again.
    for launches in [3, 4] {
        let (info, _machine) = fixture.boot(&spec, guests).await.unwrap();
        assert_eq!((info.start_mode, info.warning.as_deref()), (StartMode::Cold, Some(warning)));
        assert_eq!((fixture.platform.launches(), fixture.templates()), (launches, 0));
        fs::remove_file(spec.dir.join(files::LAYER)).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_process_that_makes_the_template_does_not_keep_others_from_starting() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    let dir = spec.template_dir.clone().unwrap();
    let store = Store::open(&dir, &spec.subject(), &fixture.platform).await.unwrap();
    let Begun::Partial(frozen) = store.begin(0).await.unwrap() else { panic!("nothing was made") };
    let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
    let warning = "timed out after 15 seconds waiting for the template";
    assert_eq!((info.start_mode, info.warning.as_deref()), (StartMode::Cold, Some(warning)));
    assert_eq!(fixture.platform.launches(), 1);
    drop(frozen);
}

#[tokio::test(start_paused = true)]
async fn a_layer_from_an_earlier_start_keeps_its_content_and_the_kernel_boots() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    fs::write(spec.dir.join(files::LAYER), "work").unwrap();
    let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
    assert_eq!((info.start_mode, info.warning), (StartMode::Cold, None));
    assert_eq!(fs::read(spec.dir.join(files::LAYER)).unwrap(), b"work");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_while_it_boots_is_the_reason() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        handle.print("Kernel panic - not syncing: no init\n");
        handle.exit(powered_off());
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!(failure.stage, BootStage::Kernel);
    assert!(failure.cause.starts_with("the VMM ended: exit status: 0"), "{}", failure.cause);
    assert_eq!(failure.console, ["Kernel panic - not syncing: no init"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_its_vmm_pauses_is_the_reason_why_there_is_no_template() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        handle.exit(Exit::Paused { cause: "internal error".to_owned() });
    };
    let reason = "the VMM paused the machine: internal error";
    let spec = fixture.spec_with_template();
    let failure = fixture.boot(&spec, guests).await.unwrap_err();
    assert_eq!((failure.stage, &*failure.cause), (BootStage::Kernel, reason));
    let platform = FakePlatform::new();
    let store = Store::open(&spec.template_dir.clone().unwrap(), &spec.subject(), &platform).await.unwrap();
    assert_eq!(store.recent_failure().as_deref(), Some(reason));
}

#[tokio::test(start_paused = true)]
async fn the_steps_are_reported_when_they_begin_and_every_few_seconds() {
    let fixture = Fixture::new();
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let platform = fixture.platform.clone();
    fixture.tasks.spawn_local(async move {
        let handle = platform.launched().await;
        tokio::time::sleep(Duration::from_secs(12)).await;
        good_guest(handle).await;
    });
    let reporter = Rc::new(move |stage: BootStage| sender.send(stage.name()).unwrap());
    let spec = fixture.spec();
    let booting = boot(&spec, &fixture.platform, &fixture.tasks, reporter);
    fixture.tasks.run_until(booting).await.unwrap();
    let mut reported = Vec::new();
    while let Ok(name) = reports.try_recv() {
        reported.push(name);
    }
    assert_eq!(reported, ["disks", "vmm", "kernel", "kernel", "kernel", "guest", "identity"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_prints_something_has_more_time_but_not_forever() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| loop {
        tokio::time::sleep(Duration::from_secs(20)).await;
        handle.print("waiting for a disk\n");
    };
    let begun = tokio::time::Instant::now();
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!((&*failure.cause, failure.timed_out), ("not done after 120 seconds", true));
    assert_eq!(begun.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn without_what_carries_its_network_nothing_is_launched() {
    let fixture = Fixture::new();
    let spec = LaunchSpec { network: true, ..fixture.spec() };
    fixture.platform.fail_network(NetworkError::NoHelper);
    let failure = fixture.boot(&spec, good_guest).await.unwrap_err();
    assert_eq!(failure.stage, BootStage::Network);
    assert!(failure.cause == "no network process was configured", "{}", failure.cause);
    assert_eq!(fixture.platform.launches(), 0);
    assert!(!spec.dir.join(files::LAYER).exists());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_is_quoted() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        let mut stream = Framed::new(handle.take_guest().unwrap(), FrameCodec::<Value, Value>::default());
        let (agent_version, kernel_release) = ("0".to_owned(), "6.1".to_owned());
        let hello = Hello { generation: GENERATION, agent_version, kernel_release };
        stream.send(Frame::Control(json!(hello))).await.unwrap();
        stream.next().await.unwrap().unwrap();
        let (step, cause) = ("mounting".to_owned(), "no disk".to_owned());
        let failed = SetupReply::Failed(Failure { kind: FailureKind::Other, step, cause, errno: None });
        stream.send(Frame::Control(json!(failed))).await.unwrap();
        handle.until_ended().await;
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!(failure.stage, BootStage::Guest);
    assert_eq!(failure.cause, "the guest failed at mounting: no disk");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_is_given_up_and_its_machine_killed() {
    let fixture = Fixture::new();
    let (ended, was_ended) = tokio::sync::oneshot::channel();
    let ended = std::cell::Cell::new(Some(ended));
    let guests = async move |handle: FakeHandle| {
        handle.until_ended().await;
        let _ = ended.take().unwrap().send(());
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!((failure.stage, &*failure.cause), (BootStage::Kernel, "not done after 30 seconds"));
    fixture.tasks.run_until(was_ended).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_template_is_made_alone_unless_it_exists() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    let platform = fixture.platform.clone();
    fixture.tasks.spawn_local(async move {
        loop {
            tokio::task::spawn_local(good_guest(platform.launched().await));
        }
    });
    for _ in 0..2 {
        let making = make_template(&spec, &fixture.platform, &fixture.tasks, Rc::new(drop));
        fixture.tasks.run_until(making).await.unwrap();
        assert_eq!((fixture.platform.launches(), fixture.templates()), (1, 1));
    }
    let failure =
        make_template(&fixture.spec(), &fixture.platform, &fixture.tasks, Rc::new(drop)).await.unwrap_err();
    assert_eq!(failure.cause, "this host has no templates");
}

#[tokio::test(start_paused = true)]
async fn without_a_place_for_templates_the_kernel_boots() {
    let fixture = Fixture::new();
    let spec = fixture.spec_with_template();
    fs::write(fixture.dir.path().join("templates"), "not a directory").unwrap();
    let (info, _machine) = fixture.boot(&spec, good_guest).await.unwrap();
    assert_eq!(info.start_mode, StartMode::Cold);
    assert!(info.warning.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_guest_of_another_generation_is_not_set_up() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        let mut stream = Framed::new(handle.take_guest().unwrap(), FrameCodec::<Value, Value>::default());
        let (agent_version, kernel_release) = ("0".to_owned(), "6.1".to_owned());
        let hello = Hello { generation: GENERATION + 1, agent_version, kernel_release };
        stream.send(Frame::Control(json!(hello))).await.unwrap();
        handle.until_ended().await;
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!(failure.stage, BootStage::Kernel);
    let (theirs, ours) = (GENERATION + 1, GENERATION);
    let cause =
        format!("the guest uses generation {theirs} of the protocol; this program uses generation {ours}");
    assert_eq!(failure.cause, cause);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_breaks_the_handshake_is_given_up_at_once() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        let mut stream = Framed::new(handle.take_guest().unwrap(), FrameCodec::<Value, Value>::default());
        let output = Frame::Output(pyro_wire::OutputStream::Stdout, "x".into());
        stream.send(output).await.unwrap();
        handle.until_ended().await;
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!(
        (failure.stage, &*failure.cause),
        (BootStage::Kernel, "unexpected message from the guest agent")
    );

    let guests = async |handle: FakeHandle| {
        handle.take_guest().unwrap().shutdown().await.unwrap();
        handle.until_ended().await;
    };
    let failure = fixture.boot(&fixture.spec(), guests).await.unwrap_err();
    assert_eq!((failure.stage, &*failure.cause), (BootStage::Kernel, "the guest closed the channel"));
}

#[tokio::test(start_paused = true)]
async fn a_template_whose_guest_does_not_take_its_identity_is_discarded() {
    let fixture = Fixture::new();
    let guests = async |handle: FakeHandle| {
        if matches!(handle.launch().start, Start::Saved { .. }) {
            handle.take_guest().unwrap().shutdown().await.unwrap();
            handle.until_ended().await;
        } else {
            good_guest(handle).await;
        }
    };
    let (info, _machine) = fixture.boot(&fixture.spec_with_template(), guests).await.unwrap();
    assert_eq!(
        (info.start_mode, info.warning.as_deref()),
        (StartMode::Cold, Some("the guest closed the channel"))
    );
    assert_eq!(fixture.templates(), 0);
}
