//! The command line's way to a daemon that has the store open.

use std::io::Write;
use std::path::{Path, PathBuf};

use mica_layerdb::Progress;
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;

use crate::admin::Call;
use crate::grpc::proto::mica::v1::CallRequest;
use crate::grpc::proto::mica::v1::admin_client::AdminClient;
use crate::grpc::proto::mica::v1::call_response::Message;
use crate::grpc::proto::mica::v1::step::Event;
use crate::grpc::proto::mica::v1::{Begin, End, Step};

/// A connection to a daemon. Its calls block.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    calls: AdminClient<Channel>,
    socket: PathBuf,
}

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It refused, or can't be reached.
    #[error("{}", describe(socket, status))]
    Refused {
        /// Its socket.
        socket: PathBuf,
        /// Its answer.
        status: Box<Status>,
    },
    /// Its answer makes no sense to this program.
    #[error("the daemon at {} answers what this program doesn't understand: {reason}", socket.display())]
    Answer {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("start a client: {0}")]
    Start(#[from] std::io::Error),
    /// What the daemon sends can't be put where it belongs.
    #[error("{0}")]
    Output(#[source] std::io::Error),
}

fn describe(socket: &Path, status: &Status) -> String {
    // What the domain says needs no wrapping; a broken connection has no text of its own worth reading.
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
            format!("the daemon at {}: {}", socket.display(), status.message())
        }
        _ => status.message().to_owned(),
    }
}

impl Client {
    /// A client of the daemon that serves on this socket. It connects with the first call.
    pub fn at(socket: &Path) -> Result<Client, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = {
            let _entered = runtime.enter();
            crate::content::channel(socket.to_path_buf())
        };
        Ok(Client { calls: AdminClient::new(channel), socket: socket.to_path_buf(), runtime })
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// [`Client::stream`] for calls whose answer is all in its result.
    pub fn call(&self, call: &Call, progress: &dyn Progress) -> Result<Value, ClientError> {
        self.stream(call, progress, &mut std::io::sink())
    }

    /// Asks, tells `progress` of the steps, writes the data to `out`, and returns the result. If `out` fails, the daemon
    /// hears that nobody listens.
    pub fn stream(&self, call: &Call, progress: &dyn Progress, out: &mut dyn Write) -> Result<Value, ClientError> {
        let answer = |reason: String| ClientError::Answer { socket: self.socket.clone(), reason };
        let request = request(call).map_err(|error| answer(error.to_string()))?;
        let refused = |status: Status| ClientError::Refused { socket: self.socket.clone(), status: Box::new(status) };
        let result = self.runtime.block_on(async {
            let mut stream = self.calls.clone().call(request).await.map_err(refused)?.into_inner();
            while let Some(message) = stream.message().await.map_err(refused)? {
                match message.message {
                    Some(Message::Step(step)) => tell(progress, &step),
                    Some(Message::Data(data)) => out.write_all(&data).map_err(ClientError::Output)?,
                    Some(Message::Result(result)) => return Ok::<_, ClientError>(Some(result)),
                    None => {}
                }
            }
            Ok(None)
        })?;
        let result = result.ok_or_else(|| answer("no result".to_owned()))?;
        serde_json::from_str(&result).map_err(|error| answer(error.to_string()))
    }
}

fn request(call: &Call) -> serde_json::Result<CallRequest> {
    let value = serde_json::to_value(call)?;
    let verb = value.get("verb").and_then(Value::as_str).unwrap_or_default().to_owned();
    let arguments = value.get("arguments").map(Value::to_string).unwrap_or_default();
    Ok(CallRequest { verb, arguments })
}

fn tell(progress: &dyn Progress, step: &Step) {
    match &step.event {
        Some(Event::Begin(Begin { total_bytes })) => progress.begin(&step.name, *total_bytes),
        Some(Event::ReadBytes(bytes)) => progress.read(&step.name, *bytes),
        Some(Event::End(End { known })) => progress.end(&step.name, *known),
        None => {}
    }
}
