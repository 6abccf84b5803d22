//! The environment and size of a VM, as arguments of several commands.

use clap::Args;

use crate::words::integer;

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
