//! Domain calls from async code.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use super::status::status;
use crate::error::Result;

/// How long a call may take whose work does not grow with data.
pub(crate) const PROMPT: Duration = Duration::from_secs(30);

/// How long a call may take whose work grows with data, but which nobody's container waits for.
pub(crate) const LONG: Duration = Duration::from_secs(30 * 60);

/// The domain calls that are under way. A copy is the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    running: Arc<watch::Sender<usize>>,
}

/// One call under way.
struct Running<'a>(&'a Work);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.send_modify(|count| *count -= 1);
    }
}

impl Work {
    /// Runs a domain call on a thread that may block. After `deadline` the client is told to come again; the call
    /// itself goes on, since nothing can stop it, and ends in a state that a repetition finds.
    pub(crate) async fn run<T, F>(&self, what: &'static str, deadline: Duration, call: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        self.running.send_modify(|count| *count += 1);
        let _running = Running(self);
        match tokio::time::timeout(deadline, tokio::task::spawn_blocking(call)).await {
            Ok(Ok(answer)) => answer.map_err(|error| told(what, &error)),
            Ok(Err(panicked)) => {
                tracing::error!(what, %panicked, "a call panicked");
                Err(Status::internal(format!("{what} failed: a bug in Mica")))
            }
            Err(_) => {
                tracing::error!(what, seconds = deadline.as_secs(), "a call takes too long");
                Err(Status::unavailable(format!("{what} takes longer than {} seconds", deadline.as_secs())))
            }
        }
    }

    /// Waits until nothing is under way.
    pub(crate) async fn idle(&self) {
        // The sender is ours, so it is there.
        let _ = self.running.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// The status of an error, which the log gets too if it is not the client's.
fn told(what: &'static str, error: &crate::Error) -> Status {
    use crate::error::Kind;
    match error.kind() {
        Kind::Unavailable | Kind::ResourceExhausted | Kind::DataLoss | Kind::Internal => {
            tracing::error!(what, %error, "a call failed");
        }
        Kind::NotFound
        | Kind::AlreadyExists
        | Kind::InvalidArgument
        | Kind::FailedPrecondition
        | Kind::Unimplemented => tracing::debug!(what, %error, "a call was refused"),
    }
    status(error)
}
