//! Environments: the cache of `pyro-env` with events and engine errors.

use std::cell::Cell;

use pyro_env::{CancelFlag, EnvironmentVersion, InstalledEnvironment, OpenError, PullObserver, PullStep};
use pyro_supervisor::template;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::{
    Environment, EnvironmentList, Error, ErrorKind, Event, Events, Hint, Pruned, PullEvent,
    PulledEnvironment, RemovedEnvironment, convert, state_dir,
};

/// Maximum number of VMs and tasks that an error about an environment in use lists.
const SHOWN_USERS: usize = 8;

impl Engine {
    /// Returns the catalog, sorted by name, with the installation state of each entry.
    ///
    /// # Errors
    /// `EnvironmentUnavailable` if the cache cannot be read.
    pub async fn list_environments(&self) -> Result<EnvironmentList, Error> {
        self.blocking(|shared| {
            let list = shared.environments.list();
            list.map(convert::environments).map_err(|error| unavailable(error.kind(), &error, None))
        })
        .await
    }

    /// Returns one environment of the catalog.
    ///
    /// # Errors
    /// `InvalidInput` if the catalog does not have the name, `EnvironmentUnavailable` if the cache cannot be read.
    pub async fn inspect_environment(&self, name: &str) -> Result<Environment, Error> {
        let name = name.to_owned();
        self.blocking(move |shared| {
            let found = shared.environments.inspect(&name);
            found.map(convert::environment).map_err(|error| unavailable(error.kind(), &error, None))
        })
        .await
    }

    /// Installs an environment if it is not installed yet, and creates the template from which runs of the default size
    /// start. A failure to create the template is only a warning.
    ///
    /// # Errors
    /// `InvalidInput`, `EnvironmentUnavailable`, `Cancelled`.
    pub async fn pull_environment(
        &self,
        name: &str,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<PulledEnvironment, Error> {
        let pulled = self.install_environment(name, events, cancel).await?;
        if let Ok(host) = self.host().await
            && let Some(environment) = self.open_environment(name).await?
        {
            match self.make_default_template(environment, host, events, cancel).await {
                Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                Err(error) => {
                    let text = format!("VMs of {name} will start slowly, there is no template: {error}");
                    events.send(Event::Warning(text)).await;
                }
                Ok(()) => {}
            }
        }
        Ok(pulled)
    }

    async fn install_environment(
        &self,
        name: &str,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<PulledEnvironment, Error> {
        let flag = CancelFlag::new();
        let pull = self.blocking({
            let (name, events, flag) = (name.to_owned(), events.clone(), flag.clone());
            move |shared| {
                let observer = Observer { name: &name, events: &events, step: Cell::default() };
                let pulled = shared.environments.pull(&name, &observer, &flag);
                pulled.map(convert::pulled).map_err(|error| unavailable(error.kind(), &error, error.remedy()))
            }
        });
        tokio::pin!(pull);
        tokio::select! {
            result = &mut pull => return result,
            () = cancel.cancelled() => flag.cancel(),
        }
        // The build cleans up after itself; nothing may be left when this returns.
        pull.await
    }

    /// Removes unusable data: environments in the cache that neither the catalog nor a VM or task of this state directory
    /// needs, and templates of other boots, agents, and environments.
    ///
    /// # Errors
    /// `EnvironmentUnavailable` if an environment cannot be removed, `StateUnusable`.
    pub async fn prune_environments(&self) -> Result<Pruned, Error> {
        self.blocking(|shared| {
            let unreadable = |error: pyro_env::ListError| unavailable(error.kind(), &error, None);
            // A stopped task goes on with the version that its disk was written over.
            let keep = match shared.config.base_dir.exists() {
                true => shared.registry.environment_versions()?,
                false => Vec::new(),
            };
            let pruned = shared.environments.prune(&keep);
            let installed = shared.environments.list().map_err(unreadable)?.environments;
            let digests: Vec<String> = installed
                .iter()
                .filter_map(|environment| Some(shared.environments.open(&environment.name).ok()?.digest))
                .collect();
            let cache_dir = std::path::absolute(&shared.config.cache_dir)
                .unwrap_or_else(|_| shared.config.cache_dir.clone());
            let deleted_templates =
                template::prune(&state_dir::templates(&shared.config.base_dir), &digests, &cache_dir);
            // An environment that cannot be removed does not keep the templates of others.
            let environments = pruned.map_err(|error| unavailable(error.kind(), &error, None))?;
            Ok(Pruned { environments: convert::prune_report(environments), deleted_templates })
        })
        .await
    }

    /// Removes an installed environment from the cache, in all its versions, with its templates.
    ///
    /// # Errors
    /// `InvalidInput` if the catalog does not have the name, `WrongState` if a VM or task was made from it, even a stopped one,
    /// `EnvironmentUnavailable` if it is not installed or cannot be removed.
    pub async fn remove_environment(&self, name: &str) -> Result<RemovedEnvironment, Error> {
        self.inspect_environment(name).await?;
        self.refuse_with_users(name).await?;
        // Spares of this state directory use it, and only wait to be used.
        self.pool().trim(0).await;
        let name = name.to_owned();
        self.blocking(move |shared| {
            let removed = shared.environments.remove(&name).map_err(|error| match error.kind() {
                pyro_env::ErrorKind::InUse => {
                    Error::new(ErrorKind::WrongState, error.to_string()).hint(Hint::EndUsers)
                }
                kind => unavailable(kind, &error, None),
            })?;
            let templates = state_dir::templates(&shared.config.base_dir);
            let deleted_templates =
                removed.digests.iter().map(|digest| template::remove_all_of(&templates, digest)).sum();
            Ok(RemovedEnvironment { environment: name, freed_bytes: removed.freed_bytes, deleted_templates })
        })
        .await
    }

    /// Fails if a VM or task of this state directory needs the environment: without it, its disk could not be used.
    async fn refuse_with_users(&self, name: &str) -> Result<(), Error> {
        if !self.config().base_dir.exists() {
            return Ok(());
        }
        let environment = name.to_owned();
        let users = self.registry(move |registry| registry.users_of_environment(&environment)).await?;
        if users.is_empty() {
            return Ok(());
        }
        let mut shown: Vec<String> = users.iter().take(SHOWN_USERS).map(ToString::to_string).collect();
        if users.len() > SHOWN_USERS {
            shown.push(format!("and {} more", users.len() - SHOWN_USERS));
        }
        let message = format!("environment '{name}' is in use by {}", shown.join(", "));
        Err(Error::new(ErrorKind::WrongState, message).hint(Hint::EndUsers))
    }

    /// Returns the environment, ready to run; installs it first if necessary.
    pub(super) async fn environment(
        &self,
        name: &str,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<InstalledEnvironment, Error> {
        match self.open_environment(name).await? {
            Some(environment) => Ok(environment),
            None => {
                self.install_environment(name, events, cancel).await?;
                self.open_environment(name).await?.ok_or_else(|| {
                    let message = format!("environment '{name}' was removed while it was being used");
                    Error::new(ErrorKind::EnvironmentUnavailable, message)
                })
            }
        }
    }

    /// Reads all files of an installed environment and compares them with the digests recorded when it was installed.
    ///
    /// # Errors
    /// `InvalidInput`; `EnvironmentUnavailable` if it is not installed, damaged, or cannot be trusted.
    pub async fn verify_environment(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.blocking(move |shared| {
            let opened =
                shared.environments.open(&name).map_err(|e| unavailable(e.kind(), &e, e.remedy()))?;
            let verified = opened.verify_contents().map_err(|e| unavailable(e.kind(), &e, None))?;
            verified.map_err(|damage| {
                let error = OpenError::Damaged { name: name.clone(), damage };
                unavailable(error.kind(), &error, error.remedy())
            })
        })
        .await
    }

    /// Returns this version of the environment, ready to run. Where it is no longer installed, this is the catalog's, which is
    /// installed first if necessary.
    pub(super) async fn environment_version(
        &self,
        which: EnvironmentVersion,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<InstalledEnvironment, Error> {
        let name = which.name.clone();
        match self.blocking(move |shared| Ok(shared.environments.open_version(&which))).await? {
            Ok(environment) => Ok(environment),
            Err(OpenError::NotInstalled { .. }) => self.environment(&name, events, cancel).await,
            Err(error) => Err(unavailable(error.kind(), &error, error.remedy())),
        }
    }

    /// Returns the environment, ready to run; `None` if it is not installed.
    pub(super) async fn open_environment(&self, name: &str) -> Result<Option<InstalledEnvironment>, Error> {
        let name = name.to_owned();
        self.blocking(move |shared| match shared.environments.open(&name) {
            Ok(environment) => Ok(Some(environment)),
            Err(OpenError::NotInstalled { .. }) => Ok(None),
            Err(error) => Err(unavailable(error.kind(), &error, error.remedy())),
        })
        .await
    }
}

/// Translates the steps of a pull into events.
struct Observer<'a> {
    name: &'a str,
    events: &'a Events,
    step: Cell<Option<PullStep>>,
}

impl Observer<'_> {
    fn send(&self, event: PullEvent) {
        self.events.send_blocking(Event::Pull(event));
    }
}

impl PullObserver for Observer<'_> {
    fn step(&self, step: PullStep) {
        if self.step.replace(Some(step)).is_none() && step != PullStep::AlreadyInstalled {
            self.send(PullEvent::Started { environment: self.name.to_owned() });
        }
    }

    fn progress(&self, done: u64, total: u64) {
        if done == total {
            self.send(PullEvent::Ready { environment: self.name.to_owned() });
        } else if let Some(step) = self.step.get() {
            self.send(PullEvent::Step { text: step.to_string(), done, total });
        }
    }
}

/// Converts a cache error into the engine's error.
fn unavailable(
    kind: pyro_env::ErrorKind,
    error: &dyn std::error::Error,
    remedy: Option<pyro_env::Remedy>,
) -> Error {
    let kind = match kind {
        pyro_env::ErrorKind::UnknownEnvironment => ErrorKind::InvalidInput,
        pyro_env::ErrorKind::Cancelled => return Error::cancelled(),
        _ => ErrorKind::EnvironmentUnavailable,
    };
    let hints = remedy.into_iter().map(convert::hint).collect();
    Error { hints, ..Error::new(kind, error.to_string()) }.with_causes_of(error)
}
