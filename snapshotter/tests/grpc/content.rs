//! A content store as strict as containerd's.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mica_layerdb::Digest;
use mica_snapshotter::grpc::proto::containerd::services::content::v1::content_server::{Content, ContentServer};
use mica_snapshotter::grpc::proto::containerd::services::content::v1::*;
use mica_snapshotter::grpc::proto::containerd::services::introspection::v1::introspection_server::{
    Introspection, IntrospectionServer,
};
use mica_snapshotter::grpc::proto::containerd::services::introspection::v1::{Plugin, PluginsRequest, PluginsResponse};
use mica_snapshotter::grpc::proto::containerd::services::leases::v1::leases_server::{Leases, LeasesServer};
use mica_snapshotter::grpc::proto::containerd::services::leases::v1::{CreateRequest, CreateResponse, Lease};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// The namespace that every request must name.
pub const NAMESPACE: &str = "test";

#[derive(Debug, Default)]
pub struct Held {
    pub blobs: HashMap<String, (Vec<u8>, HashMap<String, String>)>,
    /// What is written but not committed.
    pub ingests: HashMap<String, Vec<u8>>,
    /// Reads that were begun.
    pub reads: usize,
    /// Reads that are under way.
    pub reading: usize,
    /// Digests of which only the first half is sent.
    pub torn: Vec<String>,
    /// Digests whose bytes never stop.
    pub endless: Vec<String>,
    /// Leases and when they expire.
    pub leases: HashMap<String, String>,
    /// References that somebody else writes.
    pub locked: Vec<String>,
    /// The folder in which the blobs are said to be.
    pub root: Option<PathBuf>,
}

/// A content store that serves on a socket.
#[derive(Clone, Debug, Default)]
pub struct FakeContent {
    pub held: Arc<Mutex<Held>>,
}

impl FakeContent {
    /// Serves in the current runtime until that ends.
    pub fn serve(socket: &Path) -> FakeContent {
        let content = FakeContent::default();
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(ContentServer::new(content.clone()));
        let server = server.add_service(LeasesServer::new(content.clone()));
        let server = server.add_service(IntrospectionServer::new(content.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        content
    }

    /// Adds a blob and returns its digest.
    pub fn add(&self, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        self.held.lock().unwrap().blobs.insert(digest.clone(), (bytes, HashMap::new()));
        digest
    }

    /// Adds an image of these layers, given by the digests and lengths of their blobs and by the digests of their tars.
    pub fn add_image(&self, layers: &[(&str, usize, String)]) {
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, diff_id)| diff_id).collect();
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        let size = config.len();
        let config = self.add(config.into_bytes());
        let blobs = layers.iter().map(|(digest, bytes, _)| serde_json::json!({"digest": digest, "size": bytes}));
        let manifest =
            serde_json::json!({"config": {"digest": config, "size": size}, "layers": blobs.collect::<Vec<_>>()});
        let manifest = self.add(manifest.to_string().into_bytes());
        let label = |(at, (digest, ..)): (usize, &(&str, usize, String))| {
            (format!("containerd.io/gc.ref.content.l.{at}"), (*digest).to_owned())
        };
        let labels = layers.iter().enumerate().map(label).collect();
        self.held.lock().unwrap().blobs.get_mut(&manifest).expect("it was added").1 = labels;
    }

    pub fn blob(&self, digest: &str) -> (Vec<u8>, HashMap<String, String>) {
        self.held.lock().unwrap().blobs.get(digest).cloned().expect("the blob is there")
    }

    pub fn has_ingests(&self) -> bool {
        !self.held.lock().unwrap().ingests.is_empty()
    }
}

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn named(metadata: &MetadataMap) -> Result<(), Status> {
    match metadata.get("containerd-namespace") {
        Some(namespace) if namespace == NAMESPACE => Ok(()),
        _ => Err(Status::failed_precondition("namespace is required")),
    }
}

fn none<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Introspection for FakeContent {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        assert_eq!(request.into_inner().filters, ["type==io.containerd.content.v1"]);
        let root = self.held.lock().unwrap().root.clone().ok_or_else(|| Status::unimplemented("doesn't tell"))?;
        let exports = HashMap::from([("root".to_owned(), root.display().to_string())]);
        let plugin = Plugin { r#type: "io.containerd.content.v1".to_owned(), id: "content".to_owned(), exports };
        Ok(Response::new(PluginsResponse { plugins: vec![plugin] }))
    }
}

#[tonic::async_trait]
impl Content for FakeContent {
    type ListStream = ReceiverStream<Result<ListContentResponse, Status>>;
    type ReadStream = ReceiverStream<Result<ReadContentResponse, Status>>;
    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        named(request.metadata())?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        assert_eq!((offset, size), (0, 0));
        let (mut bytes, endless) = {
            let mut held = self.held.lock().unwrap();
            held.reads += 1;
            let Some((bytes, _)) = held.blobs.get(&digest).cloned() else {
                return Err(Status::not_found(format!("content {digest}: not found")));
            };
            held.reading += 1;
            (bytes, held.endless.contains(&digest))
        };
        if self.held.lock().unwrap().torn.contains(&digest) {
            bytes.truncate(bytes.len() / 2);
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let content = self.clone();
        tokio::spawn(async move {
            let _reading = Reading(content);
            loop {
                for (at, chunk) in bytes.chunks(1000).enumerate() {
                    let message = ReadContentResponse { offset: (at * 1000) as i64, data: chunk.to_vec() };
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                if !endless {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        named(request.metadata())?;
        let lease = request.metadata().get("containerd-lease").map(|lease| lease.to_str().unwrap().to_owned());
        if !lease.is_some_and(|lease| self.held.lock().unwrap().leases.contains_key(&lease)) {
            return Err(Status::failed_precondition("what is written would be collected"));
        }
        let mut requests = request.into_inner();
        let (answers, receiver) = tokio::sync::mpsc::channel(1);
        let content = self.clone();
        tokio::spawn(async move {
            let mut reference = String::new();
            while let Ok(Some(request)) = requests.message().await {
                if !request.r#ref.is_empty() {
                    reference.clone_from(&request.r#ref);
                }
                let answer = content.written(&reference, request);
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        named(request.metadata())?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let (info, paths) = (info.unwrap(), update_mask.unwrap().paths);
        assert!(paths.iter().all(|path| path.starts_with("labels.")), "{paths:?}");
        let mut held = self.held.lock().unwrap();
        let Some((_, labels)) = held.blobs.get_mut(&info.digest) else { return Err(Status::not_found(info.digest)) };
        labels.extend(info.labels.clone());
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        named(request.metadata())?;
        let reference = request.into_inner().r#ref;
        match self.held.lock().unwrap().ingests.remove(&reference) {
            Some(_) => Ok(Response::new(())),
            None => Err(Status::not_found(reference)),
        }
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        none()
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        named(request.metadata())?;
        let filters = request.into_inner().filters;
        let matches = |labels: &HashMap<String, String>| {
            labels.iter().any(|(key, value)| filters.contains(&format!("labels.\"{key}\"==\"{value}\"")))
        };
        let held = self.held.lock().unwrap();
        let found = held.blobs.iter().filter(|(_, (_, labels))| matches(labels));
        let info = found.map(|(digest, (bytes, labels))| Info {
            digest: digest.clone(),
            size: bytes.len() as i64,
            labels: labels.clone(),
            ..Info::default()
        });
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.try_send(Ok(ListContentResponse { info: info.collect() })).unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        none()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        none()
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Result<Response<ListStatusesResponse>, Status> {
        none()
    }
}

/// A read under way.
struct Reading(FakeContent);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.held.lock().unwrap().reading -= 1;
    }
}

#[tonic::async_trait]
impl Leases for FakeContent {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        named(request.metadata())?;
        let CreateRequest { id, labels } = request.into_inner();
        self.held.lock().unwrap().leases.insert(id.clone(), labels["containerd.io/gc.expire"].clone());
        Ok(Response::new(CreateResponse { lease: Some(Lease { id, labels, created_at: None }) }))
    }
}

impl FakeContent {
    fn written(&self, reference: &str, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let mut held = self.held.lock().unwrap();
        if reference.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference"));
        }
        if held.locked.iter().any(|locked| locked == reference) {
            return Err(Status::unavailable(format!("ref {reference} locked")));
        }
        let ingest = held.ingests.entry(reference.to_owned()).or_default();
        let action = request.action();
        if action != WriteAction::Stat {
            if request.offset == 0 {
                ingest.clear();
            }
            if request.offset != ingest.len() as i64 {
                return Err(Status::out_of_range(format!("write @{} at {}", request.offset, ingest.len())));
            }
            ingest.extend_from_slice(&request.data);
        }
        let digest = Digest::of(ingest).to_string();
        let offset = ingest.len() as i64;
        if action == WriteAction::Commit {
            if (request.total > 0 && request.total != offset)
                || (!request.expected.is_empty() && request.expected != digest)
            {
                return Err(Status::failed_precondition("unexpected commit size or digest"));
            }
            let bytes = held.ingests.remove(reference).unwrap();
            if held.blobs.contains_key(&digest) {
                return Err(Status::already_exists(format!("content {digest}: already exists")));
            }
            held.blobs.insert(digest.clone(), (bytes, request.labels));
        }
        Ok(WriteContentResponse { action: action.into(), offset, digest, ..WriteContentResponse::default() })
    }
}
