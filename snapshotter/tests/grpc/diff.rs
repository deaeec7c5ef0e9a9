//! Diff: layers from and to a content store.

use std::collections::HashMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use mica_layerdb::Digest;
use mica_snapshotter::grpc::proto::containerd::services::diff::v1::{ApplyRequest, DiffRequest};
use mica_snapshotter::grpc::proto::containerd::services::snapshots::v1::UsageRequest;
use mica_snapshotter::grpc::proto::containerd::types::{Descriptor, Mount};
use tonic::{Code, Request, Status};

use super::content::{FakeContent, NAMESPACE, gzip, tar};
use super::serving::Serving;
use super::snapshots::{commit, prepare};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

fn serve() -> (Serving, FakeContent) {
    let serving = Serving::start();
    let content = FakeContent::serve(&serving.config.containerd);
    (serving, content)
}

/// As containerd asks: without namespace and lease. They are known from the snapshots' keys.
fn asked<T>(message: T) -> Request<T> {
    Request::new(message)
}

/// A key as containerd makes them.
fn key(name: &str) -> String {
    format!("{NAMESPACE}/1/{name}")
}

fn layer(media_type: &str, digest: &str, size: usize) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_owned(),
        size: size as i64,
        annotations: HashMap::new(),
    }
}

async fn apply(serving: &Serving, diff: Descriptor, mounts: Vec<Mount>) -> Result<Descriptor, Status> {
    let request = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
    Ok(serving.diff().apply(asked(request)).await?.into_inner().applied.unwrap())
}

async fn diff(serving: &Serving, request: DiffRequest) -> Result<Descriptor, Status> {
    Ok(serving.diff().diff(asked(request)).await?.into_inner().diff.unwrap())
}

/// A tar with a file that becomes an object.
fn sample() -> Vec<u8> {
    tar(&[("etc/hostname", b"mica\n"), ("large", &vec![7; 300_000])])
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_takes_a_layer_from_the_content_store() {
    let (serving, content) = serve();
    let plain = sample();
    let blob = gzip(&plain);
    let digest = content.add(blob.clone());
    let client = &mut serving.snapshots();
    let mounts = prepare(client, &key("extract-1 sha256:x"), "").await.unwrap();
    let applied = apply(&serving, layer(GZIP, &digest, blob.len()), mounts).await.unwrap();
    assert_eq!(applied.media_type, PLAIN);
    assert_eq!(applied.digest, Digest::of(&plain).to_string());
    assert_eq!(applied.size, plain.len() as i64);
    commit(client, "chain", &key("extract-1 sha256:x"), "").await.unwrap();
    let usage = UsageRequest { key: "chain".into(), ..UsageRequest::default() };
    assert!(client.usage(usage).await.unwrap().into_inner().size >= 300_000);
    prepare(client, "container", "chain").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_reads_the_content_stores_file_where_that_is_in_reach() {
    let (serving, content) = serve();
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    content.held.lock().unwrap().root = Some(folder.path().to_owned());
    let client = &mut serving.snapshots();
    let layers = [b"file", b"gone", b"torn", b"link", b"evil"].map(|name| gzip(&tar(&[("name", name)])));
    let [file, gone, torn, link, evil] = layers.each_ref().map(|blob| content.add(blob.clone()));
    let path = |digest: &str| blobs.join(digest.strip_prefix("sha256:").unwrap());
    std::fs::write(path(&file), &layers[0]).unwrap();
    std::fs::write(path(&torn), &layers[2][1..]).unwrap();
    std::fs::write(folder.path().join("elsewhere"), &layers[3]).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", path(&link)).unwrap();
    let mut other = layers[4].clone();
    // The time in the header: what it decompresses to is the same.
    other[4] ^= 1;
    std::fs::write(path(&evil), &other).unwrap();
    // Whether the content store is asked to send it: where there is no such file of that size.
    for (digest, blob, reads) in
        [(&file, &layers[0], 0), (&gone, &layers[1], 1), (&torn, &layers[2], 2), (&link, &layers[3], 3)]
    {
        let mounts = prepare(client, &key(digest), "").await.unwrap();
        apply(&serving, layer(GZIP, digest, blob.len()), mounts).await.unwrap();
        assert_eq!(content.held.lock().unwrap().reads, reads, "{digest}");
    }
    let mounts = prepare(client, &key(&evil), "").await.unwrap();
    let status = apply(&serving, layer(GZIP, &evil, other.len()), mounts).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

/// The next layers of an image are taken in while the first is applied, each blob is read once, and one that is damaged
/// or gone does no harm before it is applied.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_follow_are_taken_in_before_they_are_applied() {
    let (serving, content) = serve();
    let tars = [b"one", b"two", b"bad", b"fin"].map(|name| tar(&[("name", name)]));
    let blobs = tars.each_ref().map(|tar| gzip(tar));
    let digests = blobs.each_ref().map(|blob| content.add(blob.clone()));
    let mut image: Vec<(&str, usize, String)> = Vec::new();
    for ((digest, blob), tar) in digests.iter().zip(&blobs).zip(&tars) {
        image.push((digest, blob.len(), Digest::of(tar).to_string()));
    }
    image[2].2 = Digest::of(b"another layer").to_string();
    let gone = Digest::of(b"gone").to_string();
    image.insert(3, (&gone, 4, gone.clone()));
    content.add_image(&image);
    let client = &mut serving.snapshots();
    // The blob of each layer, its manifest and its configuration.
    let reads = |content: &FakeContent| content.held.lock().unwrap().reads;
    let mut parent = String::new();
    for (at, digest) in digests.iter().enumerate() {
        let active = key(digest);
        let mounts = prepare(client, &active, &parent).await.unwrap();
        let applied = apply(&serving, layer(GZIP, digest, blobs[at].len()), mounts).await.unwrap();
        assert_eq!(applied.digest, Digest::of(&tars[at]).to_string());
        commit(client, digest, &active, &parent).await.unwrap();
        parent.clone_from(digest);
        let start = Instant::now();
        // All that follow: two, the bad one, the one that is gone, the last.
        while at == 0 && (reads(&content) < 7 || content.held.lock().unwrap().reading > 0) {
            assert!(start.elapsed() < Duration::from_secs(20), "{} reads", reads(&content));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if at == 0 {
            assert_eq!(reads(&content), 7);
            content.held.lock().unwrap().blobs.remove(&digests[1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_of_what_is_not_ours_is_unimplemented_and_reads_nothing() {
    let (serving, content) = serve();
    let blob = gzip(&sample());
    let digest = content.add(blob.clone());
    let mounts = prepare(&mut serving.snapshots(), &key("key"), "").await.unwrap();
    let foreign = Mount { r#type: "overlay".into(), source: "overlay".into(), ..Mount::default() };
    for (media_type, mounts) in [
        (GZIP, vec![]),
        (GZIP, vec![foreign]),
        (GZIP, [mounts.clone(), mounts.clone()].concat()),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", mounts.clone()),
        ("application/octet-stream", mounts.clone()),
    ] {
        let status = apply(&serving, layer(media_type, &digest, blob.len()), mounts).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
    }
    assert_eq!(content.held.lock().unwrap().reads, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_of_bad_layers_names_them_and_leaves_the_snapshot_usable() {
    let (serving, content) = serve();
    let client = &mut serving.snapshots();
    let mounts = prepare(client, &key("key"), "").await.unwrap();
    let blob = gzip(&sample());
    let good = content.add(blob.clone());
    let truncated = content.add(blob[..blob.len() / 2].to_vec());
    let climbing = content.add(tar(&[("../../etc/passwd", b"x")]));
    let not_this = Digest::of(b"something else").to_string();
    content.held.lock().unwrap().blobs.insert(not_this.clone(), (blob.clone(), HashMap::new()));
    for (media_type, digest) in [(GZIP, &truncated), (PLAIN, &climbing), (GZIP, &not_this)] {
        let length = content.blob(digest).0.len();
        let status = apply(&serving, layer(media_type, digest, length), mounts.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(digest.as_str()), "{status} doesn't name {digest}");
    }
    let absent = Digest::of(b"absent").to_string();
    let status = apply(&serving, layer(GZIP, &absent, 1), mounts.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    for (digest, size) in [("sha256:short", 1), ("", 1), (good.as_str(), -1)] {
        let mut diff = layer(GZIP, digest, 0);
        diff.size = size;
        let status = apply(&serving, diff, mounts.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let status = serving.diff().apply(asked(ApplyRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    apply(&serving, layer(GZIP, &good, blob.len()), mounts).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_of_a_blob_that_ends_early_fails_by_name() {
    let (serving, content) = serve();
    let mounts = prepare(&mut serving.snapshots(), &key("key"), "").await.unwrap();
    let plain = sample();
    let digest = content.add(plain.clone());
    content.held.lock().unwrap().torn.push(digest.clone());
    let status = apply(&serving, layer(PLAIN, &digest, plain.len()), mounts.clone()).await.unwrap_err();
    assert!(status.message().contains(&digest), "{status}");
    content.held.lock().unwrap().torn.clear();
    apply(&serving, layer(PLAIN, &digest, plain.len()), mounts).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_ends_when_its_client_goes_away() {
    let (serving, content) = serve();
    let mounts = prepare(&mut serving.snapshots(), &key("key"), "").await.unwrap();
    let digest = content.add(vec![0x5a; 4096]);
    content.held.lock().unwrap().endless.push(digest.clone());
    // Zeros: a tar that ends at once, and a tail that never does.
    content.held.lock().unwrap().blobs.insert(digest.clone(), (vec![0; 4096], HashMap::new()));
    let apply = apply(&serving, layer(PLAIN, &digest, 1 << 30), mounts.clone());
    tokio::time::timeout(Duration::from_millis(300), apply).await.expect_err("it never ends by itself");
    assert_eq!(content.held.lock().unwrap().reads, 1);
    for _ in 0..200 {
        if content.held.lock().unwrap().reading == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it is read for ever");
}

/// A snapshot with a change, upon an empty one.
async fn changed(serving: &Serving) -> (Vec<Mount>, Vec<Mount>) {
    let client = &mut serving.snapshots();
    prepare(client, "seed", "").await.unwrap();
    commit(client, "base", "seed", "").await.unwrap();
    let left = prepare(client, &key("left"), "base").await.unwrap();
    let right = prepare(client, &key("right"), "base").await.unwrap();
    let number = right[0].source.rsplit('/').next().unwrap().to_owned();
    let upper = serving.config.root.join("snapshots").join(number).join("upper");
    std::fs::write(upper.join("changed"), "new text").unwrap();
    (left, right)
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_writes_a_compressed_layer_with_its_labels() {
    let (serving, content) = serve();
    let (left, right) = changed(&serving).await;
    let labels = HashMap::from([("mine".to_owned(), "1".to_owned())]);
    let request = DiffRequest { left, right, labels, ..DiffRequest::default() };
    let plain = tar(&[("changed", b"new text")]);

    let made = diff(&serving, request.clone()).await.unwrap();
    assert_eq!(made.media_type, GZIP);
    let leases: Vec<String> = content.held.lock().unwrap().leases.values().cloned().collect();
    assert!(leases.len() == 1 && leases[0].ends_with('Z'), "{leases:?}");
    let (blob, labels) = content.blob(&made.digest);
    assert_eq!(made.size, blob.len() as i64);
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    assert_eq!(labels["containerd.io/uncompressed"], Digest::of(&plain).to_string());
    assert_eq!(labels["mine"], "1");

    let zstd = DiffRequest { media_type: format!("{PLAIN}+zstd"), r#ref: "my ref".into(), ..request.clone() };
    let made = diff(&serving, zstd).await.unwrap();
    assert_eq!(made.media_type, format!("{PLAIN}+zstd"));
    assert_eq!(zstd::decode_all(&content.blob(&made.digest).0[..]).unwrap(), plain);

    let made = diff(&serving, DiffRequest { media_type: PLAIN.into(), ..request }).await.unwrap();
    assert_eq!(made.digest, Digest::of(&plain).to_string());
    assert!(!content.blob(&made.digest).1.contains_key("containerd.io/uncompressed"));
    assert!(!content.has_ingests());
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_of_a_layer_that_is_there_already_labels_it() {
    let (serving, content) = serve();
    let (left, right) = changed(&serving).await;
    let request = DiffRequest { left, right, ..DiffRequest::default() };
    let made = diff(&serving, request.clone()).await.unwrap();
    content.held.lock().unwrap().blobs.get_mut(&made.digest).unwrap().1.clear();
    // What an earlier attempt left under the reference is overwritten.
    content.held.lock().unwrap().ingests.insert("again".into(), vec![1; 5000]);
    let again = diff(&serving, DiffRequest { r#ref: "again".into(), ..request }).await.unwrap();
    assert_eq!(again, made);
    assert!(content.blob(&made.digest).1.contains_key("containerd.io/uncompressed"));
    assert!(!content.has_ingests());
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_that_can_not_be_made_is_unimplemented_and_leaves_nothing() {
    let (serving, content) = serve();
    let (left, right) = changed(&serving).await;
    let foreign = vec![Mount { r#type: "overlay".into(), source: "overlay".into(), ..Mount::default() }];
    let request = DiffRequest { left: left.clone(), right: right.clone(), ..DiffRequest::default() };
    let epoch = prost_types::Timestamp { seconds: 1, nanos: 0 };
    for request in [
        DiffRequest { right: foreign.clone(), ..request.clone() },
        DiffRequest { left: foreign, ..request.clone() },
        DiffRequest { media_type: "application/x-what".into(), ..request.clone() },
        DiffRequest { source_date_epoch: Some(epoch), ..request.clone() },
    ] {
        let status = diff(&serving, request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
    }
    assert!(!content.has_ingests());
    assert!(content.held.lock().unwrap().blobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_under_a_reference_of_somebody_else_touches_nothing_of_theirs() {
    let (serving, content) = serve();
    let (left, right) = changed(&serving).await;
    content.held.lock().unwrap().ingests.insert("theirs".into(), b"precious".to_vec());
    content.held.lock().unwrap().locked.push("theirs".into());
    let request = DiffRequest { left, right, r#ref: "theirs".into(), ..DiffRequest::default() };
    let status = diff(&serving, request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("locked"), "{status}");
    assert_eq!(content.held.lock().unwrap().ingests["theirs"], b"precious");
}
