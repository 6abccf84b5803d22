//! `pyro rpc`.

use pyro_engine::{Engine, OutputStream};
use pyro_rpc::Server;
use tokio::io::{Stdin, Stdout};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio_util::either::Either;

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
        let served = Server::new(engine).serve(input(), output(), stop).await;
        served.map_err(|error| OutputError::new(OutputStream::Stdout, error))?;
        Ok(stopped.map_or(Exit::Success, Exit::Stopped))
    })
}

// A pipe is waited for by the event loop. It is opened anew, so that whoever shares it keeps one that blocks. Anything else is
// waited for by a thread, which costs each message the time to wake that up.

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
