//! `pyro rpc`.

use clap::Args;
use pyro_engine::OutputStream;
use pyro_rpc::Server;
use tokio::io::{Stdin, Stdout};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio_util::either::Either;

use crate::error::CliError;
use crate::exit::Exit;
use crate::printer::OutputError;
use crate::reply::Reply;
use crate::{config, session, signals};

const RPC_EXAMPLES: &str = "\
The Python package starts it. The first request is `initialize`; `rpc.discover` returns the same document as --schema.

Examples:
  pyro rpc --schema | jq -r '.methods[].name'
  echo '{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"rpc.discover\"}' | pyro rpc";

/// Serve one program on standard input and output with JSON-RPC 2.0
///
/// One message per line, parameters by name, up to 4096 calls at once. When its input ends, it cancels the calls in
/// flight, removes their VMs, and exits; tasks stay.
#[derive(Debug, Args)]
#[command(after_help = RPC_EXAMPLES)]
pub(crate) struct RpcArgs {
    /// Print the OpenRPC document that describes the protocol, and exit [default: off]
    #[arg(long)]
    pub(crate) schema: bool,
}

pub(crate) fn run(args: &RpcArgs) -> Result<Reply, CliError> {
    if args.schema {
        return Ok(Reply::document(pyro_rpc::document())?);
    }
    let engine = config::engine()?;
    session::block_on(async {
        let mut requests = signals::listen()?;
        let mut stopped = None;
        let stop = async { stopped = requests.recv().await };
        let served = Server::new(engine).serve(input(), output(), stop).await;
        served.map_err(|error| OutputError::new(OutputStream::Stdout, error))?;
        Ok::<_, CliError>(Reply::nothing().exit(stopped.map_or(Exit::Success, Exit::Stopped)))
    })
}

// The event loop waits for a pipe. It is opened again, because making it non-blocking would affect other processes that
// share it. Anything else needs a thread, which adds the time to wake it to each message.

fn input() -> Either<Receiver, Stdin> {
    match OpenOptions::new().open_receiver("/proc/self/fd/0") {
        Ok(pipe) => Either::Left(pipe),
        Err(_) => Either::Right(tokio::io::stdin()),
    }
}

fn output() -> Either<Sender, Stdout> {
    match OpenOptions::new().open_sender("/proc/self/fd/1") {
        Ok(pipe) => Either::Left(pipe),
        Err(_) => Either::Right(tokio::io::stdout()),
    }
}
