//! Starts, and what ends them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::*;
use crate::cgroup::tests::real_dir;
use crate::{Access, Syscalls, Visible};

/// `cat`, which ends when its standard input does, and the other end of that.
fn cat() -> (Program, io::PipeWriter) {
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
    let (input, writer) = io::pipe().unwrap();
    let program = Program {
        program: "/bin/cat".into(),
        arguments: Vec::new(),
        descriptors: vec![(input.into(), 0), (null().into(), 1), (null().into(), 2)],
        blocked_signals: Vec::new(),
        huge_pages: true,
    };
    (program, writer)
}

fn policy(files: impl IntoIterator<Item = Visible>) -> Policy {
    let libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
    let mut all: Vec<_> = libraries.map(|dir| Visible::optional(dir, Access::Execute)).into();
    all.push(Visible::new("/bin/cat", Access::Execute));
    all.extend(files);
    Policy {
        files: all,
        staging: "/usr".into(),
        identity: Identity::for_program(),
        syscalls: Syscalls::new().allow(&(0..462).collect::<Vec<_>>()),
        limits: Vec::new(),
        oom_score_adj: 0,
    }
}

#[test]
fn root_without_the_right_to_give_files_away_starts_programs_as_itself() {
    let layer = tempfile::NamedTempFile::new().unwrap();
    let policy = policy([Visible::new(layer.path(), Access::Write)]);
    let is_root = rustix::process::geteuid().is_root();
    // Capabilities are a thread's own.
    let started = thread::spawn(move || {
        let has = capabilities(None).unwrap();
        let sets = CapabilitySets { effective: has.effective - CapabilitySet::CHOWN, ..has };
        set_capabilities(None, sets).unwrap();
        let (program, input) = cat();
        let mut started = start(program, &policy).unwrap();
        drop(input);
        assert!(started.process.wait().unwrap().success());
        started.confinement
    });
    let confinement = started.join().unwrap();
    if let (true, Layer::Unavailable { reason }) = (is_root, &confinement.unprivileged_user) {
        assert!(reason.contains("cannot be given to another user"), "{reason}");
    }
    assert_eq!(confinement.unprivileged_user.is_active(), !is_root, "{confinement}");
    assert!(confinement.no_capabilities.is_active(), "{confinement}");
}

#[test]
fn a_program_sees_a_file_under_another_path_or_is_not_started() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "content").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let visible = Visible::new(file.path(), Access::Read).shown_at("/elsewhere/name");
    let policy = policy([visible]);
    assert!(policy.needs_own_root());
    let (mut program, _input) = cat();
    let (mut output, writer) = io::pipe().unwrap();
    program.arguments = vec!["/elsewhere/name".into()];
    program.descriptors[1] = (writer.into(), 1);
    let mut text = String::new();
    match start(program, &policy) {
        Ok(mut started) => {
            output.read_to_string(&mut text).unwrap();
            assert!(started.process.wait().unwrap().success());
            assert_eq!(text, "content");
            assert!(started.confinement.mount_namespace.is_active());
        }
        Err(StartError::NoRoot(_)) => {
            output.read_to_string(&mut text).unwrap();
            assert_eq!(text, "", "nothing was started");
        }
        Err(error) => panic!("{error}"),
    }
}

/// A child that waits to be set up, and the parent's ends of its connections.
fn waiting_child() -> (Process, io::PipeWriter, io::PipeReader) {
    waiting_child_in(None).unwrap()
}

/// The same in a control group.
fn waiting_child_in(group: Option<BorrowedFd<'_>>) -> io::Result<(Process, io::PipeWriter, io::PipeReader)> {
    let (program, _input) = cat();
    let Ok(plan) = Plan::new(&program, &policy([]), Identity::Caller) else { panic!("no plan") };
    let ((go_reader, go), (mut report, report_writer)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let connections = Connections {
        go: temporary(go_reader).unwrap(),
        report: temporary(report_writer).unwrap(),
        of_parent: [go.as_raw_fd(), report.as_raw_fd()],
    };
    let created = Created { user_namespace: false, mount_namespace: false };
    let process = create(&plan, created, &connections, 0, group)?;
    let Ok(Some(Record { subject: Subject::Ready, .. })) = record(&mut report) else {
        panic!("the child is not ready")
    };
    Ok((process, go, report))
}

fn has_ended_in_time(process: impl AsFd) -> bool {
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

#[test]
fn a_file_that_is_replaced_after_its_check_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("file"), dir.path().join("other"));
    fs::write(&file, "").unwrap();
    fs::write(&other, "").unwrap();
    let policy = policy([Visible::new(&file, Access::Read)]);
    let try_start = |change: &dyn Fn()| {
        let (program, input) = cat();
        drop(input);
        let Ok(plan) = Plan::new(&program, &policy, Identity::Caller) else { panic!("no plan") };
        change();
        attempt(&plan, Identity::Caller, libc::CLONE_NEWUSER | NAMESPACES)
    };
    match try_start(&|| {}) {
        Ok((mut process, _)) => assert!(process.wait().unwrap().success()),
        // Without namespaces, nothing is attached.
        Err(Attempt::Namespaces(_)) => return,
        Err(Attempt::Failed(error)) => panic!("{error}"),
    }
    let changes: [&dyn Fn(); 2] =
        [&|| fs::rename(&other, &file).unwrap(), &|| fs::remove_file(&file).unwrap()];
    for change in changes {
        let started = try_start(change);
        assert!(matches!(started, Err(Attempt::Failed(StartError::Replaced(_)))));
    }
}

/// Runs `cat` on a file of which `change` makes another one after it was opened; returns what it prints.
fn cat_after(change: impl Fn(&Path), namespaces: libc::c_int) -> Result<String, Attempt> {
    cat_planned(change, namespaces, |_| {})
}

/// Does the same, and has `adjust` change the plan.
fn cat_planned(
    change: impl Fn(&Path),
    namespaces: libc::c_int,
    adjust: impl FnOnce(&mut Plan),
) -> Result<String, Attempt> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "checked").unwrap();
    let opened = Arc::new(File::open(&file).unwrap());
    change(&file);
    let policy = policy([Visible::new(&file, Access::Read).opened(opened)]);
    let (mut program, input) = cat();
    drop(input);
    let (mut output, writer) = io::pipe().unwrap();
    program.arguments = vec![file.clone().into()];
    program.descriptors[1] = (writer.into(), 1);
    let Ok(mut plan) = Plan::new(&program, &policy, Identity::Caller) else { panic!("no plan") };
    adjust(&mut plan);
    drop(program);
    let started = attempt(&plan, Identity::Caller, namespaces);
    drop(plan);
    let (mut process, _) = started?;
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    process.wait().unwrap();
    Ok(text)
}

fn replace(file: &Path) {
    let other = file.with_extension("other");
    fs::write(&other, "another").unwrap();
    fs::rename(other, file).unwrap();
}

#[test]
fn a_file_that_was_opened_earlier_is_used_or_nothing_is() {
    match cat_after(|_| {}, libc::CLONE_NEWUSER | NAMESPACES) {
        Ok(text) => assert_eq!(text, "checked"),
        // Without namespaces, nothing is attached.
        Err(Attempt::Namespaces(_)) => return,
        Err(Attempt::Failed(error)) => panic!("{error}"),
    }
    let replaced = cat_after(replace, libc::CLONE_NEWUSER | NAMESPACES);
    assert!(matches!(replaced, Err(Attempt::Failed(StartError::Replaced(_)))));
}

#[test]
fn without_namespaces_landlock_refuses_a_file_that_took_the_place_of_the_opened_one() {
    if landlock::abi().is_none() {
        return;
    }
    for (change, expected) in [(&(|_: &Path| {}) as &dyn Fn(&Path), "checked"), (&replace, "")] {
        let Ok(text) = cat_after(change, 0) else { panic!("not started") };
        assert_eq!(text, expected);
    }
}

#[test]
fn without_namespaces_and_landlock_a_replaced_file_ends_the_start() {
    let lacks_landlock = |plan: &mut Plan| plan.landlock = Err(Layer::unavailable("as on an old kernel"));
    match cat_planned(|_| {}, 0, lacks_landlock) {
        Ok(text) => assert_eq!(text, "checked"),
        Err(_) => panic!("not started"),
    }
    let remove = |file: &Path| fs::remove_file(file).unwrap();
    for change in [&replace as &dyn Fn(&Path), &remove] {
        let replaced = cat_planned(change, 0, lacks_landlock);
        assert!(matches!(replaced, Err(Attempt::Failed(StartError::Replaced(_)))));
    }
}

#[test]
fn a_child_is_created_in_its_group() {
    let Some(dir) = real_dir("created") else { return };
    let group = Group::of_dir(dir.clone());
    let members = || fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    match waiting_child_in(Some(group.open().unwrap().as_fd())) {
        Ok((mut process, go, report)) => {
            assert_eq!(members().trim(), process.id().to_string());
            drop((go, report));
            process.wait().unwrap();
        }
        // Linux before 5.7, and containers that refuse the system call.
        Err(error) => {
            assert!(
                [Some(libc::ENOSYS), Some(libc::EINVAL), Some(libc::E2BIG)].contains(&error.raw_os_error())
            )
        }
    }
    // In either case.
    let (program, input) = cat();
    let group = Arc::new(group);
    let mut started = start_in(Ok(Arc::clone(&group)), program, &policy([])).unwrap();
    assert_eq!(started.confinement.cgroup, Layer::Active);
    assert_eq!(members().trim(), started.process.id().to_string());
    drop(input);
    assert!(started.process.wait().unwrap().success());
    drop(group);
    assert!(!dir.exists());
}

#[test]
fn a_program_that_cannot_be_moved_into_its_group_is_started_without() {
    let dir = tempfile::tempdir().unwrap();
    // No process can be added where there is no directory.
    let group = Arc::new(Group::of_dir(dir.path().join("gone")));
    let (program, input) = cat();
    let mut started = start_in(Ok(group), program, &policy([])).unwrap();
    let reason = io::Error::from_raw_os_error(libc::ENOENT);
    assert_eq!(started.confinement.cgroup, Layer::unavailable(reason));
    drop(input);
    assert!(started.process.wait().unwrap().success());
    for errno in child::TRANSIENT.map(Errno::raw_os_error) {
        let failed = |subject| Record { subject, step: 0, errno }.end_of_start();
        assert!(failed(Subject::Group).is_none(), "the child goes on");
        assert!(matches!(failed(Subject::Landlock), Some(StartError::Process(_))), "the child has ended");
    }
}

#[test]
fn only_a_refusal_is_a_reason_to_go_on_with_less() {
    for (errno, is_refusal) in [
        (Errno::PERM, true),
        (Errno::NOSPC, true),
        (Errno::USERS, true),
        (Errno::NOMEM, false),
        (Errno::AGAIN, false),
    ] {
        let attempt = Attempt::of_namespaces(errno.into());
        assert_eq!(matches!(attempt, Attempt::Namespaces(_)), is_refusal, "{errno}");
        let is_failure = matches!(attempt, Attempt::Failed(StartError::Process(_)));
        assert_eq!(is_failure, !is_refusal, "{errno}");
    }
}

/// What the kernel says about a process under this name.
fn status(process: &Process, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

#[test]
fn roots_program_of_another_user_cannot_regain_capabilities() {
    let identity = Identity::for_program();
    let (program, input) = cat();
    let Ok(plan) = Plan::new(&program, &policy([]), identity) else { panic!("no plan") };
    let Ok((mut process, _)) = attempt(&plan, identity, 0) else { panic!("not started") };
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&process, set), "0000000000000000", "{set}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(status(&process, "CapBnd"), "0000000000000000");
    }
    drop(input);
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_program_has_only_the_descriptors_that_it_was_given() {
    let (mut program, input) = cat();
    let last = program.descriptors[2].0.try_clone().unwrap();
    program.descriptors.push((last, 63));
    // One without close-on-exec, in the gap between the numbers.
    let stray = rustix::io::dup(&input).unwrap();
    assert!((3..63).contains(&stray.as_raw_fd()), "{stray:?}");
    let Ok(plan) = Plan::new(&program, &policy([]), Identity::Caller) else { panic!("no plan") };
    let Ok((mut process, _)) = attempt(&plan, Identity::Caller, 0) else { panic!("not started") };
    let entries = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
    let mut open: Vec<i32> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    open.sort_unstable();
    assert_eq!(open, [0, 1, 2, 63]);
    drop((input, stray));
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_child_whose_parent_gives_up_before_it_is_set_up_ends() {
    let (mut process, go, report) = waiting_child();
    drop((go, report));
    assert!(has_ended_in_time(&process));
    assert_eq!(process.wait().unwrap().code(), Some(127));
}

/// The test runs itself as the parent, which is killed.
#[test]
fn nothing_remains_of_a_parent_that_is_killed_while_its_child_waits() {
    const IS_PARENT: &str = "PYRO_CONFINE_TEST_IS_PARENT";
    let name = "start::tests::nothing_remains_of_a_parent_that_is_killed_while_its_child_waits";
    #[expect(clippy::disallowed_methods, reason = "only the test itself sets the variable")]
    if std::env::var_os(IS_PARENT).is_some() {
        let (process, _go, _report) = waiting_child();
        writeln!(io::stderr(), "child {}", process.id()).unwrap();
        // Until it is killed.
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(IS_PARENT, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stderr.take().unwrap()).lines();
    let child = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("child ")?.parse().ok());
    let child = Pid::from_raw(child.unwrap()).unwrap();
    let child = pidfd_open(child, PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let ended = has_ended_in_time(&child);
    let _ = pidfd_send_signal(&child, Signal::KILL);
    assert!(ended, "the child outlived its parent");
}
