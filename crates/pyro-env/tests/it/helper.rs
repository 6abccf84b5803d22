//! Pulls in a separate process: the test program, started to run one ignored test.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use pyro_env::{CacheConfig, CancelFlag, EnvironmentCache, PullObserver, PullStep, Tools};

const CACHE: &str = "TEST_PULL_CACHE";
const NAME: &str = "TEST_PULL_NAME";
const FAKE: &str = "TEST_PULL_FAKE";

struct Printer;

impl PullObserver for Printer {
    #[expect(clippy::print_stdout, reason = "this is the channel to the parent")]
    fn step(&self, step: PullStep) {
        println!("STEP {step}");
    }
}

#[test]
#[ignore = "run by other tests in a process of its own"]
fn pull_in_this_process() {
    let Ok(cache_dir) = std::env::var(CACHE) else { return };
    let name = std::env::var(NAME).expect("set together");
    let config = |mirror: &str| CacheConfig {
        cache_dir: cache_dir.clone().into(),
        mirror: Some(mirror.to_owned()).filter(|mirror| !mirror.is_empty()),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    };
    let cache = match std::env::var(FAKE) {
        Ok(dir) => {
            let tool = |name: &str| Path::new(&dir).join(name);
            let tools = Tools {
                mmdebstrap: tool("mmdebstrap"),
                dpkg_deb: tool("dpkg-deb"),
                mkfs_erofs: tool("mkfs"),
                keyring: tool("keyring"),
                ..Tools::default()
            };
            EnvironmentCache::with_tools(config("http://archive.invalid/debian"), tools)
        }
        Err(_) => EnvironmentCache::new(config("")),
    };
    cache.pull(&name, &Printer, &CancelFlag::new()).expect("pulled");
}

/// A pulling process.
pub(crate) struct Pull {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Pull {
    pub(crate) fn start(cache_dir: &Path, fake: Option<&Tools>, name: &str) -> Pull {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "helper::pull_in_this_process", "--ignored", "--nocapture"]);
        command.env(CACHE, cache_dir).env(NAME, name);
        if let Some(dir) = fake.and_then(|tools| tools.mmdebstrap.parent()) {
            command.env(FAKE, dir);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Pull { child, lines }
    }

    /// Reads until the process announces `step`; if it exits without doing so, the test fails.
    pub(crate) fn wait_for(&mut self, step: PullStep) {
        let wanted = format!("STEP {step}");
        assert!(self.lines.any(|line| line.expect("text").ends_with(&wanted)), "{step}: never came");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }

    /// Returns the remaining steps, once the process has succeeded.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let lines = self.lines.map(|line| line.expect("text"));
        let steps = lines.filter_map(|line| Some(line.split_once("STEP ")?.1.to_owned())).collect();
        assert!(self.child.wait().expect("waited").success());
        steps
    }
}
