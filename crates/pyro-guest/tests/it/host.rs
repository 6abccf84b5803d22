//! The host's end of the channel, and a machine that only records what is done to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_guest::{Agent, AgentError, CommandSettings, Machine};
use pyro_wire::{
    Bootstrap, Call, Exec, ExecInput, ExecReply, Exit, Failure, FailureKind, Frame, FrameCodec, HostSettings,
    OutputStream, Preparation,
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// What was done to a machine, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Prepared(Preparation),
    Applied(Bootstrap),
    Identified(Bootstrap),
    ProcessesEnded,
    Halted,
}

/// A machine that records, and fails at one step if asked to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    done: Arc<Mutex<Vec<Done>>>,
    failure: Option<Failure>,
}

impl Recorder {
    pub(crate) fn failing() -> Self {
        Self { failure: Some(a_failure()), ..Self::default() }
    }

    pub(crate) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap().clone()
    }

    fn record(&self, done: Done) -> Result<(), Failure> {
        self.done.lock().unwrap().push(done);
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Machine for Recorder {
    async fn prepare(&mut self, preparation: &Preparation) -> Result<(), Failure> {
        self.record(Done::Prepared(preparation.clone()))
    }

    async fn apply(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        self.record(Done::Applied(bootstrap.clone()))
    }

    fn identify(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        self.record(Done::Identified(bootstrap.clone()))
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let done = self.done();
        let named = done.iter().rev().find_map(|done| match done {
            Done::Applied(bootstrap) | Done::Identified(bootstrap) => Some(bootstrap),
            Done::Prepared(_) | Done::ProcessesEnded | Done::Halted => None,
        });
        named.map(|bootstrap| bootstrap.host.variables.clone()).unwrap_or_default()
    }

    fn process_end(&self) -> Box<dyn FnOnce() + Send> {
        let machine = self.clone();
        Box::new(move || machine.done.lock().unwrap().push(Done::ProcessesEnded))
    }

    fn halt(&mut self) -> Result<(), Failure> {
        self.record(Done::Halted)
    }
}

pub(crate) fn a_failure() -> Failure {
    Failure {
        kind: FailureKind::NoSpace,
        step: "writing".into(),
        cause: "the disk is full".into(),
        errno: Some(28),
    }
}

pub(crate) fn a_bootstrap(hostname: &str) -> Bootstrap {
    Bootstrap {
        unix_time_ns: 1,
        seed: "ab".repeat(32),
        hostname: hostname.to_owned(),
        machine_id: "0".repeat(32),
        network: None,
        host: HostSettings::default(),
    }
}

/// A stream whose request was sent.
pub(crate) type CallStream<C> =
    Framed<Compat<yamux::Stream>, FrameCodec<<C as Call>::Reply, <C as Call>::Input>>;

/// An agent with a host that asks it things.
pub(crate) struct Host {
    streams: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    driver: JoinHandle<()>,
    agent: JoinHandle<Result<(), AgentError>>,
    pub(crate) machine: Recorder,
    dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(Recorder::default(), |_| {})
    }

    pub(crate) fn with(machine: Recorder, change: impl FnOnce(&mut CommandSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings =
            CommandSettings { workspace: dir.path().join("workspace"), ..CommandSettings::new(agent()) };
        std::fs::create_dir(&settings.workspace).unwrap();
        change(&mut settings);
        let (host, guest) = UnixStream::pair().unwrap();
        let agent = Agent::new(machine.clone(), settings);
        let agent = tokio::spawn(async move { agent.serve(guest).await });
        let (streams, requests) = mpsc::channel(1);
        Self { streams, driver: tokio::spawn(drive(host, requests)), agent, machine, dir }
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspace")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.workspace().join(name)
    }

    /// A stream on which nothing was sent.
    pub(crate) async fn open(&self) -> Compat<yamux::Stream> {
        let (sender, receiver) = oneshot::channel();
        self.streams.send(sender).await.unwrap();
        receiver.await.unwrap().compat()
    }

    /// Sends a request.
    pub(crate) async fn call<C: Call>(&self, call: C) -> CallStream<C> {
        let mut stream = Framed::new(self.open().await, FrameCodec::<C::Reply, _>::default());
        stream.send(Frame::Control(call.into())).await.unwrap();
        stream.map_codec(|_| FrameCodec::default())
    }

    /// The reply to a request that nothing comes before.
    pub(crate) async fn ask<C: Call>(&self, call: C) -> C::Reply {
        let mut stream = self.call(call).await;
        let reply = match stream.next().await {
            Some(Ok(Frame::Control(reply))) => reply,
            other => panic!("no reply: {other:?}"),
        };
        assert!(stream.next().await.is_none(), "the reply is the last frame");
        reply
    }

    /// A command in the workspace with a generous limit.
    pub(crate) fn exec(&self, command: &str) -> Exec {
        let cwd = self.workspace().to_str().unwrap().to_owned();
        Exec { cwd, ..Exec::new(command, Duration::from_secs(100)) }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, exec: Exec) -> Ended {
        let stream = self.call(exec).await;
        end_of(stream).await
    }

    /// Closes the channel and waits until the agent has seen it.
    pub(crate) async fn hang_up(self) -> TempDir {
        self.driver.abort();
        let _ = self.driver.await;
        // What the host had not read by then makes it a reset.
        let _ = self.agent.await.unwrap();
        self.dir
    }
}

/// The executable of the agent.
pub(crate) fn agent() -> std::fs::File {
    std::fs::File::open(env!("CARGO_BIN_EXE_pyro-guest")).unwrap()
}

/// What a command wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) reply: ExecReply,
}

impl Ended {
    pub(crate) fn exit(&self) -> &Exit {
        match &self.reply {
            ExecReply::Exited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failure(&self) -> &Failure {
        match &self.reply {
            ExecReply::NotStarted(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// Reads a command's output and its reply, which is the last frame.
pub(crate) async fn end_of(mut stream: CallStream<Exec>) -> Ended {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let reply = loop {
        match stream.next().await.expect("a reply comes before the end").unwrap() {
            Frame::Output(OutputStream::Stdout, bytes) => stdout.extend_from_slice(&bytes),
            Frame::Output(OutputStream::Stderr, bytes) => stderr.extend_from_slice(&bytes),
            Frame::Control(reply) => break reply,
        }
    };
    assert!(stream.next().await.is_none(), "the reply is the last frame");
    Ended { stdout, stderr, reply }
}

/// Reads output until there is as much as `expected`.
pub(crate) async fn expect_output(stream: &mut CallStream<Exec>, expected: &str) {
    let mut text = Vec::new();
    while text.len() < expected.len() {
        match stream.next().await.unwrap().unwrap() {
            Frame::Output(OutputStream::Stdout, bytes) => text.extend_from_slice(&bytes),
            other => panic!("not output: {other:?}"),
        }
    }
    assert_eq!(text, expected.as_bytes());
}

pub(crate) async fn terminate(stream: &mut CallStream<Exec>) {
    stream.send(Frame::Control(ExecInput::Terminate)).await.unwrap();
}

pub(crate) fn chunk<M>(bytes: impl Into<Bytes>) -> Frame<M> {
    Frame::Output(OutputStream::Stdout, bytes.into())
}

/// A fifo, which connects a command of the guest with the test without either waiting in vain.
pub(crate) fn make_fifo(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
}

/// Opens streams and moves their bytes until it is dropped.
async fn drive(channel: UnixStream, mut requests: mpsc::Receiver<oneshot::Sender<yamux::Stream>>) {
    let mut connection = Connection::new(channel.compat(), Config::default(), Mode::Client);
    let mut waiting = None;
    poll_fn(|context| {
        loop {
            if waiting.is_none()
                && let Poll::Ready(Some(request)) = requests.poll_recv(context)
            {
                waiting = Some(request);
            }
            if waiting.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(context)
            {
                let request: oneshot::Sender<yamux::Stream> = waiting.take().unwrap();
                let _ = request.send(stream.unwrap());
                continue;
            }
            match connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(_))) => panic!("the guest opened a stream"),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
