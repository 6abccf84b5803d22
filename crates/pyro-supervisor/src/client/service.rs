//! Services of a VM.

use futures::StreamExt;
use pyro_wire::Frame;
use tokio::time::timeout;

use super::{Client, ConnectError, KILL_LIMIT, PROBE_AFTER, RunError, WATCH_PROBE_AFTER, ask, unexpected};
use crate::protocol::{Reply, Request, ServiceReply, ServiceRequest};
use crate::service::{ServiceDefinition, ServiceStatus};

/// Why a request about a service failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The VM has no such service.
    #[error("the service does not exist")]
    NotFound,
    /// It runs already. Nothing was done.
    #[error("the service runs already")]
    Running,
    /// It has not been started since its VM was started: its record says what became of it.
    #[error("the service was not started since its VM was")]
    NotStarted,
    /// It cannot be recorded, and was not started or removed; or what became of it cannot be recorded.
    #[error("{cause}")]
    NotRecorded {
        /// Why.
        cause: String,
        /// Trying again does not help: the VM has too many services.
        is_permanent: bool,
    },
    /// Any other reason.
    #[error(transparent)]
    Request(#[from] RunError),
}

/// What a follower is sent before the answer.
enum Followed {
    Skipped { offset: u64 },
    Output(bytes::Bytes),
}

impl From<ConnectError> for ServiceError {
    fn from(error: ConnectError) -> Self {
        Self::Request(error.into())
    }
}

impl Client {
    /// Starts a service: the one with this definition, or the one that has this name. With `wait`, returns when it is ready,
    /// or when this run of its command cannot become ready; its state says which. Dropping the future does not end it.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn start_service(
        &self,
        name: &str,
        definition: Option<ServiceDefinition>,
        wait: bool,
    ) -> Result<ServiceStatus, ServiceError> {
        let request = ServiceRequest::Start { definition: definition.map(Box::new), wait };
        let answer = self.about_service(name, request, async |_| {});
        // It may take long to become ready, but its supervisor responds.
        let silent = Err(ConnectError::Unresponsive.into());
        status(self.while_responsive(WATCH_PROBE_AFTER, answer).await.unwrap_or(silent)?)
    }

    /// Stops a service and waits until nothing of it runs.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn stop_service(&self, name: &str) -> Result<ServiceStatus, ServiceError> {
        status(self.end_service(name, ServiceRequest::Stop).await?)
    }

    /// Stops a service, and forgets it with its output.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn remove_service(&self, name: &str) -> Result<(), ServiceError> {
        match self.end_service(name, ServiceRequest::Remove).await? {
            ServiceReply::Removed => Ok(()),
            reply => status(reply).map(drop),
        }
    }

    /// Passes what a service writes to `on_output`, from this offset of its log on, with the offset of each piece, until it has
    /// ended for good. Returns its status then. What is not kept any more is skipped.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn follow_service(
        &self,
        name: &str,
        offset: u64,
        mut on_output: impl AsyncFnMut(u64, bytes::Bytes),
    ) -> Result<ServiceStatus, ServiceError> {
        let mut next = offset;
        let on_frame = async |frame| match frame {
            Followed::Skipped { offset } => next = offset,
            Followed::Output(bytes) => {
                let offset = next;
                next += bytes.len() as u64;
                on_output(offset, bytes).await;
            }
        };
        let answer = self.about_service(name, ServiceRequest::Follow { offset }, on_frame);
        let silent = Err(ConnectError::Unresponsive.into());
        status(self.while_responsive(WATCH_PROBE_AFTER, answer).await.unwrap_or(silent)?)
    }

    async fn end_service(&self, name: &str, request: ServiceRequest) -> Result<ServiceReply, ServiceError> {
        let answer = self.about_service(name, request, async |_| {});
        match timeout(KILL_LIMIT, self.while_responsive(PROBE_AFTER, answer)).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(RunError::Unanswered.into()),
        }
    }

    async fn about_service(
        &self,
        name: &str,
        request: ServiceRequest,
        mut on_frame: impl AsyncFnMut(Followed),
    ) -> Result<ServiceReply, ServiceError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, Request::Service { name: name.to_owned(), request }).await?;
        loop {
            match stream.next().await {
                Some(Ok(Frame::Output(_, bytes))) => on_frame(Followed::Output(bytes)).await,
                Some(Ok(Frame::Control(Reply::Service(ServiceReply::Skipped { offset })))) => {
                    on_frame(Followed::Skipped { offset }).await;
                }
                Some(Ok(Frame::Control(Reply::Service(reply)))) => return Ok(reply),
                Some(Ok(Frame::Control(reply))) => return Err(unexpected(reply).into()),
                Some(Err(_)) | None => return Err(RunError::Lost { sequence: None }.into()),
            }
        }
    }
}

fn status(reply: ServiceReply) -> Result<ServiceStatus, ServiceError> {
    match reply {
        ServiceReply::Status(status) => Ok(status),
        ServiceReply::NotFound => Err(ServiceError::NotFound),
        ServiceReply::Running => Err(ServiceError::Running),
        ServiceReply::NotStarted => Err(ServiceError::NotStarted),
        ServiceReply::NotRecorded { cause, is_permanent } => {
            Err(ServiceError::NotRecorded { cause, is_permanent })
        }
        ServiceReply::Removed | ServiceReply::Skipped { .. } => Err(RunError::Lost { sequence: None }.into()),
    }
}
