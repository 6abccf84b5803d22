//! The limits of services.

use std::time::Duration;

use http::Uri;

use super::{ServiceCommand, ServiceOptions};
use crate::limits::{CheckedCommand, check_command};
use crate::naming::check_name_of;
use crate::{Command, Error, ErrorKind, OutputMode, RestartPolicy};

/// Maximum number of services of one task.
pub const MAX_SERVICES: usize = 32;
/// Time limit of one run of a command that finds out whether a service is ready, in seconds.
pub const MAX_READY_COMMAND_SECONDS: i64 = 30;

/// Maximum total size of what defines a service, in bytes: it is stored, and read at each start of its task.
const MAX_DEFINITION_BYTES: usize = 128 << 10;
/// Time limit for becoming ready, in seconds.
const DEFAULT_READY_SECONDS: i64 = 60;
const MAX_READY_SECONDS: i64 = 3600;
/// Maximum length of a path or URL of a check.
const MAX_PATH_BYTES: usize = 4095;
/// The hosts of a URL: the guest's loopback interface.
const LOOPBACK: [&str; 2] = ["localhost", "127.0.0.1"];

/// What to start, after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedService {
    /// The command. Its time limit means nothing.
    pub command: CheckedCommand,
    /// How to find out that it is ready.
    pub ready: Option<Readiness>,
    /// Time limit for becoming ready.
    pub ready_timeout: Duration,
    /// When its command is run again.
    pub restart: RestartPolicy,
    /// Start it with the task.
    pub start_with_task: bool,
}

/// How to find out that a service is ready, after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It accepts connections to this TCP port.
    Tcp(u16),
    /// It answers a GET request.
    Http {
        /// `localhost` or `127.0.0.1`.
        host: String,
        /// The TCP port.
        port: u16,
        /// Path and query.
        path: String,
    },
    /// This file exists.
    File(String),
    /// This command succeeds; the user, directory, variables, and shell are those of the service.
    Command(CheckedCommand),
}

/// Checks the name of a service.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_service_name(name: &str) -> Result<(), Error> {
    check_name_of("service name", name)
}

/// Checks what a service is to be. `None`: a service that exists is to be started.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_service(
    command: ServiceCommand,
    options: ServiceOptions,
) -> Result<Option<CheckedService>, Error> {
    if command.is_empty() {
        return match first_of(&options) {
            None => Ok(None),
            Some(name) => {
                let message =
                    format!("{name} needs a command: without one, a service is started again unchanged");
                Err(refusal(message).naming(name))
            }
        };
    }
    let ServiceCommand { command, argv, shell, cwd, env, user } = command;
    let bytes = command.as_ref().map_or(0, String::len)
        + argv.iter().flatten().map(|word| word.len() + 1).sum::<usize>()
        + env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + options.ready_command.as_ref().map_or(0, String::len);
    if bytes > MAX_DEFINITION_BYTES {
        let message = format!(
            "the definition of the service is too long: it has {bytes} bytes, and the maximum is {MAX_DEFINITION_BYTES}"
        );
        return Err(refusal(message));
    }
    let base = Command { shell, cwd, env, user, ..Command::default() };
    let command = Command { command, argv, ..base.clone() };
    let command = check_command(command, OutputMode::Stream)?;
    let seconds = options.ready_timeout_seconds.unwrap_or(DEFAULT_READY_SECONDS);
    if !(1..=MAX_READY_SECONDS).contains(&seconds) {
        return Err(Error::out_of_range("ready_timeout_seconds", 1, MAX_READY_SECONDS));
    }
    let ServiceOptions { restart, start_with_task, .. } = options;
    Ok(Some(CheckedService {
        command,
        ready: check_ready(options, base)?,
        ready_timeout: Duration::from_secs(seconds.unsigned_abs()),
        restart,
        start_with_task,
    }))
}

/// Returns the name of an option that says what a service is to be.
fn first_of(options: &ServiceOptions) -> Option<&'static str> {
    let ServiceOptions { ready_tcp, ready_http, ready_file, ready_command, .. } = options;
    let given = [
        ("ready_tcp", ready_tcp.is_some()),
        ("ready_http", ready_http.is_some()),
        ("ready_file", ready_file.is_some()),
        ("ready_command", ready_command.is_some()),
        ("ready_timeout_seconds", options.ready_timeout_seconds.is_some()),
        ("restart", options.restart != RestartPolicy::default()),
        ("start_with_task", options.start_with_task),
    ];
    given.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
}

fn check_ready(options: ServiceOptions, base: Command) -> Result<Option<Readiness>, Error> {
    let ServiceOptions { ready_tcp, ready_http, ready_file, ready_command, .. } = options;
    let given = [ready_tcp.is_some(), ready_http.is_some(), ready_file.is_some(), ready_command.is_some()];
    if given.into_iter().filter(|is_given| *is_given).count() > 1 {
        return Err(refusal(
            "a service has one check: ready_tcp, ready_http, ready_file, and ready_command exclude each other",
        )
        .naming("ready_tcp")
        .naming("ready_http")
        .naming("ready_file")
        .naming("ready_command"));
    }
    if let Some(port) = ready_tcp {
        return match port {
            0 => Err(Error::out_of_range("ready_tcp", 1, u16::MAX.into())),
            port => Ok(Some(Readiness::Tcp(port))),
        };
    }
    if let Some(url) = ready_http {
        return check_url(&url).map(Some);
    }
    if let Some(path) = ready_file {
        let is_path = (1..=MAX_PATH_BYTES).contains(&path.len()) && !path.contains('\0');
        return match is_path {
            true => Ok(Some(Readiness::File(path))),
            false => {
                Err(refusal("invalid ready_file: expected a path of at most 4095 bytes").naming("ready_file"))
            }
        };
    }
    let command = ready_command.map(|text| {
        let timeout_seconds = Some(MAX_READY_COMMAND_SECONDS);
        check_command(Command { command: Some(text), timeout_seconds, ..base }, OutputMode::Stream)
    });
    Ok(command.transpose()?.map(Readiness::Command))
}

fn check_url(url: &str) -> Result<Readiness, Error> {
    let invalid = || {
        refusal("invalid ready_http: expected http://localhost:PORT/PATH or http://127.0.0.1:PORT/PATH")
            .naming("ready_http")
    };
    if url.len() > MAX_PATH_BYTES {
        return Err(invalid());
    }
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let authority = uri.authority().ok_or_else(invalid)?;
    let is_plain = uri.scheme_str() == Some("http") && !authority.as_str().contains('@');
    // `Uri` leaves out a port that is not a number from 0 to 65535.
    let port = match (authority.port_u16(), authority.as_str().contains(':')) {
        (Some(port @ 1..), _) => port,
        (None, false) => 80,
        _ => return Err(invalid()),
    };
    if !is_plain || !LOOPBACK.contains(&authority.host()) {
        return Err(invalid());
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Readiness::Http { host: authority.host().to_owned(), port, path })
}

fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CheckedProgram;

    fn command(text: &str) -> ServiceCommand {
        ServiceCommand { command: Some(text.to_owned()), ..ServiceCommand::default() }
    }

    fn ready(options: ServiceOptions) -> Result<Option<Readiness>, Error> {
        check_service(command("true"), options).map(|checked| checked.unwrap().ready)
    }

    #[test]
    fn urls_lead_to_the_guest_itself() {
        let check = |url: &str| {
            ready(ServiceOptions { ready_http: Some(url.to_owned()), ..ServiceOptions::default() })
        };
        for (url, host, port, path) in [
            ("http://localhost:8000/", "localhost", 8000, "/"),
            ("http://localhost:8000", "localhost", 8000, "/"),
            ("http://127.0.0.1/a/b?c=d", "127.0.0.1", 80, "/a/b?c=d"),
            ("http://localhost:80?x", "localhost", 80, "/?x"),
        ] {
            assert_eq!(
                check(url).unwrap(),
                Some(Readiness::Http { host: host.to_owned(), port, path: path.to_owned() }),
                "{url}"
            );
        }
        for url in [
            "",
            "localhost",
            "/path",
            "https://localhost/",
            "http://example.test/",
            "http://192.0.2.1/",
            "http://user@localhost/",
            "http://localhost:0/",
            "http://localhost:65536/",
            "http://localhost:/",
            "http://local host/",
            "http://localhost/\r\nX: y",
            &format!("http://localhost/{}", "x".repeat(5000)),
        ] {
            let error = check(url).unwrap_err();
            assert_eq!(
                (error.kind, error.parameters),
                (ErrorKind::InvalidInput, vec!["ready_http".to_owned()])
            );
        }
    }

    #[test]
    fn a_service_has_one_check_within_its_limits() {
        let none = ServiceOptions::default;
        assert_eq!(ready(none()).unwrap(), None);
        assert_eq!(
            ready(ServiceOptions { ready_tcp: Some(80), ..none() }).unwrap(),
            Some(Readiness::Tcp(80))
        );
        for options in [
            ServiceOptions { ready_tcp: Some(0), ..none() },
            ServiceOptions { ready_file: Some(String::new()), ..none() },
            ServiceOptions { ready_file: Some("a\0b".to_owned()), ..none() },
            ServiceOptions { ready_tcp: Some(1), ready_file: Some("x".to_owned()), ..none() },
            ServiceOptions { ready_timeout_seconds: Some(0), ..none() },
            ServiceOptions { ready_timeout_seconds: Some(3601), ..none() },
            ServiceOptions { ready_command: Some("a\0b".to_owned()), ..none() },
        ] {
            assert_eq!(ready(options.clone()).unwrap_err().kind, ErrorKind::InvalidInput, "{options:?}");
        }
    }

    #[test]
    fn a_check_runs_as_its_service_does() {
        let given = ServiceCommand {
            argv: Some(vec!["server".to_owned()]),
            cwd: Some("app".to_owned()),
            user: Some("www".to_owned()),
            ..ServiceCommand::default()
        };
        let options =
            ServiceOptions { ready_command: Some("test -S socket".to_owned()), ..ServiceOptions::default() };
        let checked = check_service(given, options).unwrap().unwrap();
        let Some(Readiness::Command(check)) = checked.ready else { panic!() };
        assert_eq!((check.cwd.as_deref(), check.user.as_deref()), (Some("app"), Some("www")));
        assert_eq!(check.timeout, Some(Duration::from_secs(30)));
        assert!(matches!(check.program, CheckedProgram::Shell { .. }));
        assert_eq!(checked.command.program, CheckedProgram::Argv(vec!["server".to_owned()]));
    }

    #[test]
    fn without_a_command_an_existing_service_is_started() {
        let started = |options| check_service(ServiceCommand::default(), options);
        assert_eq!(started(ServiceOptions { wait: false, ..ServiceOptions::default() }).unwrap(), None);
        let options = ServiceOptions { ready_tcp: Some(80), ..ServiceOptions::default() };
        let error = started(options).unwrap_err();
        let expected = "ready_tcp needs a command: without one, a service is started again unchanged";
        assert_eq!((error.to_string().as_str(), error.parameters), (expected, vec!["ready_tcp".to_owned()]));
        let options = ServiceOptions { restart: RestartPolicy::Always, ..ServiceOptions::default() };
        assert_eq!(started(options).unwrap_err().parameters, ["restart"]);
    }

    #[test]
    fn a_definition_is_bounded() {
        let long = "x".repeat(MAX_DEFINITION_BYTES + 1);
        assert_eq!(
            check_service(command(&long), ServiceOptions::default()).unwrap_err().kind,
            ErrorKind::InvalidInput
        );
        check_service(command(&long[1..]), ServiceOptions::default()).unwrap();
        for name in ["web", "1", "a.b_c-d", "cafe"] {
            check_service_name(name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "-a", "a b", &"n".repeat(64)] {
            check_service_name(name).unwrap_err();
        }
    }
}
