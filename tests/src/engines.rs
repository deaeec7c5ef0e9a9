//! Container engines and a registry, private to the test that starts them.

mod container;
mod containerd;
mod ctr;
pub mod docker;
mod mounted;
mod podman;
mod registry;

pub use container::Container;
pub use containerd::{Containerd, Snapshotter, Version};
pub use docker::Docker;
pub use mounted::Mounted;
pub use podman::{Podman, reason_to_skip as podman_reason_to_skip};
pub use registry::Registry;
