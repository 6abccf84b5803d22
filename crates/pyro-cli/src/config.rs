//! The only place where pyro reads environment variables.

mod handed_on;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use pyro_engine::{
    Accelerator, Config, Engine, HostCa, MountRoots, Overcommit, PackageClients, SecretVariables, Vmm,
};

/// An invalid or missing environment variable.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ConfigError {
    message: String,
    pub(crate) hint: Option<String>,
}

impl ConfigError {
    fn bad_value(name: &str, value: &OsStr, expected: &str) -> Self {
        let shown = value.to_string_lossy();
        Self { message: format!("{name} is set to `{shown}`; expected {expected}"), hint: None }
    }
}

/// Environment variables by name. An empty value counts as unset, as the XDG specification requires.
pub(crate) struct Variables(Box<Lookup>);

type Lookup = dyn Fn(&str) -> Option<OsString>;

impl Variables {
    /// Returns those of this process.
    pub(crate) fn of_process() -> Self {
        Self(Box::new(|name| std::env::var_os(name)))
    }

    fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str, expected: &str) -> Result<Option<String>, ConfigError> {
        let decode = |value: OsString| {
            value.into_string().map_err(|value| ConfigError::bad_value(name, &value, expected))
        };
        self.get(name).map(decode).transpose()
    }

    /// Returns those of these names that are set.
    fn secret(&self, names: impl IntoIterator<Item = String>) -> SecretVariables {
        SecretVariables(
            names.into_iter().filter_map(|name| self.get(&name).map(|value| (name, value))).collect(),
        )
    }

    /// Returns a path of pyro's own. A relative one is resolved against the current directory, because helper processes
    /// may run elsewhere.
    fn path(&self, name: &str) -> Result<Option<PathBuf>, ConfigError> {
        let absolute = |value: OsString| {
            std::path::absolute(&value).map_err(|_| {
                ConfigError::bad_value(
                    name,
                    &value,
                    "an absolute path, because the current directory does not exist",
                )
            })
        };
        self.get(name).map(absolute).transpose()
    }

    /// Returns the settings directory of another program: `$<variable>` if it is given and set, else `$HOME/<in_home>`.
    pub(crate) fn settings_directory(
        &self,
        variable: Option<&str>,
        in_home: &str,
    ) -> Result<PathBuf, ConfigError> {
        let named = match variable {
            Some(name) if name.starts_with("XDG_") => self.foreign_dir(name),
            Some(name) => self.path(name)?,
            None => None,
        };
        named.or_else(|| self.foreign_dir("HOME").map(|home| home.join(in_home))).ok_or_else(|| ConfigError {
            message: "cannot find the client's settings: HOME is not set to an absolute path".to_owned(),
            hint: Some("set HOME".to_owned()),
        })
    }

    /// Returns a directory from a variable that is not pyro's own. Relative paths are ignored, as XDG requires.
    fn foreign_dir(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// `$<ours>`, else `name` in `$<xdg>`, else `name` in `$HOME/<in_home>`. It must be UTF-8: results and the requests to
    /// supervisors are JSON, and have paths in it.
    fn directory(&self, ours: &str, xdg: &str, in_home: &str, name: &str) -> Result<PathBuf, ConfigError> {
        let directory = match self.path(ours)? {
            Some(path) => path,
            None => self.default_directory(ours, xdg, in_home, name)?,
        };
        match directory.to_str() {
            Some(_) => Ok(directory),
            None => Err(ConfigError {
                message: format!("the path {} is not valid UTF-8", directory.display()),
                hint: Some(format!("set {ours} to a directory with a name in UTF-8")),
            }),
        }
    }

    fn default_directory(
        &self,
        ours: &str,
        xdg: &str,
        in_home: &str,
        name: &str,
    ) -> Result<PathBuf, ConfigError> {
        let parent = self
            .foreign_dir(xdg)
            .or_else(|| self.foreign_dir("HOME").map(|home| home.join(in_home)))
            .ok_or_else(|| ConfigError {
                message: format!(
                    "cannot choose a directory for files: none of {ours}, {xdg} and HOME is set to an absolute path"
                ),
                hint: Some(format!("set {ours} to a directory of your own")),
            })?;
        Ok(parent.join(name))
    }
}

/// Returns the engine that this process's environment variables configure.
pub(crate) fn engine() -> Result<Engine, ConfigError> {
    Ok(Engine::new(of_process()?))
}

/// Returns the configuration in this process's environment variables.
pub(crate) fn of_process() -> Result<Config, ConfigError> {
    engine_config(&Variables::of_process())
}

/// Reads the engine's configuration.
pub(crate) fn engine_config(variables: &Variables) -> Result<Config, ConfigError> {
    let program = std::env::current_exe().map_err(|error| ConfigError {
        message: format!("cannot find the path of the running pyro executable: {error}"),
        hint: Some("mount /proc".to_owned()),
    })?;
    Ok(Config {
        base_dir: variables.directory("PYRO_BASE_DIR", "XDG_STATE_HOME", ".local/state", "pyro-mcp")?,
        cache_dir: variables.directory(
            "PYRO_ENVIRONMENT_CACHE_DIR",
            "XDG_CACHE_HOME",
            ".cache",
            "pyro-mcp/environments",
        )?,
        max_active_vms: max_active_vms(variables)?,
        warm_spares: warm_spares(variables)?,
        spare_idle_seconds: Config::DEFAULT_SPARE_IDLE_SECONDS,
        program,
        accelerator: accelerator(variables)?,
        vmm: vmm(variables)?,
        vmm_program: program_of(variables, "PYRO_QEMU")?,
        firecracker_program: program_of(variables, "PYRO_FIRECRACKER")?,
        guest_kernel: guest_kernel(variables)?,
        debian_mirror: debian_mirror(variables)?,
        disk_overcommit: disk_overcommit(variables)?,
        mount_roots: mount_roots(variables)?,
        client_mounts: None,
        max_raised_ttl_seconds: Config::DEFAULT_MAX_RAISED_TTL_SECONDS,
        requires_full_confinement: requires_full_confinement(variables)?,
        host_ca: host_ca(variables)?,
        host_proxy: switch(
            variables,
            "PYRO_HOST_PROXY",
            "1 to give guests this host's proxy settings, or 0",
        )?,
        ssl_cert_file: variables.get("SSL_CERT_FILE").map(PathBuf::from),
        proxy_variables: proxy_variables(variables),
        package_clients: package_clients(variables),
        log: log_filter(variables)?,
        search_path: variables.get("PATH").unwrap_or_default(),
    })
}

/// Returns `PYRO_LOG`, which the code that sets up the log checks.
pub(crate) fn log_filter(variables: &Variables) -> Result<Option<String>, ConfigError> {
    variables.text("PYRO_LOG", LOG_EXPECTED)
}

/// Returns the error for an invalid `PYRO_LOG`.
pub(crate) fn bad_log_filter(value: &str) -> ConfigError {
    ConfigError::bad_value("PYRO_LOG", OsStr::new(value), LOG_EXPECTED)
}

const LOG_EXPECTED: &str = "a log filter such as `debug` or `pyro_engine=trace,info`";

fn max_active_vms(variables: &Variables) -> Result<u32, ConfigError> {
    const NAME: &str = "PYRO_MAX_ACTIVE_VMS";
    const EXPECTED: &str = "a whole number of at least 1";
    let Some(text) = variables.text(NAME, EXPECTED)? else { return Ok(4) };
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(ConfigError::bad_value(NAME, text.as_ref(), EXPECTED)),
    }
}

/// Returns whether `PYRO_MCP_ALLOW_HOST_COMPAT` lets clients of the MCP server run commands on the host.
pub(crate) fn mcp_allows_host(variables: &Variables) -> Result<bool, ConfigError> {
    switch(variables, "PYRO_MCP_ALLOW_HOST_COMPAT", "1 to allow it, or 0")
}

/// Returns whether something is on that is off by default.
fn switch(variables: &Variables, name: &str, expected: &'static str) -> Result<bool, ConfigError> {
    match variables.text(name, expected)?.as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(ConfigError::bad_value(name, other.as_ref(), expected)),
    }
}

/// An absolute path, so that it means the same to a server that an MCP client starts in another directory.
fn host_ca(variables: &Variables) -> Result<Option<HostCa>, ConfigError> {
    const NAME: &str = "PYRO_HOST_CA";
    const EXPECTED: &str = "1 for what this host trusts, 0, or the absolute path of a file in PEM";
    match variables.text(NAME, EXPECTED)? {
        None => Ok(None),
        Some(word) if word == "0" => Ok(Some(HostCa::Host(false))),
        Some(word) if word == "1" => Ok(Some(HostCa::Host(true))),
        Some(path) if path.starts_with('/') => Ok(Some(HostCa::Bundle(path))),
        Some(other) => Err(ConfigError::bad_value(NAME, other.as_ref(), EXPECTED)),
    }
}

/// The proxy settings of this host's programs, in both cases: some programs read only one of them.
fn proxy_variables(variables: &Variables) -> SecretVariables {
    const NAMES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    let names = NAMES.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_lowercase()]);
    variables.secret(names)
}

/// What determines the hosts of this host's package managers.
fn package_clients(variables: &Variables) -> PackageClients {
    const NAMES: [&str; 13] = [
        "CARGO_HOME",
        "NPM_CONFIG_REGISTRY",
        "NPM_CONFIG_USERCONFIG",
        "PIP_CONFIG_FILE",
        "PIP_EXTRA_INDEX_URL",
        "PIP_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_INDEX",
        "UV_INDEX_URL",
        "VIRTUAL_ENV",
        "XDG_CONFIG_HOME",
        "npm_config_registry",
    ];
    PackageClients {
        root: "/".into(),
        home: variables.foreign_dir("HOME"),
        variables: variables.secret(NAMES.map(str::to_owned)),
    }
}

fn warm_spares(variables: &Variables) -> Result<u32, ConfigError> {
    const NAME: &str = "PYRO_WARM";
    const EXPECTED: &str = "a whole number, 0 for none";
    let Some(text) = variables.text(NAME, EXPECTED)? else { return Ok(0) };
    text.parse().map_err(|_| ConfigError::bad_value(NAME, text.as_ref(), EXPECTED))
}

fn accelerator(variables: &Variables) -> Result<Option<Accelerator>, ConfigError> {
    const NAME: &str = "PYRO_ACCEL";
    const EXPECTED: &str = "`kvm` or `tcg`";
    let Some(text) = variables.text(NAME, EXPECTED)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| ConfigError::bad_value(NAME, text.as_ref(), EXPECTED))
}

fn vmm(variables: &Variables) -> Result<Vmm, ConfigError> {
    const NAME: &str = "PYRO_VMM";
    const EXPECTED: &str = "`qemu` or `firecracker`";
    match variables.text(NAME, EXPECTED)?.as_deref() {
        None => Ok(Vmm::default()),
        Some(name) => Vmm::of_name(name).ok_or_else(|| ConfigError::bad_value(NAME, name.as_ref(), EXPECTED)),
    }
}

/// A name without a slash is looked up in `PATH`. What is not found is not an error here: the engine reports it, and `doctor`
/// shows it among other problems.
fn program_of(variables: &Variables, name: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(value) = variables.get(name) else { return Ok(None) };
    if value.as_encoded_bytes().contains(&b'/') {
        return variables.path(name);
    }
    let search_path = variables.get("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search_path).map(|dir| dir.join(&value)).find(|path| path.is_file());
    Ok(Some(found.unwrap_or_else(|| value.into())))
}

/// A path, which is not checked here; the word `environment` for none; or, by default, the file that
/// `scripts/build-guest-kernel` makes, if it exists.
fn guest_kernel(variables: &Variables) -> Result<Option<PathBuf>, ConfigError> {
    const NAME: &str = "PYRO_GUEST_KERNEL";
    match variables.get(NAME) {
        Some(value) if value == "environment" => Ok(None),
        Some(_) => variables.path(NAME),
        None => {
            let home = || variables.foreign_dir("HOME").map(|home| home.join(".local/share"));
            let data = variables.foreign_dir("XDG_DATA_HOME").or_else(home);
            let built = data.map(|data| data.join("pyro-mcp/guest-kernel/bzImage"));
            Ok(built.filter(|path| path.exists()))
        }
    }
}

fn debian_mirror(variables: &Variables) -> Result<Option<String>, ConfigError> {
    const NAME: &str = "PYRO_DEBIAN_MIRROR";
    const EXPECTED: &str = "an address that starts with http:// or https://";
    let Some(address) = variables.text(NAME, EXPECTED)? else { return Ok(None) };
    let host_and_rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
    let is_usable = host_and_rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && !address.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_usable { Ok(Some(address)) } else { Err(ConfigError::bad_value(NAME, address.as_ref(), EXPECTED)) }
}

/// A factor, or the word `off` for no limit.
fn disk_overcommit(variables: &Variables) -> Result<Overcommit, ConfigError> {
    const NAME: &str = "PYRO_DISK_OVERCOMMIT";
    const EXPECTED: &str = "a number from 1 to 100, or `off`";
    let Some(text) = variables.text(NAME, EXPECTED)? else { return Ok(Overcommit::default()) };
    match text.parse::<f64>() {
        _ if text == "off" => Ok(Overcommit::Off),
        Ok(factor) if (1.0..=100.0).contains(&factor) => Ok(Overcommit::Factor(factor)),
        _ => Err(ConfigError::bad_value(NAME, text.as_ref(), EXPECTED)),
    }
}

/// The word `off`, or absolute paths with colons between them.
fn mount_roots(variables: &Variables) -> Result<MountRoots, ConfigError> {
    const NAME: &str = "PYRO_MOUNTS";
    const EXPECTED: &str = "`off`, or absolute paths with colons between them";
    let Some(value) = variables.get(NAME) else { return Ok(MountRoots::Any) };
    if value == "off" {
        return Ok(MountRoots::Off);
    }
    let roots: Vec<PathBuf> = std::env::split_paths(&value).collect();
    match roots.iter().all(|root| root.is_absolute()) {
        true => Ok(MountRoots::Below(roots)),
        false => Err(ConfigError::bad_value(NAME, &value, EXPECTED)),
    }
}

fn requires_full_confinement(variables: &Variables) -> Result<bool, ConfigError> {
    const NAME: &str = "PYRO_REQUIRE_CONFINEMENT";
    const EXPECTED: &str = "`full`, or nothing";
    match variables.text(NAME, EXPECTED)?.as_deref() {
        None => Ok(false),
        Some("full") => Ok(true),
        Some(other) => Err(ConfigError::bad_value(NAME, other.as_ref(), EXPECTED)),
    }
}

#[cfg(test)]
mod tests;
