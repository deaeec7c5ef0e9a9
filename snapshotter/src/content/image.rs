//! What an image in the content store is made of.

use mica_layerdb::{BlobDigest, DiffId};
use prost_types::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use super::{Caller, ContentStore};
use crate::grpc::proto::containerd::services::content::v1::{Info, ListContentRequest, ReadContentRequest};

/// Layers of an image by which it is looked for: more than engines allow.
const LAYERS_MAX: usize = 128;

/// Longest manifest or configuration.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// A layer of an image, as its manifest and its configuration have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerOfImage {
    pub(super) blob: BlobDigest,
    pub(super) bytes: u64,
    pub(super) diff_id: DiffId,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl ContentStore {
    /// The layers, bottom first, of the newest image that has a layer of this blob; none if there is no such image, or
    /// one that can't be understood.
    pub(super) async fn image_with(&self, caller: &Caller, blob: BlobDigest) -> Result<Vec<LayerOfImage>, Status> {
        let Some(manifest) = self.manifest_with(caller, blob).await? else { return Ok(Vec::new()) };
        let Some(manifest) = self.document::<Manifest>(caller, &manifest).await? else { return Ok(Vec::new()) };
        let Some(config) = self.document::<Config>(caller, &manifest.config.digest).await? else {
            return Ok(Vec::new());
        };
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Ok(Vec::new());
        }
        let layers = manifest.layers.iter().zip(&diff_ids).map(|(layer, diff_id)| {
            let (blob, diff_id) = (BlobDigest::parse(&layer.digest).ok()?, DiffId::parse(diff_id).ok()?);
            Some(LayerOfImage { blob, bytes: layer.size, diff_id })
        });
        Ok(layers.collect::<Option<_>>().unwrap_or_default())
    }

    /// containerd labels a manifest with the digests of what it refers to, so that its collector finds them.
    async fn manifest_with(&self, caller: &Caller, blob: BlobDigest) -> Result<Option<String>, Status> {
        let label = |layer| format!(r#"labels."containerd.io/gc.ref.content.l.{layer}"=="{blob}""#);
        let filters = (0..LAYERS_MAX).map(label).collect();
        let mut client = self.client.clone();
        let mut found = client.list(caller.request(ListContentRequest { filters })).await?.into_inner();
        let mut newest: Option<Info> = None;
        let age = |info: &Info| info.created_at.map(|Timestamp { seconds, nanos }| (seconds, nanos));
        while let Some(message) = found.message().await? {
            for info in message.info {
                if newest.as_ref().is_none_or(|known| age(known) < age(&info)) {
                    newest = Some(info);
                }
            }
        }
        Ok(newest.map(|info| info.digest))
    }

    /// A JSON document; `None` if it is something else.
    async fn document<T: DeserializeOwned>(&self, caller: &Caller, digest: &str) -> Result<Option<T>, Status> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut stream = self.client.clone().read(caller.request(request)).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            bytes.extend_from_slice(&message.data);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Ok(None);
            }
        }
        Ok(serde_json::from_slice(&bytes).ok())
    }
}
