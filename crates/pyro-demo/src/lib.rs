//! Demonstrations: [`one_command`] in a new VM, and a language model that proves that it can run one ([`ollama`]).
//!
//! This crate does not print: it returns results and passes the lines of a demonstration to its caller.

pub mod ollama;

use pyro_api::operations::RunInVm;
use pyro_api::{CallContext, Command, Contract, Error, RunResult, VmSpec};

/// Environment of both demonstrations: the smallest that has everything they need.
const ENVIRONMENT: &str = "debian:12";

const LOCAL_COMMAND: &str = "git --version";

/// Prints the HTTP status of a page. Uses `openssl`, which the environment has for its certificates, because it has no
/// Python. Fails without a response, or if the certificate is not for this host.
const NETWORK_COMMAND: &str = "printf 'GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n' \
    | openssl s_client -quiet -verify_quiet -verify_return_error -verify_hostname example.com \
    -connect example.com:443 | awk '/^HTTP/ { print $2; ok = 1; exit } END { exit !ok }'";

/// Runs `git --version` in a new VM or, with `network`, a command that fetches a page and prints the HTTP status.
///
/// # Errors
/// Those of [`Contract::run_in_vm`]. That the command failed is part of the result.
pub async fn one_command(
    contract: &impl Contract,
    network: bool,
    call: &CallContext,
) -> Result<RunResult, Error> {
    let spec = VmSpec { network, ..VmSpec::new(ENVIRONMENT) };
    let command = Command::new(if network { NETWORK_COMMAND } else { LOCAL_COMMAND });
    let request = RunInVm { spec, command, output: Default::default() };
    let mut result = contract.run_in_vm(request, call).await?;
    result.timings.clear();
    Ok(result)
}
