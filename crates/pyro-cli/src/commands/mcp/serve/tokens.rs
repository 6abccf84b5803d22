//! The tokens of clients over HTTP: from a file of the operator, or generated into the state directory.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pyro_engine::{Engine, Error};
use pyro_mcp::Tokens;

use super::{McpHttpArgs, refusal};
use crate::error::CliError;

/// Maximum size of a token file, in bytes.
const TOKEN_FILE_BYTES: u64 = 64 << 10;
/// Name of the generated file in the state directory.
const GENERATED: &str = "mcp-token";
/// Number of random bytes of a generated token.
const TOKEN_BYTES: usize = 32;

/// The tokens that a server accepts, and what to say about them once it serves.
pub(super) struct Access {
    /// `None`: every program that can connect is a client.
    pub(super) tokens: Option<Tokens>,
    pub(super) message: Option<String>,
}

/// Returns the tokens that the flags ask for. By default, there is one in the state directory, which the first server
/// generates and later ones reuse, so that the configuration of clients stays valid.
pub(super) fn access(args: &McpHttpArgs, engine: &Engine) -> Result<Access, CliError> {
    if args.no_token {
        return Ok(Access { tokens: None, message: None });
    }
    if let Some(path) = &args.token_file {
        return Ok(Access { tokens: Some(read(path)?), message: None });
    }
    let path = engine.state_directory()?.join(GENERATED);
    let message = match generate(&path)? {
        Some(token) => format!("pyro: new token for clients, shown only now: {token}"),
        None => "pyro: clients send the token that was shown when it was generated".to_owned(),
    };
    Ok(Access {
        tokens: Some(read(&path)?),
        message: Some(format!("{message} (it is in {})", path.display())),
    })
}

/// Generates the file unless it exists. Returns the new token.
fn generate(path: &Path) -> Result<Option<String>, CliError> {
    let failed = |error| CliError::System(format!("cannot write {}", path.display()), error);
    if path.exists() {
        return Ok(None);
    }
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::internal("no random numbers for a token").caused_by(error))?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // Complete before it has its name, because another server may start at the same time.
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(format!("{token}\n").as_bytes()).map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(Some(token)),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(failed(error.error)),
    }
}

/// Reads a token file that only its owner can read.
fn read(path: &Path) -> Result<Tokens, CliError> {
    let shown = path.display();
    let failed = |error| CliError::System(format!("cannot read {shown}"), error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        let message = format!("the token file {shown} belongs to another user");
        return Err(refusal(&message, "use a file of your own"));
    }
    if metadata.mode() & 0o077 != 0 {
        let message = format!("other users may access the token file {shown}");
        return Err(refusal(&message, &format!("run: chmod 600 {}", quoted(path))));
    }
    let mut text = String::new();
    let read = file.take(TOKEN_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > TOKEN_FILE_BYTES {
        let message = format!("{shown} is too large: the maximum is {TOKEN_FILE_BYTES} bytes");
        return Err(refusal(&message, "use a file that holds only tokens"));
    }
    Tokens::parse(&text).map_err(|error| {
        refusal(&format!("{shown}: {error}"), "write one token, or lines of NAME TOKEN, to the file")
    })
}

fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), Into::into)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_generated_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(GENERATED);
        let token = generate(&path).unwrap().unwrap();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(generate(&path).unwrap(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{token}\n"));
        read(&path).unwrap();
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "0123456789abcdef").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read(&path).err().unwrap().to_string();
            assert!(error.contains("other users may access the token file"), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        read(&path).unwrap();
    }
}
