//! Spare VMs for as long as a server runs.

use std::time::Duration;

use pyro_engine::{Command, Config, Engine, Events};
use tokio_util::sync::CancellationToken;

use crate::policy::Policy;

/// Time after which spares are told to stay; a third of that for which they wait.
const RENEWAL: Duration = Duration::from_secs(Config::DEFAULT_SPARE_IDLE_SECONDS as u64 / 3);
/// What most clients use.
const USUAL: &str = "debian:12";

/// Has a first spare made, as every start of a VM does, and then sees to it that spares stay. Ends with `closing`.
pub(crate) async fn keep(engine: &Engine, policy: &Policy, closing: &CancellationToken) {
    let environment = policy.environments.first().map_or(USUAL, String::as_str);
    // Installing one is for whoever asks for it.
    if engine.inspect_environment(environment).await.is_ok_and(|environment| environment.installed) {
        let _ = engine.run(policy.usual(environment), Command::new("true"), &Events::none(), closing).await;
    }
    while closing.run_until_cancelled(tokio::time::sleep(RENEWAL)).await.is_some() {
        engine.renew_spares().await;
    }
}
