//! The environment cache that all tests share.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{ENVIRONMENT, PYRO};

/// The cache directory, with the environment in it.
///
/// `PYRO_TEST_CACHE` overrides the default in the build directory. Pulling takes a lock, so one test builds the
/// environment and the others wait.
pub(crate) fn with_environment() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let directory = directory();
        std::fs::create_dir_all(&directory).unwrap();
        let output = Command::new(PYRO)
            .args(["env", "pull", ENVIRONMENT])
            .env("PYRO_ENVIRONMENT_CACHE_DIR", &directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{ENVIRONMENT} cannot be prepared: {stderr}");
        directory
    })
}

fn directory() -> PathBuf {
    match std::env::var_os("PYRO_TEST_CACHE") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-environments"),
    }
}
