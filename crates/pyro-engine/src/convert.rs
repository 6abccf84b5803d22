//! Conversions between the types of the lower crates and those of the contract. All of them are in this module.

use pyro_api::doctor::KvmCosts;
use pyro_api::{
    Accelerator, AllowedCidr, AllowedDomain, AllowedHost, ChangeKind, CopyLimits, Egress, Environment,
    EnvironmentList, Error, FileChange, FileInfo, FileKind, Hint, InputEvent, NetworkDenial, NetworkPolicy,
    OutputStream, PortMapping, PruneReport, PulledEnvironment, RestartPolicy, ServiceState, TerminalSize,
};
use pyro_env::Remedy;
use pyro_machine::accel::Costs;
use pyro_machine::network::{self, Denial, DnsName, DomainPattern, DomainRule, Host, HostRule, Policy};
use pyro_supervisor::{ArchiveLimits, CommandInput, Restart};

/// Converts an output stream for callers.
pub(crate) fn stream(stream: pyro_supervisor::OutputStream) -> OutputStream {
    match stream {
        pyro_supervisor::OutputStream::Stdout => OutputStream::Stdout,
        pyro_supervisor::OutputStream::Stderr => OutputStream::Stderr,
    }
}

/// Converts an output stream for the guest side.
pub(crate) fn guest_stream(stream: OutputStream) -> pyro_supervisor::OutputStream {
    match stream {
        OutputStream::Stdout => pyro_supervisor::OutputStream::Stdout,
        OutputStream::Stderr => pyro_supervisor::OutputStream::Stderr,
    }
}

/// Converts the size of a terminal for the guest.
pub(crate) fn terminal_size(size: TerminalSize) -> pyro_supervisor::TerminalSize {
    pyro_supervisor::TerminalSize { columns: size.columns, rows: size.rows }
}

/// Converts the size of a terminal for callers.
pub(crate) fn caller_size(size: pyro_supervisor::TerminalSize) -> TerminalSize {
    TerminalSize { columns: size.columns, rows: size.rows }
}

/// Converts what a caller sends to a command.
pub(crate) fn command_input(event: InputEvent) -> CommandInput {
    match event {
        InputEvent::Data(bytes) => CommandInput::Data(bytes),
        InputEvent::Finished => CommandInput::Finished,
        InputEvent::Resize(size) => CommandInput::Resize(terminal_size(size)),
    }
}

/// Converts the state of a service for callers.
pub(crate) fn service_state(state: pyro_supervisor::ServiceState) -> ServiceState {
    match state {
        pyro_supervisor::ServiceState::Starting => ServiceState::Starting,
        pyro_supervisor::ServiceState::Running => ServiceState::Running,
        pyro_supervisor::ServiceState::Ready => ServiceState::Ready,
        pyro_supervisor::ServiceState::Restarting => ServiceState::Restarting,
        pyro_supervisor::ServiceState::Failed => ServiceState::Failed,
        pyro_supervisor::ServiceState::Stopped => ServiceState::Stopped,
        pyro_supervisor::ServiceState::Exited => ServiceState::Exited,
    }
}

/// Converts the restart policy of a service for callers.
pub(crate) fn restart(restart: Restart) -> RestartPolicy {
    match restart {
        Restart::No => RestartPolicy::No,
        Restart::OnFailure => RestartPolicy::OnFailure,
        Restart::Always => RestartPolicy::Always,
    }
}

/// Converts the restart policy of a service for its supervisor.
pub(crate) fn guest_restart(restart: RestartPolicy) -> Restart {
    match restart {
        RestartPolicy::No => Restart::No,
        RestartPolicy::OnFailure => Restart::OnFailure,
        RestartPolicy::Always => Restart::Always,
    }
}

/// Converts a configured accelerator for the crates that run VMs.
pub(crate) fn accelerator(accelerator: Accelerator) -> pyro_machine::Accelerator {
    match accelerator {
        Accelerator::Kvm => pyro_machine::Accelerator::Kvm,
        Accelerator::Tcg => pyro_machine::Accelerator::Tcg,
    }
}

/// Converts what the probe of KVM measured for callers.
pub(crate) fn kvm_costs(costs: Costs) -> KvmCosts {
    let Costs { host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns } = costs;
    KvmCosts { host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns }
}

/// Converts the limits of a copy for the code that copies.
pub(crate) fn archive_limits(limits: CopyLimits) -> ArchiveLimits {
    ArchiveLimits { max_entries: limits.max_entries, max_bytes: limits.max_bytes }
}

/// Converts the description of a file for callers.
pub(crate) fn file_info(info: pyro_supervisor::FileInfo) -> FileInfo {
    let pyro_supervisor::FileInfo { path, kind, size, mode, uid, gid, modified_ms, target } = info;
    let kind = match kind {
        pyro_supervisor::FileKind::File => FileKind::File,
        pyro_supervisor::FileKind::Directory => FileKind::Directory,
        pyro_supervisor::FileKind::Symlink => FileKind::Symlink,
        pyro_supervisor::FileKind::Special => FileKind::Special,
    };
    let modified_at = modified_ms as f64 / 1000.0;
    FileInfo { path, kind, size_bytes: size, mode: format!("{mode:04o}"), uid, gid, modified_at, target }
}

/// Converts a change of a watched file for callers. `None`: the watch has begun.
pub(crate) fn file_change(change: pyro_supervisor::FileChange) -> Option<FileChange> {
    use pyro_supervisor::FileChange as Seen;

    let (change, path, old_path) = match change {
        Seen::Watching => return None,
        Seen::Created(path) => (ChangeKind::Created, path, None),
        Seen::Modified(path) => (ChangeKind::Modified, path, None),
        Seen::Attributes(path) => (ChangeKind::Attributes, path, None),
        Seen::Removed(path) => (ChangeKind::Removed, path, None),
        Seen::Moved { from, to } => (ChangeKind::Moved, to, Some(from)),
        Seen::Lost => (ChangeKind::Lost, String::new(), None),
    };
    Some(FileChange { change, path, old_path })
}

/// Converts a port mapping for callers.
pub(crate) fn port_mapping(mapping: pyro_supervisor::PortMapping) -> PortMapping {
    PortMapping { host: mapping.host, guest_port: mapping.guest_port }
}

/// Converts a port mapping for the supervisor.
pub(crate) fn guest_port_mapping(mapping: PortMapping) -> pyro_supervisor::PortMapping {
    pyro_supervisor::PortMapping { host: mapping.host, guest_port: mapping.guest_port }
}

/// Converts what a guest may reach for the crate that decides about its connections.
///
/// # Errors
/// A name that the contract accepts is not one for that crate, or a preset is left.
pub(crate) fn network_policy(policy: &NetworkPolicy) -> Result<Policy, Error> {
    Ok(Policy {
        egress: match policy.egress {
            Egress::Public => network::Egress::Public,
            Egress::Allowlist => network::Egress::Allowlist,
        },
        allow_cidrs: policy.allow_cidrs.iter().map(AllowedCidr::range).collect(),
        allow_hosts: policy
            .allow_hosts
            .iter()
            .map(|host| host_rule(host, host.port()))
            .collect::<Result<_, _>>()?,
        allow_domains: policy.allow_domains.iter().map(domain_rule).collect::<Result<_, _>>()?,
        proxies: Vec::new(),
    })
}

/// Converts a host, with this port.
///
/// # Errors
/// As [`network_policy`].
pub(crate) fn host_rule(host: &AllowedHost, port: Option<u16>) -> Result<HostRule, Error> {
    let named = || host.name().map(dns_name).transpose();
    let host = match host.address() {
        Some(address) => Host::Address(address),
        None => Host::Name(named()?.ok_or_else(unusable_name)?),
    };
    Ok(HostRule { host, port })
}

fn domain_rule(domain: &AllowedDomain) -> Result<DomainRule, Error> {
    let AllowedDomain::Domain(domain) = domain else {
        return Err(Error::internal("a preset in a network policy was not replaced"));
    };
    let pattern = DomainPattern { name: dns_name(domain.name())?, below: domain.is_wildcard() };
    Ok(DomainRule { pattern, port: domain.port() })
}

fn dns_name(name: &str) -> Result<DnsName, Error> {
    DnsName::new(name).ok_or_else(unusable_name)
}

fn unusable_name() -> Error {
    Error::internal("a name in a network policy cannot be compared")
}

/// Converts what a guest was refused for callers.
pub(crate) fn denial(denial: &Denial) -> NetworkDenial {
    NetworkDenial {
        time: denial.time,
        protocol: denial.protocol.to_string(),
        address: denial.address.map(|address| address.to_string()),
        port: denial.port,
        name: denial.name.as_ref().map(ToString::to_string),
        rule: denial.rule.to_string(),
        count: denial.count,
    }
}

/// Converts an environment for callers.
pub(crate) fn environment(environment: pyro_env::Environment) -> Environment {
    let pyro_env::Environment {
        name,
        version,
        description,
        default_packages,
        distribution,
        distribution_version,
        platform,
        shell,
        oci_registry,
        oci_repository,
        oci_reference,
        source_digest,
        compatibility,
        catalog_version,
        installed,
        cache_dir,
        install_dir,
        install_manifest,
        size_bytes,
    } = environment;
    Environment {
        name,
        version,
        description,
        default_packages,
        distribution,
        distribution_version,
        platform,
        shell,
        oci_registry,
        oci_repository,
        oci_reference,
        source_digest,
        compatibility,
        catalog_version,
        installed,
        cache_dir,
        install_dir,
        install_manifest,
        size_bytes,
    }
}

/// Converts the catalog for callers.
pub(crate) fn environments(list: pyro_env::EnvironmentList) -> EnvironmentList {
    EnvironmentList {
        catalog_version: list.catalog_version,
        environments: list.environments.into_iter().map(environment).collect(),
    }
}

/// Converts the result of a pull for callers.
pub(crate) fn pulled(pulled: pyro_env::PulledEnvironment) -> PulledEnvironment {
    let pyro_env::PulledEnvironment { environment: installed, kernel_image, rootfs_image, source } = pulled;
    PulledEnvironment { environment: environment(installed), kernel_image, rootfs_image, source }
}

/// Converts the result of a prune for callers.
pub(crate) fn prune_report(report: pyro_env::PruneReport) -> PruneReport {
    PruneReport { deleted_environment_dirs: report.deleted_environment_dirs, count: report.count }
}

/// Converts the remedy for an environment cache error.
pub(crate) fn hint(remedy: Remedy) -> Hint {
    match remedy {
        Remedy::Pull { name } => Hint::PullEnvironment { environment: name },
        Remedy::PruneAndPull { name } => Hint::PruneAndPull { environment: name },
        Remedy::DeleteUsers => Hint::DeleteUsers,
        Remedy::InstallPackage { package } => Hint::InstallPackage { package: package.to_owned() },
        Remedy::NamespacesForRoot => Hint::NamespacesForRoot,
        Remedy::NamespacesForUser => Hint::NamespacesForUser,
        Remedy::FreeSpace => Hint::FreeCache,
        Remedy::CheckNetworkOrMirror => Hint::CheckNetworkOrMirror,
        Remedy::OtherCacheDir => Hint::OtherCacheDir,
        Remedy::ProtectFromOthers { path } => Hint::ProtectFromOthers { path: path.display().to_string() },
    }
}
