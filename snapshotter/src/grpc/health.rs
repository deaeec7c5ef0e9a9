//! `grpc.health.v1.Health`: who is answered is served.

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::proto::grpc::health::v1::health_check_response::ServingStatus;
use super::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse, health_server};

/// The services there are; the empty name is the whole.
const SERVICES: [&str; 4] =
    ["", "containerd.services.snapshots.v1.Snapshots", "containerd.services.diff.v1.Diff", "mica.v1.Admin"];

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    stopping: watch::Receiver<bool>,
}

impl HealthService {
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> HealthService {
        HealthService { stopping }
    }
}

fn is_known(request: &Request<HealthCheckRequest>) -> bool {
    SERVICES.contains(&request.get_ref().service.as_str())
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request) {
            return Err(Status::not_found(format!("there is no service {}", request.get_ref().service)));
        }
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let status = if is_known(&request) { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let (answers, stream) = tokio::sync::mpsc::channel(2);
        let mut stopping = self.stopping.clone();
        tokio::spawn(async move {
            let say = |status: ServingStatus| answers.send(Ok(HealthCheckResponse { status: status.into() }));
            if say(status).await.is_err() {
                return;
            }
            let stopped = async { stopping.wait_for(|stopping| *stopping).await.is_ok() };
            tokio::select! {
                () = answers.closed() => {}
                _ = stopped => {
                    // The client may be gone as well.
                    let _ = say(ServingStatus::NotServing).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
