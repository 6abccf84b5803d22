//! Settings of an engine.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Accelerator;

/// Settings of an [`Engine`](crate::Engine), as a plain value.
///
/// Where the values come from (flags, environment variables, defaults) is the front end's business.
#[derive(Debug, Clone)]
pub struct Config {
    /// State directory: registry and one directory per VM. Created with mode 0700 on first use.
    pub base_dir: PathBuf,
    /// Environment cache.
    pub cache_dir: PathBuf,
    /// Most VMs that may exist at once, in any state and over all processes that share `base_dir`.
    /// The contract's default is [`Config::DEFAULT_MAX_ACTIVE_VMS`].
    pub max_active_vms: u32,
    /// How many spare VMs of each kind that is started shall wait for the next start; 0 for none. They fill what
    /// `max_active_vms` leaves free and give way to VMs that someone asks for.
    pub warm_spares: u32,
    /// How long a spare waits before it goes, in seconds; normally [`Config::DEFAULT_SPARE_IDLE_SECONDS`].
    pub spare_idle_seconds: u32,
    /// The pyro executable, which the engine starts again for its helper processes.
    pub program: PathBuf,
    /// Forces an accelerator; `None` measures the host and decides.
    pub accelerator: Option<Accelerator>,
    /// The QEMU program; `None` looks for `qemu-system-x86_64` in `search_path`.
    pub vmm_program: Option<PathBuf>,
    /// A kernel for all guests that needs no modules; `None` uses each environment's own.
    pub guest_kernel: Option<PathBuf>,
    /// Mirror to build Debian environments from; `None` uses the catalog's own.
    pub debian_mirror: Option<String>,
    /// Where programs are looked for, in the form of `PATH`. Commands of the host compatibility mode
    /// get it as their `PATH`.
    pub search_path: OsString,
}

impl Config {
    /// Ceiling on existing VMs when nothing else was asked for.
    pub const DEFAULT_MAX_ACTIVE_VMS: u32 = 4;

    /// How long a spare waits when nothing else was asked for: five minutes.
    pub const DEFAULT_SPARE_IDLE_SECONDS: u32 = 300;
}
