//! Makes Rust of the interfaces below `proto/`. No `protoc` is needed.

use std::error::Error;

const PROTOS: [&str; 7] = [
    "containerd/services/snapshots/v1/snapshots.proto",
    "containerd/services/diff/v1/diff.proto",
    "containerd/services/content/v1/content.proto",
    "containerd/services/leases/v1/leases.proto",
    "containerd/services/introspection/v1/introspection.proto",
    "grpc/health/v1/health.proto",
    "mica/v1/admin.proto",
];

#[allow(clippy::print_stdout)] // That is how a build script speaks.
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().include_file("proto.rs").compile_fds(files)?;
    Ok(())
}
