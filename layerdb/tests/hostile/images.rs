//! Layouts and archives of images that lead elsewhere, or name more than there is memory for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use mica_layerdb::{Digest, Error, ImportSource, Kind, Limits};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

use super::Scene;
use super::forge::Forge;

/// A layout being made in a folder.
struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let folder = self.0.join("blobs/sha256");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    }

    fn document(&self, document: &Value) -> Value {
        self.blob(document.to_string().as_bytes())
    }

    fn index(&self, document: &Value) {
        fs::write(self.0.join("index.json"), document.to_string()).unwrap();
    }

    /// An image with so many layers, all the same.
    fn image(&self, layers: usize) -> Value {
        let tar = Forge::new().file("f", b"x").end();
        let layer = self.blob(&tar);
        let ids = vec![json!(Digest::of(&tar)); layers];
        let config = self.document(&json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}));
        self.document(&json!({"schemaVersion": 2, "config": config, "layers": vec![layer; layers]}))
    }
}

fn layout(limits: Limits, make: impl FnOnce(&Layout<'_>)) -> (Scene, mica_layerdb::Result<usize>) {
    let scene = Scene::new(limits);
    let folder = scene.path().join("layout");
    fs::create_dir(&folder).unwrap();
    make(&Layout(&folder));
    let imported = scene.store.import(&ImportSource::OciDir(folder), None, &()).map(|images| images.len());
    assert_eq!(fs::read_dir(scene.store.root().join("tmp")).unwrap().count(), 0);
    (scene, imported)
}

#[track_caller]
fn refused(limits: Limits, words: &[&str], make: impl FnOnce(&Layout<'_>)) {
    let (scene, imported) = layout(limits, make);
    let error = imported.unwrap_err();
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} are not in: {text}");
    assert!(text.len() < 4096, "{} bytes", text.len());
    assert!(scene.store.images().unwrap().is_empty());
}

#[test]
fn digest_that_is_a_path_is_refused() {
    for digest in ["sha256:../../../../etc/passwd", "../../etc/passwd", "sha256:", "sha512:00", "sha256:/etc/passwd"] {
        refused(Limits::default(), &["digest"], |layout| {
            layout.index(&json!({"manifests": [{"digest": digest, "size": 1}]}));
        });
    }
}

#[test]
fn blob_that_is_a_link_out_of_the_layout_is_not_read() {
    let (_scene, imported) = layout(Limits::default(), |layout| {
        let manifest = layout.image(1);
        let name = manifest["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let path = layout.0.join("blobs/sha256").join(&name);
        let outside = layout.0.with_extension("outside");
        fs::rename(&path, &outside).unwrap();
        symlink(&outside, &path).unwrap();
        layout.index(&json!({"manifests": [manifest]}));
    });
    let error = imported.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[test]
fn blob_that_is_no_file_is_refused_without_waiting() {
    refused(Limits::default(), &["not a regular file"], |layout| {
        let manifest = layout.image(1);
        let name = manifest["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let path = layout.0.join("blobs/sha256").join(name);
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        layout.index(&json!({"manifests": [manifest]}));
    });
}

#[test]
fn layers_at_the_limit_and_one_above() {
    let limits = Limits { layers: 5, ..Limits::default() };
    let with = |layers: usize| {
        move |layout: &Layout<'_>| {
            let image = layout.image(layers);
            layout.index(&json!({"manifests": [image]}));
        }
    };
    assert_eq!(layout(limits.clone(), with(5)).1.unwrap(), 1);
    refused(limits, &["6 layers", "over 5 layers", "limit layers"], with(6));
}

#[test]
fn document_at_the_limit_and_one_above() {
    let limits = Limits { document_bytes: 2000, ..Limits::default() };
    let with = |bytes: usize| {
        move |layout: &Layout<'_>| {
            let index = json!({"manifests": [layout.image(1)]}).to_string();
            fs::write(layout.0.join("index.json"), format!("{index}{}", " ".repeat(bytes - index.len()))).unwrap();
        }
    };
    assert_eq!(layout(limits.clone(), with(2000)).1.unwrap(), 1);
    refused(limits, &["index.json", "2001 bytes", "over 2000", "limit document_bytes"], with(2001));
}

#[test]
fn deep_json_is_refused() {
    refused(Limits::default(), &["index.json"], |layout| {
        fs::write(layout.0.join("index.json"), "{\"a\":".repeat(1 << 20)).unwrap();
    });
}

/// Three levels of ten thousand references to the same index would be read 10^12 times.
#[test]
fn indexes_that_name_each_other_many_times_are_refused() {
    refused(Limits::default(), &["limit documents"], |layout| {
        let mut below = layout.document(&json!({"manifests": []}));
        for _ in 0..3 {
            below = layout.document(&json!({"manifests": vec![below; 10_000]}));
        }
        layout.index(&json!({"manifests": [below]}));
    });
    // One manifest of a megabyte, under a hundred names: the text of each would be kept.
    refused(Limits::default(), &["limit documents_bytes"], |layout| {
        let mut image: Value = json!({"annotations": {"a": "a".repeat(1 << 20)}});
        let config = layout.document(&json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}));
        image["config"] = config;
        image["layers"] = json!([]);
        let manifest = layout.document(&image);
        let named = |number: usize| {
            let mut descriptor = manifest.clone();
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": format!("n{number}")});
            descriptor
        };
        layout.index(&json!({"manifests": (0..100).map(named).collect::<Vec<_>>()}));
    });
}

#[track_caller]
fn archive_refused(limits: Limits, archive: &[u8], words: &[&str]) {
    let scene = Scene::new(limits);
    let path = scene.path().join("image.tar");
    fs::write(&path, archive).unwrap();
    let error = scene.store.import(&ImportSource::Detect(path), None, &()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} are not in: {text}");
    assert!(text.len() < 4096, "{} bytes", text.len());
    assert_eq!(fs::read_dir(scene.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn archive_that_expands_without_end_is_refused() {
    use std::io::Write as _;
    let limits = Limits { expansion: 100, expansion_free_bytes: 1 << 20, ..Limits::default() };
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 32 << 20]).unwrap();
    archive_refused(limits.clone(), &encoder.finish().unwrap(), &["limit expansion"]);
    let packed = zstd::stream::encode_all(&vec![0; 32 << 20][..], 1).unwrap();
    archive_refused(limits, &packed, &["limit expansion"]);
}

#[test]
fn archive_of_too_many_or_too_long_names_is_refused() {
    let mut forge = Forge::new();
    for number in 0..11 {
        forge.file(format!("{number}"), b"");
    }
    let limits = Limits { archive_entries: 10, ..Limits::default() };
    archive_refused(limits, &forge.end(), &["over 10 entries", "limit archive_entries", "offset 5120"]);
    let long = Forge::new().gnu_long(b'L', &vec![b'n'; 5000]).file("f", b"").end();
    archive_refused(Limits::default(), &long, &["limit name_bytes"]);
    let huge = Forge::new().gnu_long(b'L', &vec![b'n'; (1 << 20) + 1]).file("f", b"").end();
    archive_refused(Limits::default(), &huge, &["limit extension_bytes"]);
}

#[test]
fn docker_archive_of_paths_that_lead_out_is_refused() {
    for path in ["../../../../etc/passwd", "/etc/passwd", "layer.tar"] {
        let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]}}).to_string();
        let manifest = json!([{"Config": "config.json", "RepoTags": ["a:1"], "Layers": [path]}]).to_string();
        let mut forge = Forge::new();
        forge.file("manifest.json", manifest.as_bytes()).file("config.json", config.as_bytes());
        forge.head(&super::forge::Head::new(b'2', "layer.tar").link("../../../etc/passwd"), 0);
        archive_refused(Limits::default(), &forge.end(), &[path, "missing"]);
    }
}
