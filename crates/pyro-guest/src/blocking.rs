//! Work on threads that may block. Everything that uses the file system belongs there: the agent's own thread passes on the
//! messages of the host's directories, so it must never wait for one.

use pyro_wire::Failure;

use crate::failure::refused;

/// Does something on a thread that may block. It goes on if the caller does not wait for it.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Failure> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(refused("using a thread", error.to_string()).into()),
    }
}
