use std::collections::BTreeSet;
use std::io;

use pyro_engine::{Error, ErrorKind, Hint, OutputStream};

use super::*;
use crate::printer::OutputError;
use crate::signals::Signal;
use crate::words::WordsError;

fn engine_error() -> Error {
    let cause = Error::new(ErrorKind::Internal, "middle").caused_by(io::Error::other("no space\nat all"));
    Error::new(ErrorKind::StateUnusable, "cannot open the \u{1b}registry")
        .caused_by(cause)
        .hint(Hint::CommandLine { text: "free some space".to_owned() })
        .hint(Hint::CommandLine { text: "or set PYRO_BASE_DIR".to_owned() })
}

#[test]
fn people_get_message_causes_and_hints() {
    let report = Report::of(&CliError::Engine(engine_error())).unwrap();
    insta::assert_snapshot!(report.human(), @r"
    [error] cannot open the \u{1b}registry
      caused by: middle
      caused by: no space
        at all
      hint: free some space
      hint: or set PYRO_BASE_DIR
    ");
}

#[test]
fn programs_get_one_message_with_its_causes() {
    let report = Report::of(&CliError::Engine(engine_error())).unwrap();
    let document = String::from_utf8(crate::json::document(&report.json()).unwrap()).unwrap();
    insta::assert_snapshot!(document, @r#"
    {
      "error": "cannot open the \u001bregistry: middle: no space\nat all",
      "hints": [
        "free some space",
        "or set PYRO_BASE_DIR"
      ],
      "kind": "state_unusable",
      "ok": false
    }
    "#);
}

#[test]
fn every_engine_error_has_an_exit_status_and_a_kind_of_its_own() {
    let mut names = BTreeSet::new();
    for kind in ErrorKind::ALL {
        let error = CliError::Engine(Error::new(kind, "text"));
        let expected = if kind == ErrorKind::InvalidInput { 2 } else { 1 };
        assert_eq!(error.exit().code(), expected, "{kind:?}");
        let name = Report::of(&error).unwrap().kind;
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), ErrorKind::ALL.len());
}

#[test]
fn a_signal_decides_the_exit_whatever_the_engine_said() {
    for (signal, code) in
        [(Signal::Interrupt, 130), (Signal::Terminate, 143), (Signal::Hangup, 129), (Signal::Quit, 131)]
    {
        for kind in ErrorKind::ALL {
            assert_eq!(CliError::Stopped(signal, Error::new(kind, "text")).exit().code(), code);
        }
        assert_eq!(CliError::Abandoned(signal).exit().code(), code);
        assert!(
            Report::of(&CliError::Abandoned(signal))
                .unwrap()
                .human()
                .contains("may still hold files of the VM")
        );
    }
}

#[test]
fn a_reader_that_left_is_no_failure_to_report() {
    let broken = |kind| CliError::Output(OutputError::new(OutputStream::Stdout, io::Error::from(kind)));
    assert!(Report::of(&broken(io::ErrorKind::BrokenPipe)).is_none());
    assert_eq!(broken(io::ErrorKind::BrokenPipe).exit().code(), 141);
    assert!(Report::of(&broken(io::ErrorKind::StorageFull)).is_some());
    assert_eq!(broken(io::ErrorKind::StorageFull).exit().code(), 1);
}

#[test]
fn our_own_failures_exit_with_1() {
    for error in [
        CliError::Config(crate::config::bad_log_filter("x=y=z")),
        CliError::System("cannot do it".to_owned(), io::Error::other("cause")),
    ] {
        assert_eq!(error.exit().code(), 1);
        assert!(Report::of(&error).unwrap().human().starts_with("[error] "));
    }
    assert_eq!(CliError::Words(WordsError::Missing).exit().code(), 2);
}

/// The contract's texts name parameters; a person knows options.
#[test]
fn people_read_the_names_of_options_and_programs_those_of_parameters() {
    let error = Error::out_of_range("ttl_seconds", 60, 3600).hint(Hint::LargerTtl);
    let report = Report::of(&CliError::Engine(error)).unwrap();
    insta::assert_snapshot!(report.human(), @r"
    [error] --ttl-seconds must be between 60 and 3600
      hint: set a larger --ttl-seconds
    ");
    assert_eq!(report.json().error, "ttl_seconds must be between 60 and 3600");
    let stopped = Error::not_started(pyro_engine::Kind::Task, "0123456789ab", pyro_engine::VmState::Stopped);
    let report = Report::of(&CliError::Engine(stopped)).unwrap();
    let first = report.human().lines().next().unwrap().to_owned();
    assert_eq!(first, "[error] task 0123456789ab must be in 'started' state before a command can run in it");
    // What the user wrote is not a parameter.
    let path = Error::new(ErrorKind::FileFailed, "mem_mib cannot be read").hint(Hint::CheckPath);
    let report = Report::of(&CliError::Engine(path)).unwrap();
    assert!(report.human().starts_with("[error] mem_mib cannot be read\n"));
    let longer = Error::new(ErrorKind::InvalidInput, "my_mem_mib mem_mib2 /x/mem_mib.txt").naming("mem_mib");
    let report = Report::of(&CliError::Engine(longer)).unwrap();
    assert_eq!(report.human(), "[error] my_mem_mib mem_mib2 /x/mem_mib.txt\n");
}
