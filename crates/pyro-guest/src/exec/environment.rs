//! The environment of a login shell, which commands run in.
//!
//! A login shell reads its profile once for each user, and again when a file of the profile has changed; commands then start
//! without it. The shell executes this program in its own place, which writes the variables to a descriptor that nothing
//! else uses: what the profile prints does not matter, and the guest needs no other program. A profile that does not come to
//! its end changes nothing but the next command's standard error.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyro_wire::{Failure, Status};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::accounts::User;
use crate::blocking::blocking;

/// Names and values.
pub(super) type Variables = BTreeMap<OsString, OsString>;

/// Argument with which this program writes its environment.
pub(crate) const WRITE_ENVIRONMENT: &str = "write-environment";
/// Maximum size of an environment, in bytes.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// Maximum number of files in `/etc/profile.d` whose changes are noticed.
const MAX_FILES: usize = 256;
/// Maximum number of users whose environment is kept.
const MAX_USERS: usize = 64;
/// After what time a profile that did not end, or could not be read, is read again for the first time, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(600);
/// `TERM` of commands without a terminal.
const NO_TERMINAL: &str = "dumb";
/// Variables of the login shell itself.
const OF_THE_SHELL: [&str; 4] = ["PWD", "OLDPWD", "SHLVL", "_"];

/// Returns the environment of a login shell on a plain system, before `/etc/profile`.
pub(super) fn plain(user: &User) -> Variables {
    [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("HOME", &user.home),
        ("LANG", "C.UTF-8"),
        ("LOGNAME", &user.name),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SHELL", &user.shell),
        ("TERM", NO_TERMINAL),
        ("USER", &user.name),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

/// Names the type of a terminal that nearly every caller's terminal emulates, unless the profile names one.
pub(super) fn on_terminal(variables: &mut Variables) {
    let term = variables.entry("TERM".into()).or_default();
    if term == NO_TERMINAL {
        *term = "xterm-256color".into();
    }
}

/// Writes the environment of this process to its standard output: each variable with a NUL at its end, and another NUL at
/// the end of all.
pub(crate) fn write_environment() -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the environment is what is asked for")]
    let variables = std::env::vars_os();
    let mut bytes = Vec::new();
    for (name, value) in variables.filter(|(name, _)| !name.is_empty()) {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    bytes.push(0);
    match io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether these bytes are an environment to its end.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    bytes == b"\0" || bytes.ends_with(b"\0\0")
}

/// Reads what [`write_environment`] has written.
pub(super) fn parse(bytes: &[u8]) -> Variables {
    bytes
        .split(|&byte| byte == 0)
        .filter_map(|variable| {
            // A name may begin with an equals sign, in theory.
            let equals = 1 + variable.iter().skip(1).position(|&byte| byte == b'=')?;
            let (name, value) = (&variable[..equals], &variable[equals + 1..]);
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        })
        .filter(|(name, _)| !OF_THE_SHELL.iter().any(|own| name == own))
        .collect()
}

/// Why there is no environment of a login shell.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error("the profile of the login shell {}", ended(*.0))]
    Ended(Status),
    #[error("the profile of the login shell did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the environment of the login shell is too large: the maximum is {MAX_BYTES} bytes")]
    TooLarge,
    #[error("cannot read the environment of the login shell: {0}")]
    Failed(String),
    #[error("the command was ended before it started")]
    Cancelled,
}

impl CaptureError {
    /// Whether the same profile would fail in the same way again.
    fn is_final(&self) -> bool {
        match self {
            Self::Ended(_) | Self::TooLarge => true,
            Self::TimedOut(_) | Self::Failed(_) | Self::Cancelled => false,
        }
    }
}

impl From<Failure> for CaptureError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.to_string())
    }
}

impl From<io::Error> for CaptureError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

fn ended(status: Status) -> String {
    match status {
        Status::Code(code) => format!("exited with status {code}"),
        Status::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

/// The environments of a guest's users.
#[derive(Debug, Default)]
pub(crate) struct LoginEnvironments(Mutex<HashMap<Key, Arc<AsyncMutex<Known>>>>);

/// Number and name: several names may share a number.
type Key = (u32, String);

/// What is known of a user's environment.
#[derive(Debug, Default)]
struct Known {
    /// The profile that was read last, also if it failed.
    profile: Option<Profile>,
    /// The environment that was read last.
    variables: Option<Arc<Variables>>,
    retry: Option<Retry>,
    /// What the next command reports about the environment.
    line: UnsentLine,
}

/// When a profile that may succeed the next time is read again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    delay: Duration,
    /// The error that was reported.
    error: String,
}

/// A line for people, until a command has sent it.
#[derive(Clone, Debug, Default)]
pub(super) struct UnsentLine(Arc<Mutex<Option<String>>>);

impl UnsentLine {
    /// Returns the line to the only caller that sends it.
    pub(super) fn take(&self) -> Option<String> {
        lock(&self.0).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LoginEnvironments {
    /// Forgets all environments. They may hold what must differ between machines.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Returns a user's variables, which `capture` reads if they are not known. If that fails, those from before are
    /// returned or plain ones, with a line that says so. A failure that does not come from the profile is tried again after
    /// a delay, which grows. `None`: the command was cancelled.
    pub(super) async fn of_user(
        &self,
        user: &User,
        etc: &Path,
        cancelled: &CancellationToken,
        capture: impl AsyncFnOnce(Variables) -> Result<Variables, CaptureError>,
    ) -> Option<(Arc<Variables>, UnsentLine)> {
        let profile = {
            let (user, etc) = (user.clone(), etc.to_owned());
            let look = blocking(move || Ok::<_, CaptureError>(Profile::of(&user, &etc)));
            // An error: the thread has panicked.
            cancelled.run_until_cancelled(look).await?.ok()?
        };
        let known = self.known(user);
        // Commands of the same user that start meanwhile wait for the same environment.
        let mut known = cancelled.run_until_cancelled(known.lock()).await?;
        let is_same = known.profile.as_ref() == Some(&profile);
        let is_due = known.retry.as_ref().is_some_and(|retry| retry.at <= Instant::now());
        if !is_same || is_due {
            match capture(plain(user)).await {
                Ok(variables) => {
                    known.variables = Some(Arc::new(variables));
                    known.profile = Some(profile);
                    known.retry = None;
                    known.line = UnsentLine::default();
                }
                Err(CaptureError::Cancelled) => return None,
                Err(error) => known.failed(profile, is_same, &error),
            }
        }
        let variables = known.variables.clone().unwrap_or_else(|| Arc::new(plain(user)));
        Some((variables, known.line.clone()))
    }

    fn known(&self, user: &User) -> Arc<AsyncMutex<Known>> {
        let mut all = lock(&self.0);
        let key = (user.uid().as_raw(), user.name.clone());
        if all.len() >= MAX_USERS && !all.contains_key(&key) {
            all.clear();
        }
        Arc::clone(all.entry(key).or_default())
    }
}

impl Known {
    fn failed(&mut self, profile: Profile, is_same: bool, error: &CaptureError) {
        let which = match self.variables {
            Some(_) => "the environment from before is used",
            None => "a plain environment is used",
        };
        let before = self.retry.take().filter(|_| is_same);
        let error_text = error.to_string();
        if before.as_ref().is_none_or(|before| before.error != error_text) {
            let line = format!("pyro: {error_text}; {which}\n");
            self.line = UnsentLine(Arc::new(Mutex::new(Some(line))));
        }
        self.profile = Some(profile);
        if !error.is_final() {
            let delay = before.map_or(FIRST_RETRY, |before| (before.delay * 2).min(LAST_RETRY));
            self.retry = Some(Retry { at: Instant::now() + delay, delay, error: error_text });
        }
    }
}

/// The state of the files of a profile.
#[derive(Debug, PartialEq, Eq)]
struct Profile {
    home: String,
    shell: String,
    files: Vec<(PathBuf, Option<FileState>)>,
}

/// Device, inode, size, and the times of the last changes of content and of anything, in seconds and nanoseconds.
type FileState = (u64, u64, u64, (i64, i64), (i64, i64));

impl Profile {
    /// Looks at the files. Blocks.
    fn of(user: &User, etc: &Path) -> Self {
        let dir = etc.join("profile.d");
        let mut parts: Vec<_> = match fs::read_dir(&dir) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).take(MAX_FILES).collect(),
            Err(_) => Vec::new(),
        };
        parts.sort();
        let paths = [etc.join("profile"), Path::new(&user.home).join(".profile"), dir];
        let files = paths.into_iter().chain(parts).map(|path| {
            let state = fs::metadata(&path).ok().map(|file| {
                let (modified, changed) =
                    ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
                (file.dev(), file.ino(), file.size(), modified, changed)
            });
            (path, state)
        });
        Self { home: user.home.clone(), shell: user.shell.clone(), files: files.collect() }
    }
}

/// Returns the variables in the form of `execve`. Those that no program can be given are an error.
pub(super) fn to_strings(variables: &Variables) -> io::Result<Vec<CString>> {
    variables
        .iter()
        .map(|(name, value)| {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                let name = name.display();
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("invalid name of a variable: {name:?}"),
                ));
            }
            Ok(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn what_is_written_is_read_without_the_variables_of_the_shell() {
        let bytes = b"A=1\0B=a\nb=c\0PWD=/\0SHLVL=1\0_=x\0EMPTY=\0nothing\0\0";
        assert!(is_complete(bytes) && is_complete(b"\0"));
        assert!(!is_complete(b"A=1\0") && !is_complete(b""));
        assert_eq!(parse(bytes), variables(&[("A", "1"), ("B", "a\nb=c"), ("EMPTY", "")]));
    }

    #[tokio::test]
    async fn a_profile_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let user = User { home, ..User::root(dir.path()) };
        let (known, running) = (LoginEnvironments::default(), CancellationToken::new());
        let get = async |answer: Result<Variables, CaptureError>| {
            let mut asked = false;
            let result = known.of_user(&user, dir.path(), &running, async |_| {
                asked = true;
                answer
            });
            let (variables, line) = result.await.unwrap();
            (asked, variables, line.take())
        };
        let failure = || Err(CaptureError::Ended(Status::Code(3)));
        let (asked, first, line) = get(failure()).await;
        assert!(asked && *first == plain(&user));
        assert_eq!(
            line.unwrap(),
            "pyro: the profile of the login shell exited with status 3; a plain environment is used\n"
        );
        assert!(matches!(get(failure()).await, (false, _, None)), "it is not tried again");
        fs::write(dir.path().join(".profile"), "x").unwrap();
        let (asked, second, line) = get(Ok(variables(&[("A", "1")]))).await;
        assert!(asked && line.is_none() && *second == variables(&[("A", "1")]));
        fs::create_dir(dir.path().join("profile.d")).unwrap();
        fs::write(dir.path().join("profile.d/new.sh"), "x").unwrap();
        let (asked, third, line) = get(failure()).await;
        assert!(asked && third == second && line.unwrap().contains("from before"));
        known.clear();
        let (asked, fourth, _) = get(failure()).await;
        assert!(asked && *fourth == plain(&user), "nothing is kept");
    }

    #[tokio::test]
    async fn a_failure_that_may_pass_is_tried_again_and_reported_by_the_command_that_takes_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let user = User::root(dir.path());
        let (known, running) = (LoginEnvironments::default(), CancellationToken::new());
        let get = async |answer: Result<Variables, CaptureError>| {
            let mut asked = false;
            let result = known.of_user(&user, dir.path(), &running, async |_| {
                asked = true;
                answer
            });
            let (variables, line) = result.await.unwrap();
            (asked, variables, line)
        };
        let be_due = async || {
            let all = Arc::clone(lock(&known.0).values().next().unwrap());
            let mut all = all.lock().await;
            let retry = all.retry.as_mut().unwrap();
            retry.at = Instant::now();
            retry.delay
        };
        let busy = || Err(CaptureError::Failed("try again".to_owned()));
        let (asked, _, first) = get(busy()).await;
        assert!(asked);
        let (asked, _, second) = get(busy()).await;
        assert!(!asked, "not before the delay");
        assert!(second.take().unwrap().contains("try again"), "the first did not send it");
        assert_eq!(first.take(), None);
        assert_eq!(be_due().await, FIRST_RETRY);
        let (asked, _, line) = get(busy()).await;
        assert!(asked && line.take().is_none(), "the same line is sent once");
        assert_eq!(be_due().await, 2 * FIRST_RETRY);
        let (asked, good, line) = get(Ok(variables(&[("A", "1")]))).await;
        assert!(asked && line.take().is_none() && *good == variables(&[("A", "1")]));
        assert!(!get(busy()).await.0, "a good environment is kept");
    }

    #[tokio::test]
    async fn users_do_not_wait_for_each_other_and_names_of_one_number_differ() {
        let dir = tempfile::tempdir().unwrap();
        let root = User::root(dir.path());
        let other = User { name: "toor".to_owned(), ..root.clone() };
        let (known, running) = (LoginEnvironments::default(), CancellationToken::new());
        let captures = tokio::sync::Notify::new();
        let stuck = known.of_user(&root, dir.path(), &running, async |_| {
            captures.notify_one();
            std::future::pending().await
        });
        let mut stuck = std::pin::pin!(stuck);
        tokio::select! {
            _ = &mut stuck => panic!("the capture never ends"),
            () = captures.notified() => {}
        }
        let (found, _) = known.of_user(&other, dir.path(), &running, async |plain| Ok(plain)).await.unwrap();
        assert_eq!(found.get(std::ffi::OsStr::new("USER")), Some(&"toor".into()));
        let other = User { shell: "/bin/other".to_owned(), ..other };
        let (found, _) = known.of_user(&other, dir.path(), &running, async |plain| Ok(plain)).await.unwrap();
        assert_eq!(found.get(std::ffi::OsStr::new("SHELL")), Some(&"/bin/other".into()));
        // A command that waits for another's environment can be cancelled.
        let cancelled = CancellationToken::new();
        let waits = known.of_user(&root, dir.path(), &cancelled, async |plain| Ok(plain));
        let mut waits = std::pin::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        cancelled.cancel();
        assert!(waits.await.is_none());
    }
}
