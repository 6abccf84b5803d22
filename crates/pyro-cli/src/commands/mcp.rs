//! `pyro mcp`.

use std::io;

use pyro_mcp::Server;

use crate::args::McpCommand;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::session;
use crate::signals;

pub(crate) fn run(command: McpCommand) -> Result<Exit, CliError> {
    let McpCommand::Serve(_) = command;
    let engine = super::engine()?;
    session::block_on(async {
        let mut requests = signals::listen()
            .map_err(|error| CliError::System("cannot listen for signals".to_owned(), error))?;
        let mut stopped = None;
        let stop = async { stopped = requests.recv().await };
        Server::new(engine)
            .serve_stdio(stop)
            .await
            .map_err(|error| CliError::System("cannot serve".to_owned(), io::Error::other(error)))?;
        Ok(stopped.map_or(Exit::Success, Exit::Stopped))
    })
}
