//! What a command executes: candidates for the path of its program, and its arguments.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use pyro_wire::{Failure, FailureKind, MAX_COMMAND_BYTES, Program};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use super::accounts::User;
use super::settings::CommandSettings;
use super::spawn::SpawnError;
use crate::failure::{During, failed, refused, spawn_failed};

/// Where programs are looked up if there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Maximum length of one argument with its NUL, the kernel's.
const MAX_ARGUMENT_BYTES: usize = 128 * 1024;
/// The descriptor of a text that is too long to be an argument. Shells can close it by its number, which has one digit.
pub(super) const SCRIPT_FD: i32 = 9;
/// What a shell is given instead of such a text.
const RUN_SCRIPT: &str = ". /proc/self/fd/9";
/// What such a text begins with, so that its commands do not inherit the descriptor.
const CLOSE_SCRIPT: &str = "exec 9<&-; ";
/// What a login shell does after its profile if the caller has set variables. Its name for itself is its path.
const SET_VARIABLES: &str = "export \"$@\"; exec \"$0\"";
/// The variable that every terminal has. Profiles leave it alone.
const TERM: &str = "TERM";

/// A program that was looked up.
pub(super) struct Found {
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Vec<CString>,
    /// The text of a command that is too long to be an argument.
    pub(super) script: Option<OwnedFd>,
    /// How errors name it.
    name: String,
    is_shell: bool,
}

impl Found {
    /// Looks up a program in `path`, the value of the command's `PATH`. `set`: the caller's variables.
    pub(super) fn new(
        program: &Program,
        set: &BTreeMap<String, String>,
        user: &User,
        settings: &CommandSettings,
        path: Option<&OsStr>,
    ) -> Result<Self, Failure> {
        match program {
            Program::Shell { text, shell } => {
                check_length(text.len())?;
                let shell = shell.clone().unwrap_or_else(|| settings.shell.display().to_string());
                if text.contains('\0') {
                    // It would be cut off in a script.
                    return Err(refused(format!("starting {shell}"), "nul byte found in provided data"));
                }
                let (text, script) = if text.len() < MAX_ARGUMENT_BYTES {
                    (text.as_str(), None)
                } else {
                    (RUN_SCRIPT, Some(script(text).during("passing on the text of the command")?))
                };
                let arguments = [&*shell, "-c", "--", text];
                Ok(Self { script, is_shell: true, ..Self::of(&shell, &arguments, path)? })
            }
            Program::Argv(words) => {
                check_length(words.iter().map(String::len).sum())?;
                let Some(name) = words.first() else {
                    return Err(refused("starting the command", "invalid argument list: expected a program"));
                };
                Self::of(name, words, path)
            }
            Program::LoginShell => {
                let shell = user.login_shell();
                Ok(Self { is_shell: true, ..Self::of(shell, &login_arguments(shell, set), path)? })
            }
        }
    }

    fn of<S: AsRef<str>>(name: &str, arguments: &[S], path: Option<&OsStr>) -> Result<Self, Failure> {
        let step = || format!("starting {name}");
        let strings = arguments.iter().map(|argument| CString::new(argument.as_ref()));
        Ok(Self {
            candidates: candidates(name, path).during(step())?,
            arguments: strings.collect::<Result<_, _>>().map_err(io::Error::from).during(step())?,
            script: None,
            name: name.to_owned(),
            is_shell: false,
        })
    }

    /// Returns the failure to execute it.
    pub(super) fn not_executed(&self, error: SpawnError) -> Failure {
        let failure = spawn_failed(format!("starting {}", self.name), error.errno.into());
        match failure.kind {
            FailureKind::CommandNotFound if self.is_shell => {
                Failure { kind: FailureKind::ShellNotFound, ..failure }
            }
            _ => failure,
        }
    }
}

/// Returns the arguments of a login shell. It reads its profile, which may replace variables of the caller; an interactive shell
/// then takes its place, with the caller's.
fn login_arguments(shell: &str, set: &BTreeMap<String, String>) -> Vec<String> {
    let name = shell.rsplit('/').next().unwrap_or(shell);
    if set.keys().all(|name| name == TERM) {
        return vec![format!("-{name}")];
    }
    // Others cannot be named in a profile.
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let assignments =
        set.iter().filter(|(name, _)| is_name(name)).map(|(name, value)| format!("{name}={value}"));
    [name, "-l", "-c", SET_VARIABLES, shell].map(str::to_owned).into_iter().chain(assignments).collect()
}

fn check_length(bytes: usize) -> Result<(), Failure> {
    if bytes <= MAX_COMMAND_BYTES {
        return Ok(());
    }
    let cause = format!("command is too long: the maximum is {MAX_COMMAND_BYTES} bytes");
    let failure = failed("starting the command", Errno::TOOBIG);
    Err(Failure { cause, ..failure })
}

/// Returns the paths that a name may stand for. A name with a slash is a path.
fn candidates(name: &str, path: Option<&OsStr>) -> io::Result<Vec<CString>> {
    if name.is_empty() || name.contains('/') {
        return Ok(vec![CString::new(name)?]);
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes();
    path.split(|&byte| byte == b':')
        .map(|dir| match dir {
            b"" => Ok(CString::new(format!("./{name}"))?),
            dir => Ok(CString::new([dir, b"/", name.as_bytes()].concat())?),
        })
        .collect()
}

/// Puts a text where a shell can read it.
fn script(text: &str) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"pyro-command", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, CLOSE_SCRIPT.as_bytes())?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_the_path_and_paths_are_not() {
        let of = |name: &str, path: Option<&str>| {
            let found = candidates(name, path.map(OsStr::new)).unwrap();
            found.into_iter().map(|path| path.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of("ls", Some("/a:/b")), ["/a/ls", "/b/ls"]);
        assert_eq!(of("ls", Some(":/b")), ["./ls", "/b/ls"]);
        assert_eq!(of("ls", None), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(of("./ls", Some("/a")), ["./ls"]);
        assert_eq!(of("", Some("/a")), [""]);
    }

    #[test]
    fn a_login_shell_sets_the_callers_variables_after_its_profile() {
        let of = |set: &[(&str, &str)]| {
            let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            login_arguments("/bin/bash", &set)
        };
        assert_eq!(of(&[]), ["-bash"]);
        assert_eq!(of(&[("TERM", "vt100")]), ["-bash"]);
        let arguments = of(&[("PATH", "/x:'y z'"), ("TERM", "vt100"), ("no.name", "1"), ("1", "2")]);
        assert_eq!(
            arguments,
            ["bash", "-l", "-c", SET_VARIABLES, "/bin/bash", "PATH=/x:'y z'", "TERM=vt100"]
        );
    }
}
