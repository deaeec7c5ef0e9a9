//! The daemon over its socket: a real server and client, a fake kernel and a fake containerd.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "grpc/admin.rs"]
mod admin;
#[path = "grpc/content.rs"]
mod content;
#[path = "grpc/daemon.rs"]
mod daemon;
#[path = "grpc/diff.rs"]
mod diff;
#[path = "grpc/kernel.rs"]
mod kernel;
#[path = "grpc/serving.rs"]
mod serving;
#[path = "grpc/snapshots.rs"]
mod snapshots;
