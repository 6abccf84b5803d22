//! `pyro mcp install`: the settings files of clients, whose other contents must stay.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Ended, Home, PYRO};

/// A client, its file for the user, and for a project.
struct Client {
    name: &'static str,
    user: &'static str,
    project: Option<&'static str>,
}

const CLIENTS: [Client; 6] = [
    Client { name: "claude-code", user: ".claude.json", project: Some(".mcp.json") },
    Client { name: "claude-desktop", user: ".config/Claude/claude_desktop_config.json", project: None },
    Client { name: "codex", user: ".codex/config.toml", project: Some(".codex/config.toml") },
    Client { name: "cursor", user: ".cursor/mcp.json", project: Some(".cursor/mcp.json") },
    Client { name: "vscode", user: ".config/Code/User/mcp.json", project: Some(".vscode/mcp.json") },
    Client { name: "opencode", user: ".config/opencode/opencode.json", project: Some("opencode.json") },
];

/// A home in which pyro's settings are the defaults.
fn home() -> Home {
    Home::new().unset("PYRO_DEBIAN_MIRROR")
}

fn install(home: &Home, client: &str, words: &[&str]) -> Ended {
    let words = [&["mcp", "install", "--client", client], words].concat();
    home.ended(home.command(words).output().unwrap())
}

fn installed(home: &Home, client: &str, words: &[&str]) -> Value {
    let ended = install(home, client, &[&["--json"], words].concat());
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended.json()
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Settings with another server and, where the format has them, comments.
fn settings_of_others(client: &str) -> String {
    match client {
        "codex" => "# mine\nmodel = 'x'  # spaced\n\n[mcp_servers.other]\ncommand = \"other\" # keep\n\n[last]\na=1\n",
        "vscode" | "opencode" => {
            "// mine\n{\n    \"a\": [1,2,  3],\n    \"KEY\": {\n        // keep\n        \"other\": {\"command\": \"other\"}, /* too */\n    },\n    \"z\": 1.50\n}\n"
        }
        _ => "{\n\t\"a\": [1,2,  3],\n\t\"KEY\": {\n\t\t\"other\": {\"command\": \"other\"}\n\t},\n\t\"z\": 1.50, \"\\u00fc\": \"\\u00fc\"\n}",
    }
    .replace("KEY", match client {
        "vscode" => "servers",
        "opencode" => "mcp",
        _ => "mcpServers",
    })
}

#[test]
fn without_write_nothing_is_written() {
    for client in CLIENTS {
        let home = home();
        let shown = install(&home, client.name, &[]);
        assert_eq!(shown.code(), 0, "{shown:?}");
        assert!(shown.stdout.starts_with(&format!("File: [HOME]/{}\n", client.user)), "{shown:?}");
        assert!(shown.stdout.ends_with("\nNothing was written; use `--write` to write it.\n"), "{shown:?}");
        assert_eq!(home.entries(), [] as [PathBuf; 0]);

        let before = settings_of_others(client.name);
        put(&home.path(client.user), &before);
        let document = installed(&home, client.name, &[]);
        assert_eq!((&document["change"], &document["written"]), (&json!("add"), &json!(false)));
        assert_eq!(fs::read_to_string(home.path(client.user)).unwrap(), before);
        assert_eq!(entries(home.path(client.user).parent().unwrap()).len(), 1);
    }
}

#[test]
fn a_missing_file_is_made_with_its_directories() {
    for client in CLIENTS {
        let home = home();
        let document = installed(&home, client.name, &["--write"]);
        let file = home.path(client.user);
        assert_eq!(document["file"], file.to_str().unwrap());
        assert_eq!((&document["change"], &document["written"]), (&json!("create"), &json!(true)));
        assert_eq!((&document["backup"], &document["replaced"]), (&Value::Null, &Value::Null));
        assert_eq!(fs::read_to_string(&file).unwrap(), document["snippet"].as_str().unwrap());
        assert_eq!(entries(file.parent().unwrap()).len(), 1, "no other file is left");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777 & !0o666, 0);
    }
}

#[test]
fn what_others_wrote_stays_as_they_wrote_it() {
    for client in CLIENTS {
        let home = home();
        let file = home.path(client.user);
        let before = settings_of_others(client.name);
        put(&file, &before);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let document = installed(&home, client.name, &["--write", "--name", "sandbox_1"]);
        assert_eq!(document["change"], "add");

        let after = fs::read_to_string(&file).unwrap();
        insta::assert_snapshot!(format!("added_for_{}", client.name), after.replace(PYRO, "[PYRO]"));
        // Every other line is there, in order, except for a comma that JSON requires after the last item of a list.
        let mut lines = after.lines();
        for line in before.lines() {
            let same = |other: &str| other == line || other.strip_suffix(',') == Some(line);
            assert!(lines.any(same), "{line:?} is not in {after}");
        }
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);

        let backup = PathBuf::from(document["backup"].as_str().unwrap());
        assert_eq!(backup.parent(), file.parent());
        assert_eq!(fs::read_to_string(&backup).unwrap(), before);
        assert_eq!(backup.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(entries(file.parent().unwrap()).len(), 2, "only the file and its backup");
    }
}

#[test]
fn what_is_there_already_is_not_written_again() {
    for client in CLIENTS {
        let home = home();
        let file = home.path(client.user);
        put(&file, &settings_of_others(client.name));
        installed(&home, client.name, &["--write"]);
        let (text, inode) = (fs::read_to_string(&file).unwrap(), file.metadata().unwrap().ino());
        let again = installed(&home, client.name, &["--write"]);
        assert_eq!(
            (&again["change"], &again["written"], &again["backup"]),
            (&json!("none"), &json!(false), &Value::Null)
        );
        assert_eq!((fs::read_to_string(&file).unwrap(), file.metadata().unwrap().ino()), (text, inode));
        assert_eq!(entries(file.parent().unwrap()).len(), 2);
    }
}

#[test]
fn an_entry_of_the_same_name_is_replaced_and_shown() {
    for client in CLIENTS {
        let home = home();
        let file = home.path(client.user);
        installed(&home, client.name, &["--write"]);
        let first = fs::read_to_string(&file).unwrap();
        fs::write(&file, first.replace(PYRO, "/old/pyro")).unwrap();
        let replaced = installed(&home, client.name, &["--write"]);
        assert_eq!(replaced["change"], "replace");
        assert_eq!(replaced["replaced"].as_str().unwrap(), first.replace(PYRO, "/old/pyro"));
        assert_eq!(fs::read_to_string(&file).unwrap(), first);

        // A second backup does not replace the first.
        let home = home.set("PYRO_WARM", "1");
        let warm = installed(&home, client.name, &["--write"]);
        assert_eq!(fs::read_to_string(warm["backup"].as_str().unwrap()).unwrap(), first);
        assert_eq!(
            fs::read_to_string(replaced["backup"].as_str().unwrap()).unwrap(),
            first.replace(PYRO, "/old/pyro")
        );
        assert_eq!(entries(file.parent().unwrap()).len(), 3);
    }
}

#[test]
fn people_see_what_goes_and_what_comes() {
    let home = home();
    put(
        &home.path(".codex/config.toml"),
        "[mcp_servers.pyro]\ncommand = \"\\u001b[2Jpyro\"\n[mcp_servers.pyro.tools.vm_run]\nuse = true\n",
    );
    let shown = install(&home, "codex", &["--write"]);
    insta::assert_snapshot!(shown.all().replace(PYRO, "[PYRO]"), @r#"
    exit: 0
    --- stdout
    File: [HOME]/.codex/config.toml
    Change: `pyro` is replaced

    [mcp_servers.pyro]
    command = "[PYRO]"
    args = ["mcp", "serve"]
    tool_timeout_sec = 3660

    It replaces:

    [mcp_servers.pyro]
    command = "\u001B[2Jpyro"

    [mcp_servers.pyro.tools]
    vm_run = { use = true }

    Written. Copy of the old file: [HOME]/.codex/config.toml.before-pyro-1
    --- stderr
    "#);
    insta::assert_snapshot!(install(&home, "codex", &["--write"]).all().replace(PYRO, "[PYRO]"), @r#"
    exit: 0
    --- stdout
    File: [HOME]/.codex/config.toml
    Change: none, `pyro` is up to date

    [mcp_servers.pyro]
    command = "[PYRO]"
    args = ["mcp", "serve"]
    tool_timeout_sec = 3660
    --- stderr
    "#);
}

#[test]
fn secrets_of_what_is_replaced_are_not_shown() {
    let json = json!({ "mcpServers": { "pyro": {
        "command": "other", "env": { "TOKEN": "secret", "LIST": ["secret"] }, "headers": { "Authorization": "secret" },
    } } });
    let toml =
        "[mcp_servers.pyro]\ncommand = 'other'\nenv = { TOKEN = 'secret' }\nhttp_headers.X = 'secret'\n";
    let tables = "[[mcp_servers.pyro]]\n[mcp_servers.pyro.env]\nTOKEN = 'secret'\n";
    let files = [
        ("cursor", ".cursor/mcp.json", json.to_string()),
        ("codex", ".codex/config.toml", toml.to_owned()),
        ("codex", ".codex/config.toml", tables.to_owned()),
    ];
    for (client, file, text) in files {
        let home = home();
        put(&home.path(file), &text);
        for words in [&[][..], &["--json"], &["--write"]] {
            let ended = install(&home, client, words);
            assert_eq!(ended.code(), 0, "{ended:?}");
            assert!(ended.stdout.contains("TOKEN") && ended.stdout.contains("***"), "{ended:?}");
            assert!(!ended.stdout.contains("secret"), "{ended:?}");
        }
        let backup = home.path(&format!("{file}.before-pyro-1"));
        assert_eq!(fs::read_to_string(backup).unwrap(), text);
    }
}

#[test]
fn line_ends_and_marks_of_other_systems_stay() {
    for client in CLIENTS {
        let home = home();
        let file = home.path(client.user);
        let before = "\u{feff}".to_owned() + &settings_of_others(client.name).replace('\n', "\r\n");
        put(&file, &before);
        installed(&home, client.name, &["--write"]);
        let after = fs::read_to_string(&file).unwrap();
        assert!(after.starts_with('\u{feff}') && after.matches('\u{feff}').count() == 1, "{after:?}");
        assert_eq!(after.matches('\n').count(), after.matches("\r\n").count(), "{after:?}");
        assert_eq!(installed(&home, client.name, &[])["change"], "none");
    }
}

#[test]
fn what_cannot_be_parsed_is_left_alone() {
    let broken = [
        ("cursor", "{\"mcpServers\": {}"),
        ("cursor", "{mcpServers: {}}"),
        ("cursor", "{\"mcpServers\": {} \"a\": 1}"),
        ("cursor", "[]"),
        ("cursor", "{\"mcpServers\": null}"),
        ("cursor", "{\"mcpServers\": {}, \"mcpServers\": {\"a\": {}}}"),
        ("codex", "a = 1\n[mcp_servers.secret]\ncommand = \"secret\nb = 2\n"),
        ("codex", "mcp_servers = 3\n"),
        ("codex", "a = 1\r\nb = 2\n"),
    ];
    let told: Vec<String> = broken
        .into_iter()
        .map(|(client, text)| {
            let home = home();
            let file = home.path(if client == "codex" { ".codex/config.toml" } else { ".cursor/mcp.json" });
            put(&file, text);
            let ended = install(&home, client, &["--write"]);
            assert_eq!(ended.code(), 1, "{text}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert_eq!(entries(file.parent().unwrap()).len(), 1);
            ended.stderr
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    [error] cannot parse [HOME]/.cursor/mcp.json
      caused by: Unterminated object on line 1 column 1
      hint: correct the file, or move it away; it was not changed

    [error] cannot parse [HOME]/.cursor/mcp.json
      caused by: Expected string for object property on line 1 column 2
      hint: correct the file, or move it away; it was not changed

    [error] cannot parse [HOME]/.cursor/mcp.json
      caused by: Expected comma on line 1 column 18
      hint: correct the file, or move it away; it was not changed

    [error] cannot add a server to [HOME]/.cursor/mcp.json: it does not hold an object
      hint: correct the file, or move it away; it was not changed

    [error] cannot add a server to [HOME]/.cursor/mcp.json: `mcpServers` is not an object
      hint: correct the file, or move it away; it was not changed

    [error] cannot change only pyro's entry in [HOME]/.cursor/mcp.json: its layout does not allow it
      hint: add the entry by hand; the file was not changed

    [error] cannot parse [HOME]/.codex/config.toml
      caused by: invalid basic string, expected `"` on line 3
      hint: correct the file, or move it away; it was not changed

    [error] cannot add a server to [HOME]/.codex/config.toml: `mcp_servers` is not an object
      hint: correct the file, or move it away; it was not changed

    [error] cannot change only pyro's entry in [HOME]/.codex/config.toml: its layout does not allow it
      caused by: some of its lines end with CR LF and others with LF
      hint: add the entry by hand; the file was not changed
    "#);
}

#[test]
fn nothing_that_is_no_settings_file_is_read() {
    let refused = |make: &dyn Fn(&Path)| {
        let home = home();
        let file = home.path(".cursor/mcp.json");
        fs::create_dir(home.path(".cursor")).unwrap();
        make(&file);
        let ended = install(&home, "cursor", &["--write"]);
        assert_eq!(ended.code(), 1);
        assert_eq!(entries(file.parent().unwrap()).len(), 1);
        ended.stderr
    };
    let told = [
        refused(&|file| fs::create_dir(file).unwrap()),
        refused(&|file| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        refused(&|file| symlink("/dev/zero", file).unwrap()),
        refused(&|file| symlink("nowhere", file).unwrap()),
        refused(&|file| fs::File::create(file).unwrap().set_len(17 << 20).unwrap()),
        refused(&|file| fs::write(file, b"\"\xff\"").unwrap()),
        refused(&|file| fs::write(file, "[".repeat(1 << 20)).unwrap()),
    ];
    insta::assert_snapshot!(told.join("\n"), @r"
    [error] [HOME]/.cursor/mcp.json is not a file

    [error] [HOME]/.cursor/mcp.json is not a file

    [error] [HOME]/.cursor/mcp.json is not a file

    [error] cannot read [HOME]/.cursor/mcp.json
      caused by: No such file or directory (os error 2)

    [error] [HOME]/.cursor/mcp.json is larger than 16 MiB

    [error] cannot read [HOME]/.cursor/mcp.json
      caused by: stream did not contain valid UTF-8

    [error] cannot parse [HOME]/.cursor/mcp.json
      caused by: Maximum nesting depth exceeded on line 1 column 513
      hint: correct the file, or move it away; it was not changed
    ");
}

#[test]
fn a_link_stays_a_link() {
    let home = home();
    put(&home.path("dotfiles/mcp.json"), "{}\n");
    fs::create_dir(home.path(".cursor")).unwrap();
    symlink("../dotfiles/mcp.json", home.path(".cursor/mcp.json")).unwrap();
    let document = installed(&home, "cursor", &["--write"]);
    assert_eq!(fs::read_link(home.path(".cursor/mcp.json")).unwrap(), Path::new("../dotfiles/mcp.json"));
    assert_eq!(
        fs::read_to_string(home.path("dotfiles/mcp.json")).unwrap(),
        document["snippet"].as_str().unwrap()
    );
    assert_eq!(entries(&home.path(".cursor")), ["mcp.json"]);
    assert_eq!(entries(&home.path("dotfiles")), ["mcp.json", "mcp.json.before-pyro-1"]);
}

#[test]
fn a_directory_that_cannot_be_is_named() {
    let home = home();
    fs::write(home.path(".cursor"), "").unwrap();
    insta::assert_snapshot!(install(&home, "cursor", &["--write"]).all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] cannot read [HOME]/.cursor/mcp.json
      caused by: Not a directory (os error 20)
    ");
    let home = home.set("CODEX_HOME", "/dev/null");
    let error = home.pyro(["mcp", "install", "--client", "codex", "--write", "--json"]).json_error();
    insta::assert_snapshot!(format!("{error:#}"), @r#"
    {
      "error": "cannot read /dev/null/config.toml: Not a directory (os error 20)",
      "hints": [],
      "kind": "client_settings",
      "ok": false
    }
    "#);
}

#[test]
fn variables_say_where_clients_keep_their_settings() {
    let home = home()
        .set_path("XDG_CONFIG_HOME", "xdg")
        .set_path("CODEX_HOME", "codex")
        .set("CLAUDE_CONFIG_DIR", "claude");
    let files = [
        ("claude-code", "claude/.claude.json"),
        ("claude-desktop", "xdg/Claude/claude_desktop_config.json"),
        ("codex", "codex/config.toml"),
        ("cursor", ".cursor/mcp.json"),
        ("vscode", "xdg/Code/User/mcp.json"),
        ("opencode", "xdg/opencode/opencode.json"),
    ];
    for (client, file) in files {
        assert_eq!(installed(&home, client, &[])["file"], home.path(file).to_str().unwrap());
    }
    put(&home.path("xdg/opencode/opencode.json"), "{}");
    put(&home.path("xdg/opencode/opencode.jsonc"), "{}");
    let file = installed(&home, "opencode", &[])["file"].clone();
    assert_eq!(file, home.path("xdg/opencode/opencode.jsonc").to_str().unwrap());
}

#[test]
fn a_project_has_files_of_its_own() {
    for client in CLIENTS {
        let home = home();
        match client.project {
            Some(project) => {
                let document = installed(&home, client.name, &["--project", "--write"]);
                assert_eq!(document["file"], home.path(project).to_str().unwrap());
                assert!(home.path(project).exists());
            }
            None => {
                let ended = install(&home, client.name, &["--project"]);
                insta::assert_snapshot!(ended.all(), @r"
                exit: 1
                --- stdout
                --- stderr
                [error] claude-desktop has no project settings
                  hint: leave out `--project`
                ");
            }
        }
    }
}

#[test]
fn the_server_gets_the_settings_of_this_shell_and_its_flags() {
    let home = Home::new()
        .set("PYRO_BASE_DIR", "state")
        .set("PYRO_LOG", "error")
        .set("XDG_CACHE_HOME", "/cache")
        .set("SECRET", "x");
    let env = json!({
        "PYRO_BASE_DIR": home.path("state"), "PYRO_DEBIAN_MIRROR": "http://127.0.0.1:9/debian", "XDG_CACHE_HOME": "/cache",
    });
    let entry = |client| installed(&home, client, &[])["entry"].clone();
    let args = ["mcp", "serve"];
    assert_eq!(entry("claude-code"), json!({ "type": "stdio", "command": PYRO, "args": args, "env": env }));
    let codex = json!({ "command": PYRO, "args": args, "env": env, "tool_timeout_sec": 3660 });
    assert_eq!(entry("codex"), codex);
    let opencode = json!({
        "type": "local", "command": [PYRO, "mcp", "serve"], "enabled": true, "environment": env,
    });
    assert_eq!(entry("opencode"), opencode);
    // Invalid flags are reported now, because the client's server would fail unseen.
    let home = home.set("PYRO_WARM", "many");
    assert!(install(&home, "codex", &[]).stderr.contains("PYRO_WARM is set to `many`"));
    let refused = install(&home, "codex", &["--", "--no-such-flag"]);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("--no-such-flag"), "{refused:?}");
    for (flags, flag) in [
        (&["--listen", "127.0.0.1:1"][..], "--listen"),
        (&["--token-file=/t"], "--token-file"),
        (&["--read-only", "--allow-host", "h"], "--allow-host"),
        (&["--transport", "http"], "--transport http"),
    ] {
        let refused = install(&home, "codex", &[&["--"], flags].concat());
        assert_eq!(refused.code(), 2);
        assert!(refused.stderr.contains(&format!("{flag} is only for HTTP")), "{refused:?}");
    }
    for name in ["", "a b", "ü", "a.b", "x\ny"] {
        assert_eq!(install(&home, "codex", &["--name", name]).code(), 2, "{name}");
    }
}

#[test]
fn environments_of_the_flags_exist() {
    let home = home();
    let entry = installed(&home, "cursor", &["--", "--environment", "debian:12"])["entry"].clone();
    assert_eq!(entry["args"], json!(["mcp", "serve", "--environment", "debian:12"]));
    insta::assert_snapshot!(install(&home, "cursor", &["--write", "--", "--environment", "nosuch"]).all(), @r"
    exit: 2
    --- stdout
    --- stderr
    [error] unknown environment 'nosuch'; expected one of: debian:12, debian:12-agent, debian:12-base, debian:12-build
    ");
    assert!(!home.path(".cursor").exists());
}

#[test]
fn clients_in_general_get_a_text_to_paste() {
    let home = home();
    let shown = install(&home, "generic", &[]);
    let expected = json!({ "mcpServers": { "pyro": { "command": PYRO, "args": ["mcp", "serve"] } } });
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap(), expected);
    assert_eq!(installed(&home, "generic", &[])["file"], Value::Null);
    insta::assert_snapshot!(install(&home, "generic", &["--write"]).all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] generic has no file to write
    ");
    assert_eq!(home.entries(), [] as [PathBuf; 0]);
}

/// Each page shows what a new file holds after `--write`, and names the file of the user and that of a project.
#[test]
fn the_guides_show_what_is_written() {
    let guides = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/clients");
    let index = fs::read_to_string(guides.join("README.md")).unwrap();
    let mut pages = vec!["README.md".to_owned()];
    for (client, file) in
        CLIENTS.iter().map(|client| (client.name, Some(client.user))).chain([("generic", None)])
    {
        let page = fs::read_to_string(guides.join(format!("{client}.md"))).unwrap();
        let home = home();
        let snippet =
            installed(&home, client, &[])["snippet"].as_str().unwrap().replace(PYRO, "/usr/local/bin/pyro");
        let language = if client == "codex" { "toml" } else { "json" };
        let block = format!("```{language}\n{snippet}```\n");
        assert!(page.contains(&block), "{client}.md does not show\n{block}");
        assert!(page.contains(&format!("pyro mcp install --client {client}")), "{client}.md");
        assert!(
            file.is_none_or(|file| page.contains(&format!("`~/{file}`"))),
            "{client}.md does not name its file"
        );
        let project = CLIENTS.iter().find(|known| known.name == client).and_then(|known| known.project);
        assert!(
            project.is_none_or(|file| page.contains(&format!("`{file}`"))),
            "{client}.md does not name the project's file"
        );
        assert!(index.contains(&format!("({client}.md)")), "README.md has no link to {client}.md");
        pages.push(format!("{client}.md"));
    }
    pages.sort();
    assert_eq!(entries(&guides), pages, "every page is of a client");
}

#[test]
fn proxy_settings_are_not_written_and_the_user_is_told_to_set_them() {
    let home = home().set("PYRO_HOST_PROXY", "1").set("HTTPS_PROXY", "http://user:secret@proxy.test:3128");
    let ended = install(&home, "codex", &[]);
    assert!(ended.stdout.contains("Note: PYRO_HOST_PROXY is in the entry, but"), "{ended:?}");
    assert!(!ended.stdout.contains("secret"), "{ended:?}");
    let document = installed(&home, "generic", &[]);
    assert!(document["note"].as_str().unwrap().contains("HTTPS_PROXY"), "{document}");
}
