//! `doctor --deep`: reads everything that VMs start from, and looks for what dead VMs have left. Changes nothing.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use pyro_env::{OpenError, check_path};
use pyro_machine::snapshot;
use pyro_supervisor::{OwnerLock, with_causes};

use super::reconcile::{is_older_than_making, is_unfinished, owner_vanished, strays};
use super::{Engine, Shared};
use crate::doctor::{DeepCheck, DeepReport, DeepSubject};
use crate::state_dir::is_dir;
use crate::{Error, VmId, state_dir};

impl Engine {
    /// Compares installed environments and templates with their digests, checks who can change them, the guest kernel, and
    /// the state directory, and lists what dead VMs and builds have left. Changes nothing. Reads gigabytes.
    ///
    /// # Errors
    /// `Internal`.
    pub async fn doctor_deep(&self) -> Result<DeepReport, Error> {
        self.blocking(|shared| Ok(DeepReport::of(checks(shared)))).await
    }
}

fn checks(shared: &Shared) -> Vec<DeepCheck> {
    let mut checks = environments(shared);
    let base_dir = &shared.config.base_dir;
    checks.extend(snapshot::verify(&state_dir::templates(base_dir)).into_iter().map(|template| {
        DeepCheck::new(
            DeepSubject::Template,
            template.name,
            template.problem.map(|problem| problem.to_string()),
        )
    }));
    if let Some(kernel) = &shared.config.guest_kernel {
        let unusable = crate::guest_kernel::release(kernel).err().map(|error| error.to_string());
        let problem = unusable.or_else(|| untrusted(kernel));
        checks.push(DeepCheck::new(DeepSubject::Kernel, kernel.display(), problem));
    }
    if base_dir.exists() {
        checks.push(DeepCheck::new(DeepSubject::State, base_dir.display(), state_problem(base_dir)));
        checks.extend(leftovers(shared));
    }
    checks
}

fn environments(shared: &Shared) -> Vec<DeepCheck> {
    let cache = &shared.environments;
    let list = match cache.list() {
        Ok(list) => list.environments,
        Err(error) => {
            let cache_dir = shared.config.cache_dir.display();
            return vec![DeepCheck::new(DeepSubject::Environment, cache_dir, Some(with_causes(&error)))];
        }
    };
    let mut checks = Vec::new();
    for environment in list {
        let problem = match cache.open(&environment.name) {
            Err(OpenError::NotInstalled { .. }) => continue,
            Err(error) => Some(with_causes(&error)),
            Ok(opened) => match opened.verify_contents() {
                Ok(Ok(())) => None,
                Ok(Err(damage)) => Some(damage.to_string()),
                Err(error) => Some(with_causes(&error)),
            },
        };
        checks.push(DeepCheck::new(DeepSubject::Environment, environment.name, problem));
    }
    // An unreadable directory is reported above.
    let abandoned = cache.abandoned_builds().unwrap_or_default().into_iter();
    checks.extend(
        abandoned.map(|path| {
            leftover(&path, "its build has ended without removing it; `pyro env prune` removes it")
        }),
    );
    checks
}

fn leftover(path: &Path, problem: &str) -> DeepCheck {
    DeepCheck::new(DeepSubject::Leftover, path.display(), Some(problem.to_owned()))
}

/// Returns how other users could change a file or directory.
fn untrusted(path: &Path) -> Option<String> {
    match check_path(path) {
        Ok(Ok(())) => None,
        Ok(Err(untrusted)) => Some(untrusted.to_string()),
        Err(error) => Some(with_causes(&error)),
    }
}

fn state_problem(base_dir: &Path) -> Option<String> {
    let metadata = match fs::metadata(base_dir) {
        Ok(metadata) => metadata,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(problem) = state_dir::problem(&metadata) {
        return Some(problem.to_owned());
    }
    let places = [
        base_dir.to_owned(),
        state_dir::registry(base_dir),
        state_dir::vms(base_dir),
        state_dir::templates(base_dir),
        state_dir::layers(base_dir),
        state_dir::spares(base_dir),
    ];
    places.iter().filter(|place| place.exists()).find_map(|place| untrusted(place))
}

/// Files, sockets, and mounts of VMs, spares, and layers that no process uses. Those that a process is making are locked.
fn leftovers(shared: &Shared) -> Vec<DeepCheck> {
    let base_dir = &shared.config.base_dir;
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    if state_dir::registry(base_dir).exists() {
        match vms_without_owner(shared) {
            Ok(checks) => found.extend(checks),
            Err(error) => {
                let registry = state_dir::registry(base_dir);
                found.push(DeepCheck::new(DeepSubject::State, registry.display(), Some(error.to_string())));
            }
        }
    }
    let mut entries = |dir: &Path| {
        state_dir::entries(dir).unwrap_or_else(|error| {
            let problem = Some(format!("it cannot be read: {error}"));
            unreadable.push(DeepCheck::new(DeepSubject::State, dir.display(), problem));
            Vec::new()
        })
    };
    for kind in entries(&state_dir::spares(base_dir)).iter().filter(|entry| is_dir(entry)) {
        let spares = entries(&kind.path()).into_iter().filter(is_dir).filter(is_older_than_making);
        let spares = spares.map(|spare| spare.path());
        found.extend(spares.filter(|spare| !OwnerLock::is_held(spare)).map(|spare| {
            leftover(&spare, "its spare has ended without removing it; the next use of spares removes it")
        }));
    }
    // A process that is making one writes to it all the time.
    for layer in entries(&state_dir::layers(base_dir)).into_iter().filter(is_older_than_making) {
        if layer.file_name().to_string_lossy().starts_with(".partial-") {
            found.push(leftover(&layer.path(), "an empty disk that was not completed; it can be removed"));
        }
    }
    found.extend(unreadable);
    found.extend(mounts_below(base_dir).iter().map(|mount| leftover(mount, "something is mounted there")));
    found
}

fn vms_without_owner(shared: &Shared) -> Result<Vec<DeepCheck>, Error> {
    let dir = |id: &VmId| state_dir::vm(&shared.config.base_dir, id);
    let mut found: Vec<DeepCheck> = strays(shared)?
        .iter()
        .map(|id| leftover(&dir(id), "no VM or task has this directory; the next command removes it"))
        .collect();
    for record in shared.registry.list()? {
        if owner_vanished(shared, &record) {
            let problem = match is_unfinished(&record) {
                true => "its process is gone; the next command removes it",
                false => "its process is gone; the next command records that it has stopped",
            };
            found.push(leftover(&dir(&record.vm_id), problem));
        }
    }
    Ok(found)
}

/// The cage mounts in a namespace of its own, so that nothing of it is seen here.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(dir) = fs::canonicalize(dir) else { return Vec::new() };
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&mounts).filter(|point| point.starts_with(&dir) && *point != dir).collect()
}

/// Returns where everything is mounted.
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| Some(unescaped(line.split(|byte| *byte == b' ').nth(4)?)))
}

/// Decodes `\040` and the like, as which the kernel writes spaces, tabs, newlines, and backslashes of a path.
fn unescaped(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::engine::tests::{engine, started};
    use crate::{Config, ExecutionMode};

    fn problems(report: &DeepReport) -> Vec<(DeepSubject, String)> {
        let failed = report.checks.iter().filter(|check| check.problem.is_some());
        failed.map(|check| (check.subject, check.name.clone())).collect()
    }

    #[tokio::test]
    async fn a_host_with_nothing_is_intact_and_stays_empty() {
        let root = tempfile::tempdir().unwrap();
        let report = engine(root.path()).doctor_deep().await.unwrap();
        assert!(report.intact && report.checks.is_empty(), "{report:?}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_dead_vms_left_is_found_and_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let dead = started(&engine, 1, ExecutionMode::GuestVsock, 0.0);
        let alive = started(&engine, 2, ExecutionMode::GuestVsock, 0.0);
        let _lock = OwnerLock::try_acquire(&engine.vm_dir(&alive)).unwrap().unwrap();
        let state = root.path().join("state");
        let spare = state.join("spares/kind/000000000003");
        fs::create_dir_all(&spare).unwrap();
        fs::create_dir(state.join("layers")).unwrap();
        fs::write(state.join("layers/.partial-x"), "").unwrap();
        fs::create_dir_all(state.join("templates/key")).unwrap();
        // Another process may be making them: it has not locked the one yet, and writes to the other.
        let leftovers = problems(&engine.doctor_deep().await.unwrap());
        assert_eq!(leftovers.iter().filter(|(subject, _)| *subject == DeepSubject::Leftover).count(), 1);
        for path in [&spare, &state.join("layers/.partial-x")] {
            let long_ago = SystemTime::now() - Duration::from_secs(60);
            fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        let report = engine.doctor_deep().await.unwrap();
        assert!(!report.intact);
        let name = |path: &Path| path.display().to_string();
        assert_eq!(
            problems(&report),
            [
                (DeepSubject::Template, "key".to_owned()),
                (DeepSubject::Leftover, name(&engine.vm_dir(&dead))),
                (DeepSubject::Leftover, name(&spare)),
                (DeepSubject::Leftover, name(&state.join("layers/.partial-x"))),
            ]
        );
        assert!(engine.vm_dir(&dead).exists() && spare.exists());
    }

    /// A file in place of a directory stands for one that cannot be read, because root can read all of them.
    #[tokio::test]
    async fn a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(root.path());
        let state = engine.state_directory().unwrap().to_owned();
        for name in ["layers", "spares"] {
            fs::write(state.join(name), "").unwrap();
        }
        let name = |name: &str| (DeepSubject::State, state.join(name).display().to_string());
        let found = problems(&engine.doctor_deep().await.unwrap());
        assert!(found.contains(&name("layers")) && found.contains(&name("spares")), "{found:?}");
    }

    #[tokio::test]
    async fn a_state_directory_or_kernel_that_others_can_change_is_named() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("kernel");
        fs::write(&kernel, "no kernel").unwrap();
        let paths = (root.path().join("state"), root.path().join("cache"), root.path().join("pyro"));
        let config = Config { guest_kernel: Some(kernel.clone()), ..Config::new(paths.0, paths.1, paths.2) };
        let engine = Engine::new(config);
        let state = engine.state_directory().unwrap().to_owned();
        assert_eq!(problems(&engine.doctor_deep().await.unwrap())[0].0, DeepSubject::Kernel);
        assert_eq!(untrusted(&kernel), None);
        fs::set_permissions(&kernel, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(untrusted(&kernel).unwrap().ends_with("may be written by other users"));
        fs::create_dir(state.join("layers")).unwrap();
        fs::set_permissions(state.join("layers"), fs::Permissions::from_mode(0o777)).unwrap();
        let found = problems(&engine.doctor_deep().await.unwrap());
        assert_eq!(found[1], (DeepSubject::State, state.display().to_string()));
    }

    #[test]
    fn mount_points_with_spaces_are_read() {
        let mountinfo = b"31 24 0:27 / /state/a\\040b\\134\\011c rw shared:9 - tmpfs none rw\n32 24 0:28 / /x rw - t n rw\n\n";
        let points: Vec<_> = mount_points(mountinfo).collect();
        assert_eq!(points, [PathBuf::from("/state/a b\\\tc"), PathBuf::from("/x")]);
        assert_eq!(unescaped(b"/a\\04"), PathBuf::from("/a\\04"));
        assert_eq!(unescaped(b"/a\\999"), PathBuf::from("/a\\999"));
    }
}
