//! Calls that an engine could make, made directly, so that every code is seen.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use mica_snapshotter::grpc::proto::containerd::services::snapshots::v1 as snapshots;
use mica_snapshotter::grpc::proto::containerd::types::Mount;
use snapshots::snapshots_client::SnapshotsClient;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::failure::{Context as _, Result};
use crate::wait::SOON;

/// A client of Mica's services. Its calls block, with a deadline.
#[derive(Debug)]
pub struct Rpc {
    runtime: Runtime,
    client: SnapshotsClient<Channel>,
}

/// What a call came to.
pub type Answer<T> = std::result::Result<T, Status>;

impl Rpc {
    /// A client of the daemon at this socket.
    pub fn at(socket: &Path) -> Result<Rpc> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket: PathBuf = socket.to_path_buf();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_static("http://localhost").timeout(SOON).connect_with_connector_lazy(connect)
        };
        Ok(Rpc { runtime, client: SnapshotsClient::new(channel) })
    }

    /// Prepare.
    pub fn prepare(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), HashMap::new());
        let request = snapshots::PrepareSnapshotRequest { snapshotter: "mica".to_owned(), key, parent, labels };
        let answer = self.runtime.block_on(self.client.clone().prepare(named(request)))?;
        Ok(answer.into_inner().mounts)
    }

    /// View.
    pub fn view(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), HashMap::new());
        let request = snapshots::ViewSnapshotRequest { snapshotter: "mica".to_owned(), key, parent, labels };
        let answer = self.runtime.block_on(self.client.clone().view(named(request)))?;
        Ok(answer.into_inner().mounts)
    }

    /// Mounts.
    pub fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let request = snapshots::MountsRequest { snapshotter: "mica".to_owned(), key: key.to_owned() };
        Ok(self.runtime.block_on(self.client.clone().mounts(named(request)))?.into_inner().mounts)
    }

    /// Commit.
    pub fn commit(&self, name: &str, key: &str) -> Answer<()> {
        let (name, key) = (name.to_owned(), key.to_owned());
        let request =
            snapshots::CommitSnapshotRequest { snapshotter: "mica".to_owned(), name, key, ..Default::default() };
        self.runtime.block_on(self.client.clone().commit(named(request)))?;
        Ok(())
    }

    /// Remove.
    pub fn remove(&self, key: &str) -> Answer<()> {
        let request = snapshots::RemoveSnapshotRequest { snapshotter: "mica".to_owned(), key: key.to_owned() };
        self.runtime.block_on(self.client.clone().remove(named(request)))?;
        Ok(())
    }

    /// Stat.
    pub fn stat(&self, key: &str) -> Answer<Option<snapshots::Info>> {
        let request = snapshots::StatSnapshotRequest { snapshotter: "mica".to_owned(), key: key.to_owned() };
        Ok(self.runtime.block_on(self.client.clone().stat(named(request)))?.into_inner().info)
    }

    /// Usage: bytes and inodes.
    pub fn usage(&self, key: &str) -> Answer<(i64, i64)> {
        let request = snapshots::UsageRequest { snapshotter: "mica".to_owned(), key: key.to_owned() };
        let usage = self.runtime.block_on(self.client.clone().usage(named(request)))?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    /// Update of one label, by this path of a field mask.
    pub fn update(&self, key: &str, path: &str, label: (&str, &str)) -> Answer<Option<snapshots::Info>> {
        let labels = HashMap::from([(label.0.to_owned(), label.1.to_owned())]);
        let info = snapshots::Info { name: key.to_owned(), labels, ..Default::default() };
        let mut request =
            snapshots::UpdateSnapshotRequest { snapshotter: "mica".to_owned(), info: Some(info), update_mask: None };
        request.update_mask.get_or_insert_default().paths.push(path.to_owned());
        Ok(self.runtime.block_on(self.client.clone().update(named(request)))?.into_inner().info)
    }

    /// List: the names of what the filter lets through.
    pub fn list(&self, filter: &str) -> Answer<Vec<String>> {
        let request =
            snapshots::ListSnapshotsRequest { snapshotter: "mica".to_owned(), filters: vec![filter.to_owned()] };
        self.runtime.block_on(async {
            let mut stream = self.client.clone().list(named(request)).await?.into_inner();
            let mut names = Vec::new();
            while let Some(batch) = stream.message().await? {
                names.extend(batch.info.into_iter().map(|info| info.name));
            }
            Ok(names)
        })
    }

    /// Cleanup.
    pub fn cleanup(&self) -> Answer<()> {
        let request = snapshots::CleanupRequest { snapshotter: "mica".to_owned() };
        self.runtime.block_on(self.client.clone().cleanup(named(request)))?;
        Ok(())
    }
}

/// Checks that a call was refused with this code, and that the message names all of `names`.
pub fn refused<T>(what: &str, answer: Answer<T>, code: Code, names: &[&str]) -> Result {
    let status = answer.err().context(format!("{what} was not refused"))?;
    crate::ensure_eq!(status.code(), code, "{what}: code of {:?}", status.message());
    let lacking: Vec<_> = names.iter().filter(|name| !status.message().contains(**name)).collect();
    crate::ensure!(lacking.is_empty(), "{what}: {:?} does not tell {lacking:?}", status.message());
    Ok(())
}

fn named<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", tonic::metadata::MetadataValue::from_static("test"));
    request
}
