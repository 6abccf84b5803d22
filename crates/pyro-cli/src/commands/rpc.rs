//! `pyro rpc`.

use pyro_engine::{Engine, OutputStream};
use pyro_rpc::Server;

use crate::args::RpcArgs;
use crate::commands;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::{OutputError, Printer};
use crate::session;
use crate::signals;

pub(crate) fn run(args: &RpcArgs, printer: &Printer) -> Result<Exit, CliError> {
    if args.schema {
        printer.json(pyro_rpc::document())?;
        return Ok(Exit::Success);
    }
    let engine = Engine::new(commands::config()?);
    session::block_on(async {
        let mut requests = signals::listen()?;
        let mut stopped = None;
        let stop = async { stopped = requests.recv().await };
        let served = Server::new(engine).serve(tokio::io::stdin(), tokio::io::stdout(), stop).await;
        served.map_err(|error| OutputError::new(OutputStream::Stdout, error))?;
        Ok(stopped.map_or(Exit::Success, Exit::Stopped))
    })
}
