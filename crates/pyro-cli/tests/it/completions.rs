use std::process::Command;

use crate::harness::Home;

fn script(shell: &str) -> String {
    let ended = Home::new().pyro(["completions", shell]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""));
    ended.stdout
}

#[test]
fn scripts_know_commands_and_flags_but_no_helper_processes() {
    for shell in ["bash", "zsh", "fish"] {
        let text = script(shell);
        for word in
            ["run", "env", "doctor", "prune", "vcpu-count", "allow-host-compat", "platform", "claude-desktop"]
        {
            assert!(text.contains(word), "{shell} does not know {word}");
        }
        for word in ["supervise", "probe-kvm", "probe__kvm"] {
            assert!(!text.contains(word), "{shell} offers {word}");
        }
    }
}

#[test]
fn bash_can_read_its_script() {
    let home = Home::new();
    std::fs::write(home.path("pyro.bash"), script("bash")).unwrap();
    let status = Command::new("/bin/bash").arg("-n").arg(home.path("pyro.bash")).status().unwrap();
    assert!(status.success());
}
