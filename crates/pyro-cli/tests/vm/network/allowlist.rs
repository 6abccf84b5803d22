//! A guest that reaches only what its policy names, and what is shown of its denials.

use std::fs;

use serde_json::Value;

use super::world::{OPEN_PORT, PUBLIC, heard, pyro_in_world, run_in_world};
use crate::harness::{ENVIRONMENT, Running, Sandbox};

/// Shell functions: `page HOST PORT` prints what a server says last, or `closed`; `resolve NAME` an address, or `unknown`.
const FUNCTIONS: &str = r#"
    page() { timeout 20 bash -c "cat < /dev/tcp/$1/$2" 2>/dev/null | tail -n 1 | grep . || echo closed; }
    resolve() { getent ahostsv4 "$1" | sed 's/ .*//;q' | grep . || echo unknown; }
"#;

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["--network", "--egress", "allowlist"].iter().chain(more).copied().collect()
}

#[test]
fn only_named_domains_are_reached_and_denials_are_shown() {
    let sandbox = Sandbox::new();
    let line = format!(
        "{FUNCTIONS}
        page {PUBLIC} {OPEN_PORT}; page public.test {OPEN_PORT}; page {PUBLIC} {OPEN_PORT}; page {PUBLIC} 9999
        resolve lan.test; resolve rebind.test; page 127.0.0.1 {OPEN_PORT}; page 10.99.0.8 {OPEN_PORT}"
    );
    let domains = ["--allow-domain", "public.test:8080", "--allow-domain", "rebind.test:8080"];
    let ended = run_in_world(&sandbox, flags(&domains), &line);
    // The address is open once the guest has asked for the name.
    let expected = "closed\npublic\npublic\nclosed\nunknown\nunknown\nclosed\nclosed\n";
    assert_eq!(ended.success(), expected, "{ended:?}");
    for denial in [
        "[network] denied tcp 5.6.7.8:8080: not_on_allowlist",
        "[network] denied dns lan.test: name_not_on_allowlist",
        "[network] denied dns rebind.test (127.0.0.1): dns_rebinding",
        "[network] denied tcp 10.99.0.8:8080: private",
    ] {
        assert!(ended.stderr.contains(denial), "{denial} is not in {}", ended.stderr);
    }
    assert!(!heard(&sandbox, "host").contains("8080"), "{}", heard(&sandbox, "host"));
    assert!(!heard(&sandbox, "beyond").contains("10.99.0.8"), "{}", heard(&sandbox, "beyond"));
}

#[test]
fn a_preset_opens_what_the_hosts_package_manager_uses() {
    let sandbox = Sandbox::new();
    let settings = sandbox.path("home").join(".config/pip/pip.conf");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    fs::write(settings, "[global]\nindex-url = http://public.test:8080/simple\n").unwrap();
    let line = format!("{FUNCTIONS} page public.test {OPEN_PORT}; resolve lan.test");
    let ended = run_in_world(&sandbox, flags(&["--allow-domain", "@pypi"]), &line);
    assert_eq!(ended.success(), "public\nunknown\n", "{ended:?}");
    let ended = sandbox.run(flags(&["--allow-domain", "@crates"]), "true");
    assert!(ended.usage_error().contains("cannot find the hosts of @crates: "), "{ended:?}");
}

#[test]
fn an_entry_opens_one_private_thing_and_no_other() {
    let sandbox = Sandbox::new();
    let line = format!(
        "{FUNCTIONS}
        page 10.99.0.8 {OPEN_PORT}; page 10.99.0.8 9999; page 127.0.0.1 {OPEN_PORT}; page 10.99.0.1 {OPEN_PORT}
        page {PUBLIC} {OPEN_PORT}"
    );
    let ended = run_in_world(&sandbox, ["--network", "--allow-host", "10.99.0.8:8080"], &line);
    assert_eq!(ended.success(), "public\nclosed\nclosed\nclosed\npublic\n", "{ended:?}");
}

#[test]
fn a_json_document_has_what_was_refused() {
    let sandbox = Sandbox::new();
    let mut command = pyro_in_world(&sandbox);
    command.args(["run", ENVIRONMENT, "--json"]).args(flags(&[]));
    command.args(["--", "bash -c '< /dev/tcp/5.6.7.8/8080'"]);
    let result: Value = serde_json::from_slice(&Running::start(&mut command).finish().stdout).unwrap();
    assert_ne!(result["exit_code"], 0, "{result}");
    let [denial] = &result["network_denials"].as_array().unwrap()[..] else { panic!("{result}") };
    assert_eq!(
        (&denial["protocol"], &denial["address"], &denial["port"], &denial["rule"], &denial["count"]),
        (&"tcp".into(), &PUBLIC.into(), &OPEN_PORT.into(), &"not_on_allowlist".into(), &1.into())
    );
}
