//! Builds the guest agent, which the library embeds, so that the `pyro` executable holds all of pyro's part of a guest. It
//! runs a nested cargo because stable cargo cannot make one crate's binary another crate's dependency.

#![expect(clippy::disallowed_methods, reason = "cargo hands settings to build scripts that way")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for watched in ["pyro-guest", "pyro-archive", "pyro-wire", "../Cargo.lock", "../Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", crates.join(watched).display());
    }

    // A target directory of its own: the outer cargo holds the lock of the usual one.
    let target_dir = shared_target_dir(Path::new(&variable("OUT_DIR"))).join("guest-agent");
    let status = Command::new(variable("CARGO"))
        .current_dir(crates.join("pyro-guest"))
        .args(["build", "--locked", "--profile", "guest", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        // Settings of the outer build (clippy's wrapper, other flags) must not leak into the agent.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "building the guest agent failed");
    let agent = target_dir.join(TARGET).join("guest").join("pyro-guest");
    println!("cargo::rustc-env=PYRO_GUEST_AGENT={}", agent.display());
    let digest = Sha256::digest(std::fs::read(&agent).expect("the agent was built"));
    println!("cargo::rustc-env=PYRO_GUEST_AGENT_SHA256={}", hex::encode(digest));
}

/// The directory above this profile's, so that debug and release builds share one agent.
fn shared_target_dir(out_dir: &Path) -> PathBuf {
    // OUT_DIR is <target>[/<triple>]/<profile>/build/<package>/out.
    let profile_dir = out_dir.ancestors().nth(3).expect("OUT_DIR has its usual depth");
    profile_dir.parent().expect("a profile directory has a parent").to_owned()
}
