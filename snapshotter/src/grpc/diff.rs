//! `containerd.services.diff.v1.Diff`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use mica_layerdb::BlobDigest;
use tonic::{Request, Response, Status};

use super::proto::containerd::services::diff::v1 as api;
use super::proto::containerd::services::diff::v1::diff_server;
use super::proto::containerd::types::Descriptor;
use super::snapshots::mounts_from;
use super::work::{LONG, Work};
use crate::content::{Applying, Caller, ContentStore, Early, Encoding, Interest, LayerWriter};
use crate::error::Error;
use crate::snapshots::{Incoming, Snapshots};

/// What an applied layer is: uncompressed.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
/// What a layer is compressed with when the request doesn't say.
const DEFAULT: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The service. What it can't do it answers with UNIMPLEMENTED, upon which containerd asks its next differ.
#[derive(Clone, Debug)]
pub(crate) struct DiffService {
    snapshots: Arc<Snapshots>,
    content: ContentStore,
    early: Arc<Early>,
    work: Work,
}

impl DiffService {
    pub(crate) fn new(snapshots: Arc<Snapshots>, content: ContentStore, work: Work) -> DiffService {
        let early = Arc::new(Early::new(Arc::clone(snapshots.store()), content.clone()));
        DiffService { snapshots, content, early, work }
    }
}

#[tonic::async_trait]
impl diff_server::Diff for DiffService {
    async fn apply(&self, request: Request<api::ApplyRequest>) -> Result<Response<api::ApplyResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let api::ApplyRequest { diff, mounts, .. } = request.into_inner();
        let diff = diff.ok_or_else(|| Status::invalid_argument("diff is missing"))?;
        let size = u64::try_from(diff.size)
            .map_err(|_| Status::invalid_argument(format!("diff {} has the size {}", diff.digest, diff.size)))?;
        let blob = blob_digest(&diff.digest)?;
        let interest = Interest::new();
        let watch = interest.watch();
        let (snapshots, content, mounts) = (Arc::clone(&self.snapshots), self.content.clone(), mounts_from(mounts));
        let early = Arc::clone(&self.early);
        let call = move || {
            let Some(key) = snapshots.key_of(&mounts)? else { return Ok(None) };
            let caller = caller.or_of_snapshot(&key);
            let applying = blob.map(|blob| early.apply(&caller, blob));
            let diff_id = applying.as_ref().and_then(Applying::diff_id);
            let reader = Box::new(content.read(caller, watch, diff.digest, size));
            snapshots.apply(&mounts, Incoming { reader, media_type: diff.media_type, blob, size, diff_id })
        };
        let applied = self.work.run("apply", LONG, call).await?;
        drop(interest);
        let applied = applied.ok_or_else(|| Status::unimplemented("these mounts or this layer are not Mica's"))?;
        Ok(Response::new(api::ApplyResponse {
            applied: Some(descriptor(PLAIN.to_owned(), applied.diff_id.to_string(), applied.size)),
        }))
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let api::DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } = request.into_inner();
        if source_date_epoch.is_some() {
            return Err(Status::unimplemented("layers keep their files' times: source_date_epoch is not applied"));
        }
        let media_type = if media_type.is_empty() { DEFAULT.to_owned() } else { media_type };
        let encoding = Encoding::of(&media_type)
            .ok_or_else(|| Status::unimplemented(format!("layers of media type {media_type} are not made")))?;
        let reference = if r#ref.is_empty() { unique_reference() } else { r#ref };
        let interest = Interest::new();
        let watch = interest.watch();
        let (snapshots, content) = (Arc::clone(&self.snapshots), self.content.clone());
        let (left, right) = (mounts_from(left), mounts_from(right));
        let call = move || {
            let Some(key) = snapshots.key_of(&right)? else { return Ok(None) };
            let to_content_store = || format!("send the layer {reference}");
            let blob = content.write(caller.or_of_snapshot(&key), watch, reference.clone());
            let mut layer = LayerWriter::new(blob, encoding).map_err(Error::io(to_content_store()))?;
            let Some(()) = snapshots.diff(&left, &right, &mut layer)? else { return Ok(None) };
            layer.finish(labels).map(Some).map_err(Error::io(to_content_store()))
        };
        let made = self.work.run("diff", LONG, call).await?;
        drop(interest);
        let made = made.ok_or_else(|| Status::unimplemented("these mounts are not Mica's"))?;
        Ok(Response::new(api::DiffResponse { diff: Some(descriptor(media_type, made.digest.to_string(), made.bytes)) }))
    }
}

fn descriptor(media_type: String, digest: String, bytes: u64) -> Descriptor {
    let size = i64::try_from(bytes).unwrap_or(i64::MAX);
    Descriptor { media_type, digest, size, annotations: HashMap::new() }
}

/// The digest that the blob is compared with. `None` for one of another algorithm, which containerd has checked.
fn blob_digest(text: &str) -> Result<Option<BlobDigest>, Status> {
    match text.split_once(':') {
        Some(("sha256", _)) | None => {
            BlobDigest::parse(text).map(Some).map_err(|error| Status::invalid_argument(format!("diff: {error}")))
        }
        Some(_) => Ok(None),
    }
}

/// A name that no other write has.
fn unique_reference() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());
    format!("mica-diff-{now}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
