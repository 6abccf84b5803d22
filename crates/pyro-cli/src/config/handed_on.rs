//! The settings that pyro writes into a client's entry, for the client to pass to its server.

use std::collections::BTreeMap;

use super::{ConfigError, Variables, program_of};

/// Paths, which are made absolute: the server starts in a directory of the client's choice.
const PATHS: [&str; 2] = ["PYRO_BASE_DIR", "PYRO_ENVIRONMENT_CACHE_DIR"];
const PLAIN: [&str; 11] = [
    "PYRO_ACCEL",
    "PYRO_DEBIAN_MIRROR",
    "PYRO_DISK_OVERCOMMIT",
    "PYRO_HOST_CA",
    "PYRO_HOST_PROXY",
    "PYRO_MAX_ACTIVE_VMS",
    "PYRO_MCP_ALLOW_HOST_COMPAT",
    "PYRO_MOUNTS",
    "PYRO_REQUIRE_CONFINEMENT",
    "PYRO_VMM",
    "PYRO_WARM",
];
/// Programs, which may be names.
const PROGRAMS: [&str; 2] = ["PYRO_FIRECRACKER", "PYRO_QEMU"];
/// Variables that determine where pyro keeps its files by default.
const XDG: [&str; 3] = ["XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"];

impl Variables {
    /// Returns the variables of this process's environment that affect pyro, so that a server whose client has another
    /// environment, or passes none on, sees the same VMs. `PYRO_LOG` applies to one process only. `PATH` has an effect
    /// too, but belongs to the client; users with QEMU in another directory set `PYRO_QEMU`.
    pub(crate) fn handed_on(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut handed_on = BTreeMap::new();
        let mut add = |name: &str, value: Option<std::ffi::OsString>| {
            let Some(value) = value else { return Ok(()) };
            let value =
                value.into_string().map_err(|value| ConfigError::bad_value(name, &value, "UTF-8 text"))?;
            handed_on.insert(name.to_owned(), value);
            Ok(())
        };
        for name in PATHS {
            add(name, self.path(name)?.map(Into::into))?;
        }
        for name in PLAIN {
            add(name, self.get(name))?;
        }
        for name in XDG {
            add(name, self.foreign_dir(name).map(Into::into))?;
        }
        for name in PROGRAMS {
            add(name, program_of(self, name)?.map(Into::into))?;
        }
        // The value may also be the word `environment`, which is not a path.
        let kernel = match self.get("PYRO_GUEST_KERNEL") {
            Some(word) if word == "environment" => Some(word),
            _ => self.path("PYRO_GUEST_KERNEL")?.map(Into::into),
        };
        add("PYRO_GUEST_KERNEL", kernel)?;
        Ok(handed_on)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn handed_on(set: &'static [(&'static str, &'static str)]) -> BTreeMap<String, String> {
        let lookup = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Variables(Box::new(lookup)).handed_on().unwrap()
    }

    #[test]
    fn only_what_is_set_is_handed_on() {
        assert_eq!(
            handed_on(&[("HOME", "/h"), ("PATH", "/bin"), ("PYRO_WARM", ""), ("PYRO_LOG", "debug")]),
            BTreeMap::new()
        );
        let set = handed_on(&[
            ("PYRO_WARM", "2"),
            ("PYRO_GUEST_KERNEL", "environment"),
            ("XDG_STATE_HOME", "relative"),
        ]);
        let expected = [("PYRO_GUEST_KERNEL", "environment"), ("PYRO_WARM", "2")];
        assert_eq!(set, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn paths_do_not_depend_on_where_the_client_starts() {
        let here = std::env::current_dir().unwrap();
        let set = handed_on(&[
            ("PYRO_BASE_DIR", "state"),
            ("PYRO_QEMU", "./qemu"),
            ("PYRO_GUEST_KERNEL", "k/bzImage"),
        ]);
        for (name, path) in
            [("PYRO_BASE_DIR", "state"), ("PYRO_QEMU", "qemu"), ("PYRO_GUEST_KERNEL", "k/bzImage")]
        {
            assert_eq!(set[name], here.join(path).to_str().unwrap());
        }
    }

    #[test]
    fn text_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt as _;
        let variables = Variables(Box::new(|name| {
            (name == "PYRO_BASE_DIR").then(|| OsString::from_vec(b"/\xff".to_vec()))
        }));
        assert!(variables.handed_on().unwrap_err().to_string().contains("UTF-8"));
    }

    /// A setting that is added to pyro is also added here, or left out on purpose.
    #[test]
    fn every_setting_is_handed_on() {
        let words = include_str!("../config.rs").split('"').filter(|word| {
            word.starts_with("PYRO_") && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
        let set = |name: &str| Some(OsString::from(if PROGRAMS.contains(&name) { "/bin/sh" } else { "/1" }));
        let handed_on = Variables(Box::new(set)).handed_on().unwrap();
        let mut count = 0;
        for name in words.filter(|name| *name != "PYRO_LOG") {
            assert!(handed_on.contains_key(name), "{name} is not handed on");
            count += 1;
        }
        assert!(count >= 8, "the variables are no longer found where they were");
    }
}
