//! The environment and size of a VM, as arguments of several commands.

use clap::{Args, ValueEnum};
use pyro_engine::Config;

use crate::words::integer;

/// What a VM must be confined by, as an argument of several commands.
#[derive(Debug, Args)]
pub(crate) struct ConfinementArgs {
    /// Start no VM unless this host can confine its VMM that much; `pyro doctor` shows what it can [default: off, or PYRO_REQUIRE_CONFINEMENT]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) require_confinement: Option<RequiredConfinement>,
}

/// How much confinement a VM needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequiredConfinement {
    /// All that pyro has
    Full,
}

impl ConfinementArgs {
    /// Adds the requirement to the configuration. It cannot take one away.
    pub(crate) fn apply(&self, config: &mut Config) {
        config.requires_full_confinement |= self.require_confinement == Some(RequiredConfinement::Full);
    }
}

#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Name from the catalog, such as debian:12; `pyro env list` shows them all
    #[arg(value_name = "ENVIRONMENT")]
    pub(crate) environment: String,
    /// Virtual CPUs of the guest, 1 to 8
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) vcpu_count: i64,
    /// Memory of the guest in MiB, 256 to 32768
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) mem_mib: i64,
}
