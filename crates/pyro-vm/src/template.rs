//! Templates: a machine of each kind, booted once and saved just before it gets an identity of its own.
//!
//! ```text
//! <dir>/<key>/memory         the guest's memory; clones map it copy on write
//!             state          the state of its devices
//!             layer.img      its writable layer at the same moment
//!             template.json  sizes, times, digests
//!       <key>.lock           held while it is made
//!       <key>.failed         why it cannot be made, for a while
//! ```
//!
//! The key is a digest over everything that makes saved state unfit for another machine ([`key`]). A template is
//! made under another name and renamed, so that it is whole or not there.

mod key;
mod prune;
mod record;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::qemu::Qemu;
use crate::spec::{GuestKernel, LaunchSpec};
use crate::supervisor::files;
use crate::vmm::Vmm;
use record::Record;
use serde_json::Value;

pub use prune::prune;

const MEMORY: &str = "memory";
const STATE: &str = "state";
const RECORD: &str = "template.json";
/// Most templates, and most bytes of disk for all of them. The least recently used go first.
const MAX_TEMPLATES: usize = 8;
const MAX_BYTES: u64 = 4 << 30;
/// After a failure it is not tried again this long: each try costs a boot.
const FAILURE_HOLDS: Duration = Duration::from_secs(60);

/// The templates for machines of one kind.
pub(crate) struct Templates {
    dir: PathBuf,
    /// Or why there can be none.
    key: Result<String, String>,
    kernel: GuestKernel,
    kernel_identity: Result<Option<Value>, String>,
}

/// A template that was found whole.
pub(crate) struct Template {
    dir: PathBuf,
    record: Record,
}

/// A template that is being made. Dropping it removes what there is.
pub(crate) struct Partial {
    dir: PathBuf,
    _lock: File,
}

/// The key of the template for machines like that of `spec`, which is equal for machines that can take each
/// other's place, whether there can be a template or not.
pub(crate) async fn key(dir: &Path, spec: &LaunchSpec, vmm: &dyn Vmm) -> Result<String, String> {
    key::of(dir, spec, vmm).await
}

/// The template for machines like that of `spec` has to be made before one can start. Starts no process: of a VMM that has
/// never been used it is assumed that it is new enough.
pub async fn is_missing(spec: &LaunchSpec) -> bool {
    let Some(dir) = &spec.template_dir else { return false };
    if spec.dir.join(files::LAYER).exists() {
        return false;
    }
    if !key::is_version_known(dir, &spec.machine.vmm_program) {
        return true;
    }
    let templates = Templates::new(dir, spec, &Qemu).await;
    templates.key.is_ok() && templates.find().is_none() && templates.recent_failure().is_none()
}

impl Templates {
    /// Templates in `dir` for machines like that of `spec`.
    pub(crate) async fn new(dir: &Path, spec: &LaunchSpec, vmm: &dyn Vmm) -> Self {
        let kernel = spec.guest.kernel.clone();
        // Before the key, so that what is looked at again in the end is not newer than that.
        let kernel_identity = key::kernel_identity(&kernel);
        let key = match key::check_vmm(dir, spec).await {
            Ok(()) => key::of(dir, spec, vmm).await,
            Err(reason) => Err(reason),
        };
        Self { dir: dir.to_owned(), key, kernel, kernel_identity }
    }

    /// The template, if it is there and looks as it was made.
    pub(crate) fn find(&self) -> Option<Template> {
        let key = self.key.as_ref().ok()?;
        let dir = self.dir.join(key);
        let record = Record::read(&dir.join(RECORD))?;
        let template = Template { dir, record };
        match template.record.matches(&template.dir) {
            Ok(()) => {
                // For deciding which one has not been used for longest; it may fail without harm.
                let _ = File::open(template.dir.join(RECORD))
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Some(template)
            }
            Err(reason) => {
                tracing::warn!(dir = %template.dir.display(), reason, "damaged template discarded");
                self.discard(&template);
                None
            }
        }
    }

    /// Begins to make the template, or returns it if another process has made it by then. It is not begun unless
    /// `room` bytes are free: a template must not take the space that running machines were promised.
    pub(crate) async fn begin(&self, room: u64) -> Result<Result<Partial, Template>, String> {
        let key = self.key.clone()?;
        make_dir(&self.dir)?;
        self.check_room(room)?;
        let lock_path = self.dir.join(format!("{key}.lock"));
        let lock = File::create(&lock_path)
            .map_err(|error| format!("cannot make {}: {error}", lock_path.display()))?;
        let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        let lock = match locked {
            Ok(Ok(lock)) => lock,
            Ok(Err(error)) => return Err(format!("cannot lock {}: {error}", lock_path.display())),
            Err(error) => return Err(error.to_string()),
        };
        if let Some(template) = self.find() {
            return Ok(Err(template));
        }
        let dir = self.dir.join(format!(".partial-{key}"));
        // Whoever was making it is dead, or would have the lock.
        remove(&dir);
        make_dir(&dir)?;
        Ok(Ok(Partial { dir, _lock: lock }))
    }

    /// Puts a finished template into place.
    pub(crate) fn finish(
        &self,
        partial: Partial,
        kernel_release: String,
        environment: &str,
    ) -> Result<Template, String> {
        let key = self.key.clone()?;
        if key::kernel_identity(&self.kernel) != self.kernel_identity {
            return Err("the kernel was replaced while its template was made".to_owned());
        }
        let record = Record::of(&partial.dir, kernel_release, environment)?;
        record.write(&partial.dir.join(RECORD))?;
        let dir = self.dir.join(key);
        remove(&dir);
        fs::rename(&partial.dir, &dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        self.make_room(&dir);
        Ok(Template { dir, record })
    }

    /// Notes that the template could not be made.
    pub(crate) fn failed(&self, reason: &str) {
        if let Ok(key) = &self.key {
            // Then it is tried again, which is slow but right.
            let _ = fs::write(self.dir.join(format!("{key}.failed")), reason);
        }
    }

    /// Removes a template that is of no use. Machines that run from it keep what they have open.
    pub(crate) fn discard(&self, template: &Template) {
        remove(&template.dir);
    }

    fn check_room(&self, wanted: u64) -> Result<(), String> {
        let disk =
            rustix::fs::statvfs(&self.dir).map_err(|error| format!("cannot examine the disk: {error}"))?;
        match disk.f_bavail.saturating_mul(disk.f_frsize) {
            free if free < wanted => {
                Err(format!("{} MiB would have to be free for a template", wanted >> 20))
            }
            _ => Ok(()),
        }
    }

    /// Why it could not be made a short while ago.
    pub(crate) fn recent_failure(&self) -> Option<String> {
        let path = self.dir.join(format!("{}.failed", self.key.as_ref().ok()?));
        let age = SystemTime::now().duration_since(fs::metadata(&path).ok()?.modified().ok()?).ok()?;
        if age > FAILURE_HOLDS {
            let _ = fs::remove_file(&path);
            return None;
        }
        fs::read_to_string(&path).ok()
    }

    /// Removes the least recently used templates beyond the bounds, but not `newest`.
    fn make_room(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut others: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let used = fs::metadata(path.join(RECORD)).ok()?.modified().ok()?;
                (path != newest).then(|| (used, allocated_bytes(&path), path))
            })
            .collect();
        others.sort();
        let mut bytes = allocated_bytes(newest) + others.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        let mut count = others.len() + 1;
        for (_, size, path) in others {
            if count <= MAX_TEMPLATES && bytes <= MAX_BYTES {
                break;
            }
            remove(&path);
            count -= 1;
            bytes -= size;
        }
    }
}

impl Template {
    /// The guest's memory.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join(MEMORY)
    }

    /// The state of the devices.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The writable layer.
    pub(crate) fn layer(&self) -> PathBuf {
        self.dir.join(files::LAYER)
    }

    /// `uname -r` in the guest.
    pub(crate) fn kernel_release(&self) -> &str {
        &self.record.kernel_release
    }
}

impl Partial {
    /// Where its files go.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// See [`Template::memory`].
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join(MEMORY)
    }

    /// See [`Template::state`].
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename it is not there.
        remove(&self.dir);
    }
}

fn make_dir(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| format!("cannot make {}: {error}", dir.display()))
}

fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot be removed");
        }
        _ => {}
    }
}

fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512)).sum()
}
