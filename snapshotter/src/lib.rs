//! Mica's daemon: snapshots, live mounts and what engines and people ask of them over gRPC.

pub mod content;
pub mod grpc;
