use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::SecretVariables;

/// A host with an empty home, no settings, and no programs.
struct Host {
    dir: TempDir,
    config: Config,
    defaults: DefaultHosts,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["etc/apt/sources.list.d", "home", "bin"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let config = Config {
            search_path: path("bin").into(),
            package_clients: PackageClients {
                root: dir.path().to_owned(),
                home: Some(path("home")),
                variables: SecretVariables::default(),
            },
            ..Config::new("/state".into(), "/cache".into(), "/bin/pyro".into())
        };
        Self { dir, config, defaults: DefaultHosts::default() }
    }

    fn with_file(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn with_program(self, name: &str, script: &str) -> Self {
        let host = self.with_file(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        let path = host.dir.path().join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        host
    }

    fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.config.package_clients.variables.0.push((name.to_owned(), value.into()));
        self
    }

    /// What the entries of a policy become.
    async fn expand(&self, entries: &[&str]) -> Result<Vec<String>, String> {
        let allow_domains = entries.iter().map(|entry| entry.parse().unwrap()).collect();
        let policy = NetworkPolicy { allow_domains, ..NetworkPolicy::default() };
        match expand(policy, &self.config, &self.defaults).await {
            Ok(policy) => Ok(policy.allow_domains.iter().map(ToString::to_string).collect()),
            Err(error) => Err(error.to_string().replace(self.dir.path().to_str().unwrap(), "")),
        }
    }

    async fn error(&self, entry: &str) -> String {
        self.expand(&[entry]).await.unwrap_err()
    }
}

#[tokio::test]
async fn names_stay_and_presets_become_names() {
    let host = Host::new().with_variable("PIP_INDEX_URL", "https://pypi.example.test/simple");
    let expanded = host.expand(&["*.example.test", "@pypi", "a.test:8080"]).await.unwrap();
    assert_eq!(expanded, ["*.example.test", "pypi.example.test", "a.test:8080"]);
}

#[tokio::test]
async fn debian_is_what_apt_uses() {
    let lines = "# deb http://comment.test/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://deb.example.test/debian bookworm main
deb-src http://source.test/debian bookworm main
deb file:/srv/archive bookworm main
deb\thttps://user:secret@deb2.example.test:8443/debian bookworm main\n";
    let stanzas = "Types: deb deb-src
URIs: https://one.example.test/debian
 https://two.example.test/debian
Suites: bookworm

Types: deb
Enabled: no
URIs: https://off.test/debian

# a comment
Types: deb-src
URIs: https://source.test/debian

Types: deb
URIs: mirror+file:/etc/apt/mirrors.list\n";
    let host = Host::new()
        .with_file("etc/apt/sources.list", lines)
        .with_file("etc/apt/sources.list.d/more.sources", stanzas)
        .with_file("etc/apt/sources.list.d/more.list", "deb http://three.example.test/ ./\n")
        .with_file("etc/apt/sources.list.d/ignored.disabled", "deb http://off.test/ ./\n")
        .with_file("etc/apt/mirrors.list", "https://four.example.test/debian priority:1\n");
    let expected = [
        "deb.example.test",
        "deb2.example.test:8443",
        "three.example.test",
        "one.example.test",
        "two.example.test",
        "four.example.test",
    ];
    assert_eq!(host.expand(&["@debian"]).await.unwrap(), expected);
    let mut host = Host::new();
    assert_eq!(
        host.error("@debian").await,
        "cannot find the hosts of @debian: PYRO_DEBIAN_MIRROR is not set, and /etc/apt/sources.list and \
         /etc/apt/sources.list.d name no archive; name them with allow_domains (CLI: --allow-domain NAME)"
    );
    host.config.debian_mirror = Some("http://mirror.example.test/debian".to_owned());
    assert_eq!(host.expand(&["@debian"]).await.unwrap(), ["mirror.example.test"]);
}

#[tokio::test]
async fn pypi_is_what_pip_and_uv_use() {
    let pip = "[global]\nindex-url = https://pip.example.test/simple\nextra-index-url =\n  https://more.example.test/a\n\
               \thttps://more.example.test/b\n[install]\ntimeout = 5\n";
    let uv = "[[index]]\nurl = \"https://uv.example.test/simple\"\n[pip]\nextra-index-url = [\"https://uv2.example.test/\"]\n";
    let host = Host::new()
        .with_file("home/.config/pip/pip.conf", pip)
        .with_file("home/.config/uv/uv.toml", uv)
        .with_variable("UV_INDEX", "ours=https://named.example.test/ https://other.example.test/?a=b");
    let expected = [
        "named.example.test",
        "other.example.test",
        "pip.example.test",
        "more.example.test",
        "uv2.example.test",
        "uv.example.test",
    ];
    assert_eq!(host.expand(&["@pypi"]).await.unwrap(), expected);
    let only_index = "[[index]]\nurl = \"https://uv.example.test/simple\"\ndefault = true\n";
    let host = Host::new().with_file("etc/uv/uv.toml", only_index);
    assert_eq!(host.expand(&["@pypi"]).await.unwrap(), ["uv.example.test"]);
    let colon =
        Host::new().with_file("etc/pip.conf", "[global]\nindex-url: https://colon.example.test/simple\n");
    assert_eq!(colon.expand(&["@pypi"]).await.unwrap(), ["colon.example.test"]);
    let damaged = Host::new().with_file("etc/uv/uv.toml", "[");
    assert_eq!(damaged.error("@pypi").await, "invalid settings in /etc/uv/uv.toml: expected TOML");
}

#[tokio::test]
async fn a_client_without_settings_is_asked() {
    let answer =
        "[ \"$HOME\" ] && echo https://default.example.test/simple && echo https://files.example.test";
    let host = Host::new()
        .with_program("python3", answer)
        .with_program("npm", "[ \"$*\" = 'config get registry' ] && echo https://npm.example.test/")
        .with_variable("PIP_EXTRA_INDEX_URL", "https://extra.example.test/");
    let pypi = ["extra.example.test", "default.example.test", "files.example.test"];
    assert_eq!(host.expand(&["@pypi"]).await.unwrap(), pypi);
    assert_eq!(host.expand(&["@npm"]).await.unwrap(), ["npm.example.test"]);
    for (entry, named) in [("@pypi", "PIP_INDEX_URL"), ("@npm", ".npmrc"), ("@crates", "config.toml")] {
        let error = Host::new().with_program("python3", "echo https://a.test; exit 1").error(entry).await;
        assert!(error.starts_with(&format!("cannot find the hosts of {entry}: ")), "{error}");
        assert!(error.contains(named) && error.contains("--allow-domain"), "{error}");
    }
}

#[tokio::test]
async fn npm_is_what_npmrc_names() {
    let host = Host::new()
        .with_file(
            "home/.npmrc",
            "; a comment\nregistry=https://npm.example.test:4873/\n//npm.example.test/:_authToken=x\n",
        )
        .with_file("etc/npmrc", "@ours:registry = https://ours.example.test\n");
    assert_eq!(host.expand(&["@npm"]).await.unwrap(), ["npm.example.test:4873", "ours.example.test"]);
}

#[tokio::test]
async fn crates_are_where_cargo_takes_them_from() {
    let index = |name: &str| format!("home/.cargo/registry/index/{name}/config.json");
    let used = Host::new()
        .with_file(
            &index("index.example.test-0123456789abcdef"),
            r#"{"dl": "https://static.example.test/crates", "api": "x"}"#,
        )
        .with_file(&index("ours.example.test-0123456789abcdef"), r#"{"dl": "https://ours.example.test/dl"}"#)
        .with_file("home/.cargo/registry/index/git.example.test-0123456789abcdef/.last-updated", "")
        .with_file(
            "home/.cargo/config.toml",
            "[registries.ours]\nindex = \"sparse+https://ours.example.test/\"\n",
        );
    assert_eq!(used.expand(&["@crates"]).await.unwrap(), ["index.example.test", "static.example.test"]);
    // Without its name, any of the two may be the default.
    let used = used.with_file("home/.cargo/config.toml", "");
    let error = used.error("@crates").await;
    assert!(error.starts_with("/home/.cargo/registry/index has more than one index"), "{error}");
    assert!(error.contains("--allow-domain NAME"), "{error}");

    let replaced = "[source.crates-io]\nreplace-with = \"one\"\n[source.one]\nreplace-with = \"two\"\n\
                    [source.two]\nregistry = \"sparse+https://mirror.example.test/index/\"\n";
    let host = used.with_file("home/.cargo/config.toml", replaced);
    assert_eq!(host.expand(&["@crates"]).await.unwrap(), ["mirror.example.test"]);
    let host = host.with_file(
        &index("mirror.example.test-0123456789abcdef"),
        r#"{"dl": "https://files.example.test/{crate}"}"#,
    );
    assert_eq!(host.expand(&["@crates"]).await.unwrap(), ["mirror.example.test", "files.example.test"]);

    let endless = "[source.crates-io]\nreplace-with = \"crates-io\"\n";
    let host = Host::new().with_file("home/.cargo/config.toml", endless);
    assert!(host.error("@crates").await.starts_with("cannot find the hosts of @crates: "));
}

#[tokio::test]
async fn what_is_not_the_url_of_a_named_host_is_refused_without_showing_it() {
    for url in ["ftp://user:secret@a.test/", "https://user:secret@*.test/", "${SECRET}"] {
        let error = Host::new().with_variable("PIP_INDEX_URL", url).error("@pypi").await;
        assert_eq!(
            error,
            "invalid package host in PIP_INDEX_URL: expected a URL that starts with http:// or https:// and has a host name"
        );
    }
}

#[tokio::test]
async fn an_address_is_opened_without_a_preset() {
    for url in ["https://user:secret@192.0.2.1/", "http://192.0.2.1:3141/simple", "http://[2001:db8::1]:80/"]
    {
        let error = Host::new().with_variable("PIP_INDEX_URL", url).error("@pypi").await;
        assert!(error.contains("--allow-host HOST:PORT") && !error.contains("secret"), "{error}");
    }
}

/// Nothing is read from a pipe, which might have no writer.
#[tokio::test]
async fn settings_that_are_not_a_file_are_refused() {
    let host = Host::new();
    let path = host.dir.path().join("etc/pip.conf");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(host.error("@pypi").await, "cannot read /etc/pip.conf: it is not a regular file");
    // The usual way to have a program read no settings.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    let error = host.error("@pypi").await;
    assert!(!error.contains("pip.conf: it is not"), "{error}");
}

#[tokio::test]
async fn a_client_is_asked_once_until_it_fails() {
    let script = "echo >> \"$HOME/asked\"; [ -e \"$HOME/ready\" ] && echo https://npm.example.test/";
    let host = Host::new().with_program("npm", script);
    let asked = || fs::read_to_string(host.dir.path().join("home/asked")).unwrap().len();
    host.error("@npm").await;
    fs::write(host.dir.path().join("home/ready"), "").unwrap();
    let expected = Ok(vec!["npm.example.test".to_owned()]);
    let (one, two) = tokio::join!(host.expand(&["@npm"]), host.expand(&["@npm"]));
    assert_eq!((one, two), (expected.clone(), expected.clone()));
    assert_eq!(host.expand(&["@npm"]).await, expected);
    assert_eq!(asked(), 2);
}
