//! `containerd.services.snapshots.v1.Snapshots`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::proto::containerd::services::snapshots::v1 as api;
use super::proto::containerd::services::snapshots::v1::snapshots_server;
use super::proto::containerd::types as containerd;
use super::work::{LONG, PROMPT, Work};
use crate::snapshots::{Info, Kind, Mount, Snapshots};

/// Snapshots in one message of a listing.
const PAGE: usize = 100;
/// Longest key, name or parent. containerd's are a namespace, a number and a digest.
const NAME_MAX: usize = 4096;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotsService {
    snapshots: Arc<Snapshots>,
    work: Work,
}

impl SnapshotsService {
    pub(crate) fn new(snapshots: Arc<Snapshots>, work: Work) -> SnapshotsService {
        SnapshotsService { snapshots, work }
    }

    async fn call<T, F>(&self, what: &'static str, call: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Snapshots) -> crate::Result<T> + Send + 'static,
    {
        let snapshots = Arc::clone(&self.snapshots);
        self.work.run(what, PROMPT, move || call(&snapshots)).await
    }
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for SnapshotsService {
    type ListStream = ReceiverStream<Result<api::ListSnapshotsResponse, Status>>;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let (key, parent) = (named("key", key)?, name("parent", parent)?);
        let mounts = self.call("prepare", move |it| it.prepare(&key, &parent, sorted(labels))).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: mounts_to(mounts) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let (key, parent) = (named("key", key)?, name("parent", parent)?);
        let mounts = self.call("view", move |it| it.view(&key, &parent, sorted(labels))).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts_to(mounts) }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Result<Response<api::MountsResponse>, Status> {
        let key = named("key", request.into_inner().key)?;
        let mounts = self.call("mounts", move |it| it.mounts(&key)).await?;
        Ok(Response::new(api::MountsResponse { mounts: mounts_to(mounts) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let api::CommitSnapshotRequest { name: target, key, labels, parent, .. } = request.into_inner();
        let (target, key, parent) = (named("name", target)?, named("key", key)?, name("parent", parent)?);
        self.call("commit", move |it| {
            let parent = Some(parent.as_str()).filter(|parent| !parent.is_empty());
            it.commit(&target, &key, sorted(labels), parent)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = named("key", request.into_inner().key)?;
        self.call("remove", move |it| it.remove(&key)).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let key = named("key", request.into_inner().key)?;
        let info = self.call("stat", move |it| it.stat(&key)).await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info_to(info)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info_from(info.ok_or_else(|| Status::invalid_argument("info is missing"))?)?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let info = self.call("update", move |it| it.update(&info, &paths)).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info_to(info)) }))
    }

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let found = self.call("list", move |it| it.list(&filters)).await?;
        let (pages, stream) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut found = found.into_iter().map(info_to);
            loop {
                let info: Vec<api::Info> = found.by_ref().take(PAGE).collect();
                // An error is a client that went away.
                if info.is_empty() || pages.send(Ok(api::ListSnapshotsResponse { info })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Result<Response<api::UsageResponse>, Status> {
        let key = named("key", request.into_inner().key)?;
        let usage = self.call("usage", move |it| it.usage(&key)).await?;
        Ok(Response::new(api::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        self.work.run("cleanup", LONG, move || snapshots.cleanup()).await?;
        Ok(Response::new(()))
    }
}

/// A name that must be there.
fn named(what: &'static str, text: String) -> Result<String, Status> {
    if text.is_empty() {
        return Err(Status::invalid_argument(format!("{what} is empty")));
    }
    name(what, text)
}

fn name(what: &'static str, text: String) -> Result<String, Status> {
    if text.len() > NAME_MAX {
        return Err(Status::invalid_argument(format!("{what} has {} bytes, over {NAME_MAX}", text.len())));
    }
    if text.contains('\0') {
        return Err(Status::invalid_argument(format!("{what} {text:?} contains NUL")));
    }
    Ok(text)
}

fn sorted(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Mounts as the interface has them.
pub(super) fn mounts_to(mounts: Vec<Mount>) -> Vec<containerd::Mount> {
    mounts
        .into_iter()
        .map(|Mount { kind, source, target, options }| containerd::Mount { r#type: kind, source, target, options })
        .collect()
}

/// Mounts as the domain has them.
pub(super) fn mounts_from(mounts: Vec<containerd::Mount>) -> Vec<Mount> {
    mounts
        .into_iter()
        .map(|containerd::Mount { r#type, source, target, options }| Mount { kind: r#type, source, target, options })
        .collect()
}

fn info_to(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created.into()),
        updated_at: Some(info.updated.into()),
        labels: info.labels.into_iter().collect(),
    }
}

/// What an update brings. Only name and labels count; the rest can't be changed and is not looked at.
fn info_from(info: api::Info) -> Result<Info, Status> {
    let kind = match info.kind() {
        api::Kind::View => Kind::View,
        api::Kind::Active => Kind::Active,
        api::Kind::Committed | api::Kind::Unknown => Kind::Committed,
    };
    Ok(Info {
        kind,
        name: named("name", info.name)?,
        parent: info.parent,
        labels: sorted(info.labels),
        created: std::time::UNIX_EPOCH,
        updated: std::time::UNIX_EPOCH,
    })
}
