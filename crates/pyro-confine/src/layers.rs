//! What was reached, layer by layer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of a confinement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Layer {
    /// It holds.
    Active,
    /// The host does not give it.
    Unavailable {
        /// Why not.
        reason: String,
    },
}

impl Layer {
    /// Creates the layer that is missing because of `reason`.
    pub fn unavailable(reason: impl fmt::Display) -> Self {
        Self::Unavailable { reason: reason.to_string() }
    }

    /// Returns whether it holds.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Active)
    }
}

/// `active`, or why not.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Unavailable { reason } => write!(f, "unavailable({reason})"),
        }
    }
}

/// The confinement of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// A user namespace of its own.
    pub user_namespace: Layer,
    /// A file system root of its own, with nothing but the files that it needs.
    pub mount_namespace: Layer,
    /// A process ID namespace of its own: it sees no other process.
    pub pid_namespace: Layer,
    /// A System V IPC and POSIX message queue namespace of its own.
    pub ipc_namespace: Layer,
    /// A host name of its own.
    pub uts_namespace: Layer,
    /// A network namespace of its own, without interfaces.
    pub network_namespace: Layer,
    /// Its user is not root on the host.
    pub unprivileged_user: Layer,
    /// It has no capabilities and cannot get any.
    pub no_capabilities: Layer,
    /// Executing a program gives it no privileges.
    pub no_new_privileges: Layer,
    /// Landlock allows it only the files that it needs, no TCP (since version 4 of its interface), and neither signals nor
    /// abstract sockets beyond itself (since version 6). It is active with every version; what older ones lack is left to the
    /// namespaces.
    pub landlock: Layer,
    /// Only listed system calls are allowed.
    pub seccomp: Layer,
    /// Limits on what it may use.
    pub limits: Layer,
    /// A control group of its own with a memory limit. Not part of [`Confinement::is_full`]: few hosts delegate one.
    pub cgroup: Layer,
    /// Version of the kernel's Landlock, where that layer holds.
    pub landlock_abi: Option<u32>,
    /// The user on the host, as a number.
    pub uid: u32,
}

impl Confinement {
    /// Creates the report of a process that nothing confines because of `reason`.
    pub fn none(reason: impl fmt::Display) -> Self {
        let missing = Layer::unavailable(reason);
        Self {
            user_namespace: missing.clone(),
            mount_namespace: missing.clone(),
            pid_namespace: missing.clone(),
            ipc_namespace: missing.clone(),
            uts_namespace: missing.clone(),
            network_namespace: missing.clone(),
            unprivileged_user: missing.clone(),
            no_capabilities: missing.clone(),
            no_new_privileges: missing.clone(),
            landlock: missing.clone(),
            seccomp: missing.clone(),
            limits: missing.clone(),
            cgroup: missing,
            landlock_abi: None,
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    /// Returns the layers with their names, in a fixed order.
    pub fn layers(&self) -> [(&'static str, &Layer); 13] {
        [
            ("user_namespace", &self.user_namespace),
            ("mount_namespace", &self.mount_namespace),
            ("pid_namespace", &self.pid_namespace),
            ("ipc_namespace", &self.ipc_namespace),
            ("uts_namespace", &self.uts_namespace),
            ("network_namespace", &self.network_namespace),
            ("unprivileged_user", &self.unprivileged_user),
            ("no_capabilities", &self.no_capabilities),
            ("no_new_privileges", &self.no_new_privileges),
            ("landlock", &self.landlock),
            ("seccomp", &self.seccomp),
            ("limits", &self.limits),
            (CGROUP, &self.cgroup),
        ]
    }

    /// Returns the layers that a full confinement has and this one lacks, each with the reason.
    pub fn missing(&self) -> Vec<(&'static str, &str)> {
        let layers = self.layers().into_iter().filter(|(name, _)| *name != CGROUP);
        layers
            .filter_map(|(name, layer)| match layer {
                Layer::Active => None,
                Layer::Unavailable { reason } => Some((name, reason.as_str())),
            })
            .collect()
    }

    /// Returns the layers that a process can give itself and this one lacks, each with the reason: all but namespaces and the
    /// control group, which it keeps.
    pub fn missing_self_applied(&self) -> Vec<(&'static str, &str)> {
        self.missing().into_iter().filter(|(name, _)| !name.ends_with(NAMESPACE)).collect()
    }

    /// Returns its text without the layers that a process cannot give itself.
    pub fn self_applied(&self) -> SelfConfinement<'_> {
        SelfConfinement(self)
    }

    /// Returns whether every layer holds, except for the control group.
    pub fn is_full(&self) -> bool {
        self.missing().is_empty()
    }
}

const CGROUP: &str = "cgroup";
/// How the names of namespaces end.
const NAMESPACE: &str = "_namespace";

/// Returns what a version of Landlock's interface cannot restrict, for a report.
fn missing_from_landlock(abi: u32) -> &'static str {
    match abi {
        0..4 => ", without TCP, signals and abstract sockets",
        4..6 => ", without signals and abstract sockets",
        _ => "",
    }
}

/// Writes `full` or `partial`; then every layer, and the user.
fn describe(
    f: &mut fmt::Formatter<'_>,
    of: &Confinement,
    is_full: bool,
    wanted: impl Fn(&str) -> bool,
) -> fmt::Result {
    f.write_str(if is_full { "full" } else { "partial" })?;
    for (name, layer) in of.layers().into_iter().filter(|(name, _)| wanted(name)) {
        match layer {
            Layer::Active if name == "landlock" => {
                let abi = of.landlock_abi.unwrap_or_default();
                write!(f, "; {name}=active(abi {abi}{})", missing_from_landlock(abi))?;
            }
            layer => write!(f, "; {name}={layer}")?,
        }
    }
    write!(f, "; uid={}", of.uid)
}

/// `full`, or `partial` with what is missing; then every layer that holds, and the user.
impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, self, self.is_full(), |_| true)
    }
}

/// The confinement of a process by itself, which keeps its namespaces.
#[derive(Clone, Copy, Debug)]
pub struct SelfConfinement<'a>(&'a Confinement);

impl fmt::Display for SelfConfinement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_full = self.0.missing_self_applied().is_empty();
        describe(f, self.0, is_full, |name| name != CGROUP && !name.ends_with(NAMESPACE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Confinement {
        let mut full = Confinement::none("test");
        for layer in [
            &mut full.user_namespace,
            &mut full.mount_namespace,
            &mut full.pid_namespace,
            &mut full.ipc_namespace,
            &mut full.uts_namespace,
            &mut full.network_namespace,
            &mut full.unprivileged_user,
            &mut full.no_capabilities,
            &mut full.no_new_privileges,
            &mut full.landlock,
            &mut full.seccomp,
            &mut full.limits,
        ] {
            *layer = Layer::Active;
        }
        full.landlock_abi = Some(7);
        full
    }

    #[test]
    fn the_control_group_is_not_required() {
        assert!(full().is_full());
        let missing = Confinement { seccomp: Layer::unavailable("the kernel has none"), ..full() };
        assert_eq!(missing.missing(), [("seccomp", "the kernel has none")]);
        assert_eq!(Confinement::none("why").missing().len(), 12);
        assert_eq!(Confinement::none("why").missing_self_applied().len(), 6);
    }

    #[test]
    fn it_is_readable_by_people_and_programs() {
        let text = Confinement { uid: 7, ..full() }.to_string();
        assert!(text.starts_with("full; user_namespace=active; "), "{text}");
        assert!(text.contains("; landlock=active(abi 7); "), "{text}");
        assert!(text.ends_with("; cgroup=unavailable(test); uid=7"), "{text}");
        for (abi, missing) in [(3, "TCP, signals and abstract sockets"), (5, "signals and abstract sockets")]
        {
            let text = Confinement { landlock_abi: Some(abi), ..full() }.to_string();
            assert!(text.contains(&format!("; landlock=active(abi {abi}, without {missing}); ")), "{text}");
        }
        let keeps = Confinement { user_namespace: Layer::unavailable("kept"), uid: 7, ..full() };
        assert_eq!(
            keeps.self_applied().to_string(),
            "full; unprivileged_user=active; no_capabilities=active; no_new_privileges=active; \
             landlock=active(abi 7); seccomp=active; limits=active; uid=7"
        );
        let json = serde_json::to_value(full()).unwrap();
        assert_eq!(json["seccomp"]["state"], "active");
        assert_eq!(json["cgroup"]["reason"], "test");
        assert_eq!(serde_json::from_value::<Confinement>(json).unwrap(), full());
    }
}
