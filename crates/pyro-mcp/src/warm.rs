//! Spare VMs for as long as a server runs.

use pyro_engine::{Command, Engine, Events};
use tokio_util::sync::CancellationToken;

use crate::policy::Policy;
use crate::tools::Tool;

/// Has a first spare made, as every start of a VM does, and then sees to it that spares stay. Ends with `closing`.
pub(crate) async fn keep(engine: &Engine, policy: &Policy, closing: &CancellationToken) {
    // Spares give way to what is asked for; the start that has the first one made must as well.
    if engine.warm_spares() == 0 || engine.max_active_vms() < 2 || !policy.offers(Tool::VmRun) {
        return;
    }
    let spec = policy.usual();
    // Installing an environment is for whoever asks for it.
    if engine.inspect_environment(&spec.environment).await.is_ok_and(|environment| environment.installed)
        && let Err(error) = engine.run(spec, Command::new("true"), &Events::none(), closing).await
        && !closing.is_cancelled()
    {
        tracing::warn!(%error, "no spare VM could be made");
    }
    engine.keep_spares(closing).await;
}
