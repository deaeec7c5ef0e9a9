//! Requests that make no sense, and those whose answer an engine acts on.

use mica_tests::rpc::{Rpc, refused};
use mica_tests::scene::Scene;
use mica_tests::{Result, ensure, ensure_eq};
use tonic::Code;

use crate::stage::play;

#[test]
fn senseless_requests_are_refused_by_name_and_change_nothing() -> Result {
    play("senseless requests", mica_tests::engines::Version::V1_7, |scene| {
        let rpc = Rpc::at(&scene.daemon.socket())?;
        let before = state(scene, &rpc)?;
        for (what, answer) in [
            ("prepare", rpc.prepare("new", "no-such-parent").map(|_| ())),
            ("view", rpc.view("new", "no-such-parent").map(|_| ())),
        ] {
            refused(what, answer, Code::NotFound, &["no-such-parent"])?;
        }
        refused("mounts", rpc.mounts("no-such-key"), Code::NotFound, &["no-such-key"])?;
        refused("stat", rpc.stat("no-such-key"), Code::NotFound, &["no-such-key"])?;
        refused("usage", rpc.usage("no-such-key"), Code::NotFound, &["no-such-key"])?;
        refused("remove", rpc.remove("no-such-key"), Code::NotFound, &["no-such-key"])?;
        refused("commit", rpc.commit("name", "no-such-key"), Code::NotFound, &["no-such-key"])?;
        refused("update", rpc.update("no-such-key", "labels", ("a", "b")), Code::NotFound, &["no-such-key"])?;
        refused("list", rpc.list("kind=="), Code::InvalidArgument, &["kind=="])?;
        ensure_eq!(state(scene, &rpc)?, before, "what there is after senseless requests");

        rpc.prepare("first", "")?;
        refused("prepare again", rpc.prepare("first", ""), Code::AlreadyExists, &["first"])?;
        refused("prepare upon an active one", rpc.prepare("child", "first"), Code::InvalidArgument, &["first"])?;
        for path in ["parent", "nonsense", "kind"] {
            refused("update", rpc.update("first", path, ("a", "b")), Code::InvalidArgument, &[path])?;
        }
        rpc.update("first", "labels.a.b", ("a.b", "value"))?;
        let labels = rpc.stat("first")?.map(|info| info.labels).unwrap_or_default();
        ensure_eq!(labels.get("a.b").map(String::as_str), Some("value"), "a label whose name has a dot");

        rpc.commit("committed", "first")?;
        refused("mounts of a committed one", rpc.mounts("committed"), Code::FailedPrecondition, &["committed"])?;
        rpc.prepare("child", "committed")?;
        refused("remove of a parent", rpc.remove("committed"), Code::FailedPrecondition, &["remove", "child"])?;
        refused("commit to a taken name", rpc.commit("committed", "child"), Code::AlreadyExists, &["committed"])?;
        rpc.view("view", "committed")?;
        refused("commit of a view", rpc.commit("other", "view"), Code::FailedPrecondition, &["view"])?;
        for key in ["view", "child", "committed"] {
            rpc.remove(key)?;
        }
        rpc.cleanup()?;
        ensure_eq!(state(scene, &rpc)?, before, "what there is in the end");

        // It still serves.
        let image = scene.pulled("base")?;
        let said = scene.containerd.run(&image, &["echo", "alive"])?.text();
        ensure!(said == "alive\n", "it said {said:?}");
        Ok(())
    })
}

/// Keys, folders of snapshots, mounts.
fn state(scene: &Scene, rpc: &Rpc) -> Result<(Vec<String>, Vec<String>, usize)> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(scene.daemon.root().join("snapshots"))? {
        folders.push(entry?.file_name().display().to_string());
    }
    folders.sort();
    Ok((rpc.list("")?, folders, mica_tests::leftovers::mounts_below(scene.daemon.state())?.len()))
}
