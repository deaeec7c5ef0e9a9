//! Container engines and a registry, private to the test that starts them.

mod container;
mod containerd;
mod ctr;
mod mounted;
mod registry;

pub use container::Container;
pub use containerd::{Containerd, Snapshotter, Version};
pub use mounted::Mounted;
pub use registry::Registry;
