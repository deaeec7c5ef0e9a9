//! What end-to-end tests, the demonstration and the benchmarks stand on: real engines, a real registry and Mica's own
//! daemon, each with folders, sockets and ports of its own, each ended when its value is dropped.
//!
//! | module | what |
//! |---|---|
//! | [`scene`] | a registry, a daemon and a containerd that know each other |
//! | [`daemon`] | `mica serve` and the command line against it |
//! | [`engines`] | containerd 1.6 and 1.7, `ctr`, containers, the registry |
//! | [`oci`] | layers and images made by hand, good and bad ones |
//! | [`disk`] | a small filesystem that can be filled |
//! | [`rpc`] | Mica's services as an engine calls them |
//! | [`leftovers`] | mounts and processes that should be gone |
//! | [`place`] | programs, images and folders |
//! | [`command`], [`service`], [`wait`] | programs with time limits and readable errors |
//!
//! Run it below `scripts/contained`: then nothing is left behind even if this process is killed.

pub mod command;
pub mod daemon;
pub mod disk;
pub mod engines;
pub mod failure;
pub mod leftovers;
pub mod oci;
pub mod place;
pub mod rpc;
pub mod scene;
pub mod service;
pub mod wait;

pub use failure::{Context, Failure, Result};
