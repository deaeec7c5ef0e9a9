//! Mica's daemon: snapshots, live mounts and what engines and people ask of them over gRPC.
//!
//! Map of the domain, which knows no request types and no tokio: [`snapshots`] is the state machine behind every call;
//! `store` keeps its records in the layer database; [`mounts`] is the seam to the filesystem; [`filter`] is containerd's
//! filter language; [`error`] says what can go wrong and what a caller can do about it.

pub mod admin;
pub mod client;
pub mod config;
pub mod content;
pub mod error;
pub mod filter;
pub mod fsck;
pub mod grpc;
pub mod mounts;
pub mod server;
pub mod snapshots;
mod store;

pub use error::{Error, Result};
pub use mounts::{FormMounter, FuseMounter, Mounter};
pub use snapshots::{Applied, Incoming, Info, Kind, Mount, Snapshots, Usage};
