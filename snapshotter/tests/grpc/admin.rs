//! Administration: calls as JSON, and the client of the command line.

use std::sync::Mutex;

use mica_layerdb::{Digest, Image, ImportOptions, Progress};
use mica_snapshotter::admin::{Call, ImageLock, ImageReport, MountableImage, StatusReport};
use mica_snapshotter::client::Client;
use mica_snapshotter::grpc::proto::mica::v1::CallRequest;
use mica_snapshotter::grpc::proto::mica::v1::admin_client::AdminClient;
use serde_json::json;
use tonic::Code;

use super::content::{gzip, tar};
use super::serving::Serving;

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn begin(&self, name: &str, total_bytes: Option<u64>) {
        self.0.lock().unwrap().push(format!("begin {name} {}", total_bytes.unwrap()));
    }

    fn end(&self, name: &str, known: bool) {
        self.0.lock().unwrap().push(format!("end {name} {known}"));
    }
}

/// An OCI layout with one image of one layer; returns the layer's digest.
fn layout(path: &std::path::Path) -> String {
    let blobs = path.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let with = |mut descriptor: serde_json::Value, media_type: &str| {
        descriptor["mediaType"] = media_type.into();
        descriptor
    };
    let plain = tar(&[("app", &vec![b'x'; 9000])]);
    let layer = put(&gzip(&plain));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"os": "linux", "architecture": architecture, "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&plain).to_string()]}});
    let config = put(config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": with(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [with(layer.clone(), "application/vnd.oci.image.layer.v1.tar+gzip")]});
    let manifest = put(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2,
        "manifests": [with(manifest, "application/vnd.oci.image.manifest.v1+json")]});
    std::fs::write(path.join("index.json"), index.to_string()).unwrap();
    std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layer["digest"].as_str().unwrap().to_owned()
}

fn named(name: &str) -> ImportOptions {
    ImportOptions { name: Some(name.to_owned()), ..ImportOptions::default() }
}

fn call<T: serde::de::DeserializeOwned>(client: &Client, call: &Call) -> T {
    serde_json::from_value(client.call(call, &()).unwrap()).unwrap()
}

#[test]
fn image_is_imported_with_steps_and_shown_and_removed() {
    let serving = Serving::start();
    let client = Client::at(&serving.config.socket).unwrap();
    let source = serving.folder.path().join("layout");
    let layer = layout(&source);
    let heard = Heard::default();
    let import = Call::ImageImport { source: source.clone(), options: named("app:1") };
    let images: Vec<Image> = serde_json::from_value(client.call(&import, &heard).unwrap()).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].name, "app:1");
    let size = std::fs::metadata(source.join("blobs/sha256").join(&layer[7..])).unwrap().len();
    assert_eq!(*heard.0.lock().unwrap(), [format!("begin {layer} {size}"), format!("end {layer} false")]);

    let listed: Vec<Image> = call(&client, &Call::ImageLs);
    assert_eq!(listed, images);
    let report: ImageReport = call(&client, &Call::ImageShow { reference: "app:1".into() });
    assert_eq!(report.image, images[0]);
    assert_eq!(report.layers.len(), 1);
    assert_eq!(report.config["os"], "linux");
    let removed: Image = call(&client, &Call::ImageRm { reference: "app:1".into() });
    assert_eq!(removed, images[0]);
    let error = client.call(&Call::ImageShow { reference: "app:1".into() }, &()).unwrap_err();
    assert_eq!(error.to_string(), "there is no image app:1");
    let report: mica_layerdb::GcReport = call(&client, &Call::Gc { dry_run: false, rate: None });
    assert_eq!(report.layer_trees.count, 1);
}

#[test]
fn image_that_is_mounted_survives_its_removal_and_a_collection() {
    let serving = Serving::start();
    let client = Client::at(&serving.config.socket).unwrap();
    let source = serving.folder.path().join("layout");
    layout(&source);
    client.call(&Call::ImageImport { source, options: named("app:1") }, &()).unwrap();
    let lock = ImageLock::take(&serving.config.root).unwrap();
    let ask = Call::ImageMount { reference: "app:1".into(), lock: lock.id().to_owned() };
    let mountable: MountableImage = call(&client, &ask);
    assert!(mountable.tree.is_file() && mountable.objects.is_dir());
    client.call(&Call::ImageRm { reference: "app:1".into() }, &()).unwrap();
    let report: mica_layerdb::GcReport = call(&client, &Call::Gc { dry_run: false, rate: None });
    assert_eq!((report.layer_trees.count, report.chain_trees.count), (0, 0));
    assert!(mountable.tree.is_file());
    drop(lock);
    let report: mica_layerdb::GcReport = call(&client, &Call::Gc { dry_run: false, rate: None });
    assert_eq!((report.layer_trees.count, report.chain_trees.count), (1, 1));
    assert!(!mountable.tree.exists());
    let error = client.call(&ask, &()).unwrap_err();
    assert!(error.to_string().contains("app:1"), "{error}");
    assert_eq!(std::fs::read_dir(serving.config.root.join("mounts")).unwrap().count(), 0);
}

#[test]
fn image_can_not_be_mounted_under_a_lock_that_nobody_holds() {
    let serving = Serving::start();
    let client = Client::at(&serving.config.socket).unwrap();
    let source = serving.folder.path().join("layout");
    layout(&source);
    client.call(&Call::ImageImport { source, options: named("app:1") }, &()).unwrap();
    for lock in ["", "1-2", "../../FORMAT", "a"] {
        let ask = Call::ImageMount { reference: "app:1".into(), lock: lock.into() };
        let error = client.call(&ask, &()).unwrap_err();
        assert!(error.to_string().contains("lock"), "{error}");
    }
}

#[test]
fn status_says_who_serves() {
    let serving = Serving::start();
    let client = Client::at(&serving.config.socket).unwrap();
    let status: StatusReport = call(&client, &Call::Status);
    assert_eq!(status.pid, std::process::id());
    assert_eq!(status.root, serving.config.root);
    assert_eq!(status.address, serving.config.address());
}

#[test]
fn import_by_a_relative_path_is_refused() {
    let serving = Serving::start();
    let client = Client::at(&serving.config.socket).unwrap();
    let import = Call::ImageImport { source: "layout".into(), options: ImportOptions::default() };
    assert!(client.call(&import, &()).unwrap_err().to_string().contains("absolute"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_no_sense_are_invalid_and_named() {
    let serving = Serving::start();
    let mut client = AdminClient::new(serving.channel());
    for (verb, arguments, named) in [
        ("fly", "", "fly"),
        ("", "", "unknown variant"),
        ("gc", "", "gc"),
        ("gc", "{\"dry_run\": 1}", "gc"),
        ("gc", "{\"dry_run\": true, \"more\": 1}", "more"),
        ("image-show", "{", "image-show"),
    ] {
        let request = CallRequest { verb: verb.into(), arguments: arguments.into() };
        let status = client.call(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(named), "{status} doesn't name {named}");
    }
}
