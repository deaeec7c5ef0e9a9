//! The gRPC services: they translate requests into calls of the domain and its answers back, and decide nothing.

pub mod proto;

mod admin;
mod diff;
mod health;
mod snapshots;
mod status;
mod work;

use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::Routes;

use crate::admin::Admin;
use crate::content::ContentStore;
use crate::snapshots::Snapshots;
use proto::containerd::services::diff::v1::diff_server::DiffServer;
use proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use proto::grpc::health::v1::health_server::HealthServer;
use proto::mica::v1::admin_server::AdminServer;
pub(crate) use work::Work;

/// Every service of the daemon; `stopping` turns true when it ends.
pub(crate) fn services(
    snapshots: Arc<Snapshots>,
    content: ContentStore,
    admin: Arc<Admin>,
    stopping: watch::Receiver<bool>,
    work: &Work,
) -> Routes {
    Routes::new(SnapshotsServer::new(snapshots::SnapshotsService::new(Arc::clone(&snapshots), work.clone())))
        .add_service(DiffServer::new(diff::DiffService::new(snapshots, content, work.clone())))
        .add_service(AdminServer::new(admin::AdminService::new(admin, work.clone())))
        .add_service(HealthServer::new(health::HealthService::new(stopping)))
}
