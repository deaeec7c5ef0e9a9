//! `grpc.health.v1.Health`: who is answered is served.

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::proto::grpc::health::v1::health_check_response::ServingStatus;
use super::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse, health_server};

/// The services there are; the empty name is the whole.
const SERVICES: [&str; 4] =
    ["", "containerd.services.snapshots.v1.Snapshots", "containerd.services.diff.v1.Diff", "mica.v1.Admin"];

/// The service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthService;

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
        let (answers, stream) = tokio::sync::mpsc::channel(1);
        // Nothing more will be said until the connection ends; the stream stays open as long as the client listens.
        tokio::spawn(async move {
            if answers.send(Ok(HealthCheckResponse { status: status.into() })).await.is_ok() {
                answers.closed().await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
