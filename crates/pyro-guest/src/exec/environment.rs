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
use std::sync::Arc;

use pyro_wire::Status;
use tokio::sync::Mutex;

use super::accounts::User;

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
        ("TERM", "dumb"),
        ("USER", &user.name),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
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
    TimedOut(std::time::Duration),
    #[error("the environment of the login shell is too large: the maximum is {MAX_BYTES} bytes")]
    TooLarge,
    #[error("cannot read the environment of the login shell: {0}")]
    Failed(String),
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
pub(crate) struct LoginEnvironments(Mutex<HashMap<u32, Known>>);

#[derive(Debug)]
struct Known {
    profile: Profile,
    variables: Arc<Variables>,
}

impl LoginEnvironments {
    /// Returns a user's variables, which `capture` reads if they are not known. If that fails, those from before are
    /// returned or plain ones, and, once for each state of the profile, a line that says so.
    pub(super) async fn of_user(
        &self,
        user: &User,
        etc: &Path,
        capture: impl AsyncFnOnce(Variables) -> Result<Variables, CaptureError>,
    ) -> (Arc<Variables>, Option<String>) {
        let profile = Profile::of(user, etc);
        // Commands that start meanwhile wait for the same environment.
        let mut all = self.0.lock().await;
        let uid = user.uid().as_raw();
        match all.get(&uid) {
            Some(known) if known.profile == profile => return (Arc::clone(&known.variables), None),
            _ => {}
        }
        let (variables, line) = match capture(plain(user)).await {
            Ok(variables) => (Arc::new(variables), None),
            Err(error) => {
                let (variables, which) = match all.get(&uid) {
                    Some(known) => (Arc::clone(&known.variables), "the environment from before is used"),
                    None => (Arc::new(plain(user)), "a plain environment is used"),
                };
                (variables, Some(format!("pyro: {error}; {which}\n")))
            }
        };
        if all.len() >= MAX_USERS {
            all.clear();
        }
        all.insert(uid, Known { profile, variables: Arc::clone(&variables) });
        (variables, line)
    }
}

/// The state of the files of a profile.
#[derive(Debug, PartialEq, Eq)]
struct Profile {
    home: String,
    files: Vec<(PathBuf, Option<FileState>)>,
}

/// Device, inode, size, and the times of the last changes of content and of anything, in seconds and nanoseconds.
type FileState = (u64, u64, u64, (i64, i64), (i64, i64));

impl Profile {
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
        Self { home: user.home.clone(), files: files.collect() }
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
        let user = User { home, ..User::root() };
        let known = LoginEnvironments::default();
        let get = async |answer: Result<Variables, CaptureError>| {
            let mut asked = false;
            let result = known.of_user(&user, dir.path(), async |_| {
                asked = true;
                answer
            });
            let (variables, line) = result.await;
            (asked, variables, line)
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
    }
}
