//! The known clients: where each keeps its settings, and how it describes a server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::entry::{Entry, Shape};
use super::error::InstallError;
use super::format::Format;
use crate::config::Variables;

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// The user's own settings; `None` for `generic`, which has no file.
    user: Option<Place>,
    /// The settings of a project, relative to its top directory; empty if the client has no such file.
    project: &'static [&'static str],
    pub(super) format: Format,
    /// The object that holds one entry for each server.
    pub(super) key: &'static str,
    shape: Shape,
}

/// A directory, which a variable may name, and files in it.
#[derive(Debug)]
struct Place {
    variable: Option<&'static str>,
    in_home: &'static str,
    files: &'static [&'static str],
}

/// Which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    User,
    /// The project in the current directory.
    Project,
}

impl Client {
    pub(crate) const ALL: [Self; 7] = [
        Self {
            name: "claude-code",
            user: Some(Place { variable: Some("CLAUDE_CONFIG_DIR"), in_home: "", files: &[".claude.json"] }),
            project: &[".mcp.json"],
            format: Format::Json,
            key: "mcpServers",
            shape: Shape::Typed,
        },
        Self {
            name: "claude-desktop",
            user: Some(Place {
                variable: Some("XDG_CONFIG_HOME"),
                in_home: ".config",
                files: &["Claude/claude_desktop_config.json"],
            }),
            project: &[],
            format: Format::Json,
            key: "mcpServers",
            shape: Shape::Plain,
        },
        Self {
            name: "codex",
            user: Some(Place { variable: Some("CODEX_HOME"), in_home: ".codex", files: &["config.toml"] }),
            project: &[".codex/config.toml"],
            format: Format::Toml,
            key: "mcp_servers",
            shape: Shape::Codex,
        },
        Self {
            name: "cursor",
            user: Some(Place { variable: None, in_home: ".cursor", files: &["mcp.json"] }),
            project: &[".cursor/mcp.json"],
            format: Format::Json,
            key: "mcpServers",
            shape: Shape::Plain,
        },
        Self {
            name: "vscode",
            user: Some(Place {
                variable: Some("XDG_CONFIG_HOME"),
                in_home: ".config",
                files: &["Code/User/mcp.json"],
            }),
            project: &[".vscode/mcp.json"],
            format: Format::Json,
            key: "servers",
            shape: Shape::Typed,
        },
        Self {
            name: "opencode",
            user: Some(Place {
                variable: Some("XDG_CONFIG_HOME"),
                in_home: ".config",
                files: &["opencode/opencode.jsonc", "opencode/opencode.json"],
            }),
            project: &["opencode.jsonc", "opencode.json"],
            format: Format::Json,
            key: "mcp",
            shape: Shape::Opencode,
        },
        Self {
            name: "generic",
            user: None,
            project: &[],
            format: Format::Json,
            key: "mcpServers",
            shape: Shape::Plain,
        },
    ];

    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        const { &Self::ALL }.iter().find(|client| client.name == name)
    }

    /// Returns the file to change. If the client reads several, it is the first that exists, which takes precedence; if
    /// none exists, the last. `None` for `generic`.
    pub(crate) fn file(&self, scope: Scope, variables: &Variables) -> Result<Option<PathBuf>, InstallError> {
        let (directory, files) = match (scope, &self.user) {
            (Scope::Project, _) if self.project.is_empty() => {
                let message = format!("{} has no project settings", self.name);
                return Err(InstallError::new(message).hint("leave out `--project`"));
            }
            (Scope::Project, _) => {
                let here = std::env::current_dir().map_err(|error| {
                    InstallError::new("cannot find the current directory").caused_by(error)
                })?;
                (here, self.project)
            }
            (Scope::User, None) => return Ok(None),
            (Scope::User, Some(place)) => {
                (variables.settings_directory(place.variable, place.in_home)?, place.files)
            }
        };
        let paths = || files.iter().map(|file| directory.join(file));
        Ok(paths().find(|path| path.symlink_metadata().is_ok()).or_else(|| paths().next_back()))
    }

    /// Returns the entry that makes this client start `program` with `args`.
    pub(crate) fn entry(&self, program: &str, args: &[&str], env: &BTreeMap<String, String>) -> Entry {
        self.shape.describe(program, args, env)
    }
}
