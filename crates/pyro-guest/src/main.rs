//! The only program of ours inside a microVM; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pyro_guest::run()
}
