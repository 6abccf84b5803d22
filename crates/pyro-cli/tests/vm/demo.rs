//! `pyro demo` with real VMs.

use serde_json::json;

use crate::harness::{ENVIRONMENT, Sandbox};

#[test]
fn one_command_is_run_and_its_result_printed() {
    let sandbox = Sandbox::new();
    let ended = sandbox.pyro(["demo"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let result = ended.json();
    assert_eq!((&result["command"], &result["environment"]), (&json!("git --version"), &json!(ENVIRONMENT)));
    assert_eq!((&result["exit_code"], &result["execution_mode"]), (&json!(0), &json!("guest_vsock")));
    assert!(result["stdout"].as_str().unwrap().starts_with("git version "), "{result}");
    assert_eq!(result["cleanup"]["reason"], "post_exec_cleanup");
    assert_eq!(ended.text(), format!("{result:#}\n"));
}

/// The page is out of reach of most hosts that run tests, so the guest serves it to itself.
#[test]
fn the_command_for_the_network_prints_the_status_of_the_page_and_trusts_nobody_else() {
    let sandbox = Sandbox::new();
    let ended = sandbox.pyro(["demo", "--network"]);
    assert_eq!(ended.code(), 0, "whatever became of the command: {ended:?}");
    let result = ended.json();
    match result["exit_code"].as_i64().unwrap() {
        0 => assert_eq!(result["stdout"], "200\n"),
        _ => assert_eq!(result["stdout"], "", "{result}"),
    }
    let serve = r#"cd /tmp && {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
            -keyout key -out certificate -subj /CN=test -addext subjectAltName=DNS:example.com
        echo 127.0.0.1 example.com >> /etc/hosts
        mkfifo started
        openssl s_server -www -accept 443 -cert certificate -key key > started &
        exec 3< started
        until [ "$word" = ACCEPT ]; do read -r word <&3 || exit 99; done
    } > /dev/null 2>&1"#;
    let command = result["command"].as_str().unwrap();
    let trust = "cp certificate /etc/ssl/certs/$(openssl x509 -noout -hash -in certificate).0";
    let line = format!("{serve}; {command}; echo untrusted: $?; {trust}; {command}; echo trusted: $?");
    let ended = sandbox.run(["--timeout-seconds", "80"], &line);
    assert_eq!(ended.success(), "untrusted: 1\n200\ntrusted: 0\n", "{ended:?}");
}
