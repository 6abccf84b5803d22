//! Output: complete, byte for byte, or counted.

use std::io::{BufRead as _, BufReader};

use crate::harness::{ENVIRONMENT, PYRO, Sandbox};

/// Bytes kept of a stream in the JSON document.
const KEPT: usize = 16 * 1024 * 1024;
/// A lot of output: 100 MB in lines.
const LOTS: usize = 100_000_000;
const LINE: &str = "0123456789abcdefghi\n";
const WRITE_LOTS: &str = "yes 0123456789abcdefghi | head -c 100000000";

#[test]
fn a_hundred_megabytes_come_through_whole() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--timeout-seconds", "300"], WRITE_LOTS);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.len(), LOTS);
    assert!(ended.stdout.chunks(LINE.len()).all(|line| line == LINE.as_bytes()));
}

#[test]
fn the_json_document_keeps_the_beginning_and_counts_the_rest() {
    let sandbox = Sandbox::new();
    let line = format!("{WRITE_LOTS}; echo short >&2");
    let ended = sandbox.run(["--timeout-seconds", "300", "--json"], &line);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let result = ended.json();
    let kept = result["stdout"].as_str().unwrap();
    assert_eq!(kept.len(), KEPT);
    assert!(kept.as_bytes().chunks(LINE.len()).all(|line| LINE.as_bytes().starts_with(line)));
    assert_eq!(result["stdout_truncated"], LOTS - KEPT);
    assert_eq!((&result["stderr"], &result["stderr_truncated"]), (&"short\n".into(), &0.into()));
}

#[test]
fn both_streams_may_be_full_at_once() {
    let sandbox = Sandbox::new();
    let line = "yes out | head -c 4000000 & yes err | head -c 4000000 >&2; wait";
    let ended = sandbox.run(["--timeout-seconds", "300"], line);
    assert_eq!(ended.code(), 0);
    assert_eq!(ended.stdout.len(), 4_000_000);
    assert_eq!(ended.stderr.matches("err\n").count(), 1_000_000);
}

#[test]
fn every_byte_value_survives() {
    let sandbox = Sandbox::new();
    let all: Vec<u8> = (0..=255).collect();
    let line = "perl -e 'print map chr, 0..255'";
    assert_eq!(sandbox.run([], line).stdout, all);
    let result = sandbox.run(["--json"], &format!("{line}; {line} >&2")).json();
    assert_eq!(result["stdout"], String::from_utf8_lossy(&all).as_ref());
    assert_eq!(result["stderr"], String::from_utf8_lossy(&all).as_ref());
    assert_eq!(result["exit_code"], 0);
}

#[test]
fn output_is_shown_while_the_command_runs() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(["--timeout-seconds", "100"], "echo first; sleep 1000");
    running.stdout.wait_for("first\n");
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.finish().code(), 130);
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.program(PYRO).args(["run", ENVIRONMENT, "--", "yes"]).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    drop(reader);
    assert_eq!(line, "y\n");
    assert_eq!(child.wait().unwrap().code(), Some(141));
}
