//! `mica.v1.Admin`: calls of [`crate::admin`], with their arguments and answers as JSON.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::Progress;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::proto::mica::v1::call_response::Message;
use super::proto::mica::v1::step::Event;
use super::proto::mica::v1::{Begin, CallRequest, CallResponse, End, Step, admin_server};
use super::work::{LONG, Work};
use crate::admin::{Admin, Call};
use crate::error::Error;

/// Steps on the way to a client.
const STEPS_AHEAD: usize = 64;
/// Bytes of an answer that go in one message.
const PIECE: usize = 64 << 10;
/// Bytes read are told this often.
const OFTEN: Duration = Duration::from_millis(100);

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct AdminService {
    admin: Arc<Admin>,
    work: Work,
}

impl AdminService {
    pub(crate) fn new(admin: Arc<Admin>, work: Work) -> AdminService {
        AdminService { admin, work }
    }
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    type CallStream = ReceiverStream<Result<CallResponse, Status>>;

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<Self::CallStream>, Status> {
        let call = parse(&request.into_inner())?;
        let (admin, work) = (Arc::clone(&self.admin), self.work.clone());
        let (answers, stream) = mpsc::channel(STEPS_AHEAD);
        tokio::spawn(async move {
            let steps = Steps { answers: answers.clone(), unsaid: Mutex::default() };
            let work_on = move || {
                let mut data = Data { answers: steps.answers.clone(), gathered: Vec::new() };
                let answer = admin.stream(call, &steps, &mut data)?;
                data.flush().map_err(Error::io("send the answer"))?;
                Ok(answer)
            };
            let answer = work.run("admin call", LONG, work_on).await;
            let answer = answer.map(|value| CallResponse { message: Some(Message::Result(value.to_string())) });
            // A client that went away doesn't want to know.
            let _ = answers.send(answer).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn parse(request: &CallRequest) -> Result<Call, Status> {
    let wrong = |error: serde_json::Error| Status::invalid_argument(format!("call {:?}: {error}", request.verb));
    let mut call = Map::new();
    call.insert("verb".to_owned(), Value::String(request.verb.clone()));
    if !request.arguments.is_empty() {
        call.insert("arguments".to_owned(), serde_json::from_str(&request.arguments).map_err(wrong)?);
    }
    serde_json::from_value(Value::Object(call)).map_err(wrong)
}

/// Tells a client how work goes on.
struct Steps {
    answers: mpsc::Sender<Result<CallResponse, Status>>,
    /// Bytes that were read since they were last told.
    unsaid: Mutex<HashMap<String, (u64, Instant)>>,
}

impl Steps {
    fn message(name: &str, event: Event) -> CallResponse {
        CallResponse { message: Some(Message::Step(Step { name: name.to_owned(), event: Some(event) })) }
    }

    /// On a thread that may block.
    fn say(&self, name: &str, event: Event) {
        // Nobody listens: the work goes on all the same.
        let _ = self.answers.blocking_send(Ok(Steps::message(name, event)));
    }
}

impl Progress for Steps {
    fn begin(&self, name: &str, total_bytes: Option<u64>) {
        self.say(name, Event::Begin(Begin { total_bytes }));
    }

    fn read(&self, name: &str, bytes: u64) {
        let mut unsaid = self.unsaid.lock();
        let (count, last) = unsaid.entry(name.to_owned()).or_insert_with(|| (0, Instant::now()));
        *count += bytes;
        // A slow client hears less often; work doesn't wait for it.
        if last.elapsed() >= OFTEN && self.answers.try_send(Ok(Steps::message(name, Event::ReadBytes(*count)))).is_ok()
        {
            (*count, *last) = (0, Instant::now());
        }
    }

    fn is_abandoned(&self) -> bool {
        self.answers.is_closed()
    }

    fn end(&self, name: &str, known: bool) {
        let rest = self.unsaid.lock().remove(name);
        if let Some((count, _)) = rest.filter(|(count, _)| *count > 0) {
            self.say(name, Event::ReadBytes(count));
        }
        self.say(name, Event::End(End { known }));
    }
}

/// Bytes of an answer on their way to a client.
struct Data {
    answers: mpsc::Sender<Result<CallResponse, Status>>,
    gathered: Vec<u8>,
}

impl Write for Data {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let taken = buffer.len().min(PIECE - self.gathered.len());
        self.gathered.extend_from_slice(&buffer[..taken]);
        if self.gathered.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    /// On a thread that may block: a slow client is waited for, one that went away ends the work.
    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE));
        let message = CallResponse { message: Some(Message::Data(data)) };
        self.answers.blocking_send(Ok(message)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
