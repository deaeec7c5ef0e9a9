//! Snapshots: codes, masks, pages.

use std::collections::HashMap;

use mica_snapshotter::grpc::proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use mica_snapshotter::grpc::proto::containerd::services::snapshots::v1::*;
use mica_snapshotter::grpc::proto::containerd::types::Mount;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::serving::Serving;

type Client = SnapshotsClient<Channel>;

fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub async fn prepare(client: &mut Client, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    let request = PrepareSnapshotRequest { key, parent, ..PrepareSnapshotRequest::default() };
    Ok(client.prepare(request).await?.into_inner().mounts)
}

async fn view(client: &mut Client, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    let request = ViewSnapshotRequest { key, parent, ..ViewSnapshotRequest::default() };
    Ok(client.view(request).await?.into_inner().mounts)
}

pub async fn commit(client: &mut Client, name: &str, key: &str, parent: &str) -> Result<(), Status> {
    let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
    let request = CommitSnapshotRequest { name, key, parent, ..CommitSnapshotRequest::default() };
    client.commit(request).await.map(drop)
}

async fn mounts(client: &mut Client, key: &str) -> Result<Vec<Mount>, Status> {
    let request = MountsRequest { key: key.to_owned(), ..MountsRequest::default() };
    Ok(client.mounts(request).await?.into_inner().mounts)
}

async fn remove(client: &mut Client, key: &str) -> Result<(), Status> {
    let request = RemoveSnapshotRequest { key: key.to_owned(), ..RemoveSnapshotRequest::default() };
    client.remove(request).await.map(drop)
}

async fn stat(client: &mut Client, key: &str) -> Result<Info, Status> {
    let request = StatSnapshotRequest { key: key.to_owned(), ..StatSnapshotRequest::default() };
    Ok(client.stat(request).await?.into_inner().info.unwrap())
}

async fn usage(client: &mut Client, key: &str) -> Result<UsageResponse, Status> {
    let request = UsageRequest { key: key.to_owned(), ..UsageRequest::default() };
    Ok(client.usage(request).await?.into_inner())
}

async fn update(client: &mut Client, info: Info, mask: Option<&[&str]>) -> Result<Info, Status> {
    let update_mask =
        mask.map(|paths| prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
    let request = UpdateSnapshotRequest { info: Some(info), update_mask, ..UpdateSnapshotRequest::default() };
    Ok(client.update(request).await?.into_inner().info.unwrap())
}

/// The pages of a listing.
async fn list(client: &mut Client, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
    let filters = filters.iter().map(ToString::to_string).collect();
    let request = ListSnapshotsRequest { filters, ..ListSnapshotsRequest::default() };
    let mut stream = client.list(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push(page.info);
    }
    Ok(pages)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err("it must be refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(text), "{status} doesn't say {text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_snapshot_over_the_wire() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    let mounted = prepare(client, "ns/1/a key", "").await.unwrap();
    assert_eq!(mounted.len(), 1);
    assert_eq!(mounted[0].r#type, "bind");
    assert!(mounted[0].source.starts_with(&serving.config.state.display().to_string()), "{mounted:?}");
    assert_eq!(mounted[0].options, ["rbind", "rw"]);
    assert_eq!(mounts(client, "ns/1/a key").await.unwrap(), mounted);
    let info = stat(client, "ns/1/a key").await.unwrap();
    assert_eq!((info.kind(), info.name.as_str(), info.parent.as_str()), (Kind::Active, "ns/1/a key", ""));
    assert!(info.created_at.is_some() && info.created_at == info.updated_at);
    commit(client, "base", "ns/1/a key", "").await.unwrap();
    let info = stat(client, "base").await.unwrap();
    assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, ""));
    let seen = view(client, "look", "base").await.unwrap();
    assert_eq!(seen[0].options, ["rbind", "ro"]);
    assert_eq!(stat(client, "look").await.unwrap().kind(), Kind::View);
    assert_eq!(stat(client, "look").await.unwrap().parent, "base");
    assert!(usage(client, "base").await.unwrap().size >= 0);
    remove(client, "look").await.unwrap();
    remove(client, "base").await.unwrap();
    client.cleanup(CleanupRequest::default()).await.unwrap();
    assert!(list(client, &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_are_not_found() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    refused(stat(client, "nobody").await, Code::NotFound, "nobody");
    refused(usage(client, "nobody").await, Code::NotFound, "nobody");
    refused(mounts(client, "nobody").await, Code::NotFound, "nobody");
    refused(remove(client, "nobody").await, Code::NotFound, "nobody");
    refused(commit(client, "name", "nobody", "").await, Code::NotFound, "nobody");
    refused(prepare(client, "key", "nobody").await, Code::NotFound, "nobody");
    refused(view(client, "key", "nobody").await, Code::NotFound, "nobody");
    let info = Info { name: "nobody".into(), ..Info::default() };
    refused(update(client, info, None).await, Code::NotFound, "nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_invalid() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    refused(prepare(client, "", "").await, Code::InvalidArgument, "key is empty");
    refused(view(client, "", "").await, Code::InvalidArgument, "key is empty");
    refused(stat(client, "").await, Code::InvalidArgument, "key is empty");
    refused(mounts(client, "").await, Code::InvalidArgument, "key is empty");
    refused(usage(client, "").await, Code::InvalidArgument, "key is empty");
    refused(remove(client, "").await, Code::InvalidArgument, "key is empty");
    refused(commit(client, "", "key", "").await, Code::InvalidArgument, "name is empty");
    refused(commit(client, "name", "", "").await, Code::InvalidArgument, "key is empty");
    refused(prepare(client, "a\0b", "").await, Code::InvalidArgument, "NUL");
    refused(prepare(client, &"x".repeat(5000), "").await, Code::InvalidArgument, "5000 bytes");
    refused(prepare(client, "key", &"x".repeat(5000)).await, Code::InvalidArgument, "parent has 5000 bytes");
    refused(update(client, Info::default(), None).await, Code::InvalidArgument, "name is empty");
    let status = client.update(UpdateSnapshotRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    for filter in ["name==", "name=x", "===", "name~=[", "labels.\"x"] {
        refused(list(client, &[filter]).await, Code::InvalidArgument, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_states_have_the_codes_that_containerd_expects() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    prepare(client, "one", "").await.unwrap();
    commit(client, "base", "one", "").await.unwrap();
    prepare(client, "active", "base").await.unwrap();
    view(client, "view", "base").await.unwrap();
    refused(prepare(client, "x", "active").await, Code::InvalidArgument, "active");
    refused(view(client, "x", "view").await, Code::InvalidArgument, "view");
    refused(prepare(client, "active", "base").await, Code::AlreadyExists, "active");
    refused(view(client, "active", "base").await, Code::AlreadyExists, "active");
    refused(prepare(client, "base", "").await, Code::AlreadyExists, "base");
    refused(mounts(client, "base").await, Code::FailedPrecondition, "base");
    refused(commit(client, "base", "active", "").await, Code::AlreadyExists, "base");
    refused(commit(client, "other", "view", "").await, Code::FailedPrecondition, "view");
    refused(commit(client, "other", "base", "").await, Code::FailedPrecondition, "base");
    refused(remove(client, "base").await, Code::FailedPrecondition, "remove");

    prepare(client, "two", "").await.unwrap();
    commit(client, "second", "two", "").await.unwrap();
    refused(commit(client, "other", "active", "second").await, Code::InvalidArgument, "parent");
    prepare(client, "loose", "").await.unwrap();
    refused(commit(client, "other", "loose", "nobody").await, Code::NotFound, "nobody");
    refused(commit(client, "other", "loose", "active").await, Code::FailedPrecondition, "active");
    commit(client, "other", "loose", "base").await.unwrap();
    assert_eq!(stat(client, "other").await.unwrap().parent, "base");
}

#[tokio::test(flavor = "multi_thread")]
async fn update_follows_its_mask() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    let request = PrepareSnapshotRequest {
        key: "key".into(),
        labels: labels(&[("a", "1"), ("b.c/d", "2")]),
        ..PrepareSnapshotRequest::default()
    };
    client.prepare(request).await.unwrap();
    let with = |pairs: &[(&str, &str)]| Info {
        name: "key".into(),
        parent: "doesnotexist".into(),
        labels: labels(pairs),
        ..Info::default()
    };
    let before = stat(client, "key").await.unwrap();

    let info = update(client, with(&[("b.c/d", "3"), ("x", "9")]), Some(&["labels.b.c/d"])).await.unwrap();
    assert_eq!(info.labels, labels(&[("a", "1"), ("b.c/d", "3")]));
    assert_eq!(info.parent, "");
    assert_eq!(info.created_at, before.created_at);
    assert_ne!(info.updated_at, before.updated_at);
    let info = update(client, with(&[]), Some(&["labels.a"])).await.unwrap();
    assert_eq!(info.labels, labels(&[("b.c/d", "3")]));
    let info = update(client, with(&[("n", "1")]), Some(&["labels"])).await.unwrap();
    assert_eq!(info.labels, labels(&[("n", "1")]));
    for paths in [&["parent"][..], &["labels.n", "kind"], &["name"], &["created_at"], &[""]] {
        refused(update(client, with(&[("n", "2")]), Some(paths)).await, Code::InvalidArgument, "key");
    }
    assert_eq!(stat(client, "key").await.unwrap(), info);
    let info = update(client, with(&[("all", "new")]), None).await.unwrap();
    assert_eq!(info.labels, labels(&[("all", "new")]));
    let info = update(client, with(&[]), Some(&[])).await.unwrap();
    assert!(info.labels.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn list_comes_in_pages_and_answers_filters() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    prepare(client, "seed", "").await.unwrap();
    commit(client, "base", "seed", "").await.unwrap();
    for number in 0..249 {
        prepare(client, &format!("key-{number:03}"), "base").await.unwrap();
    }
    let pages = list(client, &[]).await.unwrap();
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    let mut names: Vec<String> = pages.into_iter().flatten().map(|info| info.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 250);
    let found = list(client, &["kind==committed", "name==key-007"]).await.unwrap();
    let mut names: Vec<_> = found.iter().flatten().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["base", "key-007"]);
    assert!(list(client, &["parent==nobody"]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_while_a_listing_is_read_is_answered() {
    let serving = Serving::start();
    let client = &mut serving.snapshots();
    for number in 0..205 {
        prepare(client, &format!("key-{number}"), "").await.unwrap();
    }
    let mut stream = client.clone().list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut seen = 0;
    while let Some(page) = stream.message().await.unwrap() {
        for info in page.info {
            assert_eq!(stat(client, &info.name).await.unwrap(), info);
            seen += 1;
        }
    }
    assert_eq!(seen, 205);
}
