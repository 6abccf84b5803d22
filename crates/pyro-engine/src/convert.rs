//! Conversions between the types of the lower crates and those of the contract. All of them are in this module.

use pyro_api::{
    Accelerator, CopyLimits, Environment, EnvironmentList, Hint, OutputStream, PruneReport, PulledEnvironment,
};
use pyro_env::Remedy;
use pyro_supervisor::ArchiveLimits;

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

/// Converts a configured accelerator for the crates that run VMs.
pub(crate) fn accelerator(accelerator: Accelerator) -> pyro_machine::Accelerator {
    match accelerator {
        Accelerator::Kvm => pyro_machine::Accelerator::Kvm,
        Accelerator::Tcg => pyro_machine::Accelerator::Tcg,
    }
}

/// Converts the limits of a copy for the code that copies.
pub(crate) fn archive_limits(limits: CopyLimits) -> ArchiveLimits {
    ArchiveLimits { max_entries: limits.max_entries, max_bytes: limits.max_bytes }
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
    } = environment;
    Environment {
        name,
        version,
        description,
        default_packages,
        distribution,
        distribution_version,
        platform,
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
    }
}
