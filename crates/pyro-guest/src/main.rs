//! pyro's only program inside a microVM; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pyro_guest::run()
}
