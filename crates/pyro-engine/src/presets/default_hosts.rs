//! What package managers report as their defaults. A program is started for that, so an answer is kept.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyro_machine::spawn::Spawn;
use tokio::io::AsyncReadExt as _;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::clients::Source;
use crate::{Config, search_path};

/// Time limit for a package manager to report its default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of its answer in bytes.
const MAX_ANSWER: u64 = 16 << 10;

/// A program that prints URLs.
pub(super) struct Question {
    pub(super) program: &'static str,
    pub(super) args: &'static [&'static str],
}

/// The answers of package managers, by program. Each is asked once, however many VMs are started.
#[derive(Debug, Default)]
pub(crate) struct DefaultHosts(Mutex<HashMap<&'static str, Arc<OnceCell<Vec<String>>>>>);

impl DefaultHosts {
    /// Returns what a package manager reports. Nothing if it is not installed, fails, or takes too long; it is asked again
    /// then.
    pub(super) async fn of(&self, question: &Question, config: &Config) -> Vec<Source> {
        let answer = {
            let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(answers.entry(question.program).or_default())
        };
        let urls = answer.get_or_try_init(async || ask(question, config).await.ok_or(())).await;
        let from = format!("the answer of {}", question.program);
        urls.into_iter().flatten().map(|url| Source::new(url, &from)).collect()
    }
}

/// Returns the URLs that a program prints.
async fn ask(question: &Question, config: &Config) -> Option<Vec<String>> {
    let program = search_path::find(question.program, &config.search_path)?;
    let home = config.package_clients.home.clone().unwrap_or_default();
    let spawn = Spawn::new(program)
        .args(question.args)
        .current_dir(Path::new("/"))
        .clear_env()
        .env("PATH", &config.search_path)
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let answer = async {
        let mut child = spawn.start().ok()?;
        let mut text = String::new();
        child.stdout.take()?.take(MAX_ANSWER).read_to_string(&mut text).await.ok()?;
        child.wait().await.ok()?.success().then_some(text)
    };
    let text = timeout(ANSWER_TIMEOUT, answer).await.ok().flatten()?;
    let urls = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let urls: Vec<_> = urls.map(str::to_owned).collect();
    (!urls.is_empty()).then_some(urls)
}
