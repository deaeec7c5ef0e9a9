//! The layers of real images: those of the end-to-end tests, which umoci made, and what buildah makes of the same files.
#![allow(clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use flate2::bufread::MultiGzDecoder;

use super::Scene;
use mica_layerdb::{BlobOrigin, IngestOptions};

/// Where `make images` has put the layout.
fn images() -> Option<PathBuf> {
    let cache = PathBuf::from(std::env::var_os("MICA_CACHE")?).join("images");
    let layouts = fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("layout")));
    layouts
        .filter(|layout| layout.join("index.json").exists())
        .max_by_key(|layout| fs::metadata(layout).unwrap().modified().unwrap())
}

/// Digests of all layers of a layout.
fn layers(layout: &Path) -> Vec<String> {
    let read = |path: PathBuf| -> serde_json::Value { serde_json::from_reader(File::open(path).unwrap()).unwrap() };
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let mut found = Vec::new();
    for manifest in read(layout.join("index.json"))["manifests"].as_array().unwrap() {
        let manifest = read(blob(manifest["digest"].as_str().unwrap()));
        for layer in manifest["layers"].as_array().unwrap() {
            found.push(layer["digest"].as_str().unwrap().to_owned());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Takes bytes and compares them with what a reader has.
struct Compared<R> {
    expected: R,
    at: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Write for Compared<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        self.expected.read_exact(&mut self.buffer)?;
        assert!(self.buffer == bytes, "within {} bytes at {}", bytes.len(), self.at);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The tar of a blob, and how the blob can be had again.
fn unpacked(path: &Path) -> (Box<dyn Read>, BlobOrigin) {
    let mut input = BufReader::new(File::open(path).unwrap());
    if input.fill_buf().unwrap().starts_with(&[0x1f, 0x8b]) {
        return (Box::new(MultiGzDecoder::new(input)), BlobOrigin::Remade);
    }
    (Box::new(input), BlobOrigin::Exact)
}

fn layers_return(layout: &Path) {
    let scene = Scene::new();
    for digest in layers(layout) {
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        let start = Instant::now();
        let options = IngestOptions { name: digest.clone(), pin: Some(b"test".to_vec()), ..Default::default() };
        let layer = scene.store().ingest(&mut File::open(&path).unwrap(), &options, &()).unwrap();
        let (ingest, start) = (start.elapsed(), Instant::now());
        let (expected, origin) = unpacked(&path);
        let mut compared = Compared { expected, at: 0, buffer: Vec::new() };
        let bytes = scene.store().export_layer(layer.diff_id, &mut compared).unwrap();
        assert_eq!((bytes, compared.expected.read(&mut [0]).unwrap()), (layer.tar_bytes, 0));
        assert_eq!(layer.blob_origin(), origin);
        eprintln!(
            "{}: {} entries, {} bytes of tar, tree {}, recipe {}; in {ingest:?}, out and compared {:?}",
            &digest[..19],
            layer.entries,
            layer.tar_bytes,
            layer.tree_bytes,
            layer.recipe.unwrap().bytes,
            start.elapsed()
        );
    }
}

#[test]
fn layers_of_the_test_images_return() {
    match images() {
        Some(layout) => layers_return(&layout),
        None => eprintln!("skipped: the test images aren't there; make images builds them"),
    }
}

/// A file of the engines that `make setup` unpacks.
fn engine(path: &str) -> Option<PathBuf> {
    let found = PathBuf::from(std::env::var_os("MICA_CACHE")?).join("engines").join(path);
    found.exists().then_some(found)
}

#[test]
fn layers_that_buildah_commits_return() {
    let Some(buildah) = engine("podman/usr/bin/buildah") else {
        return eprintln!("skipped: there is no buildah; make setup unpacks it");
    };
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: buildah needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let files = at("files");
    fs::create_dir_all(files.join("deep/er")).unwrap();
    fs::write(files.join("deep/large"), super::forms::noise(1, 200_000)).unwrap();
    fs::hard_link(files.join("deep/large"), files.join("deep/er/link")).unwrap();
    fs::write(files.join("n".repeat(200)), b"a long name").unwrap();
    let policy = at("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&buildah);
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run"));
        command.args(["--storage-driver", "vfs"]).args(arguments).env("BUILDAH_ISOLATION", "chroot");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let container = run(&["from", "scratch"]);
    let layout = at("layout");
    run(&["add", &container, &files.display().to_string(), "/srv"]);
    let target = format!("oci:{}:one", layout.display());
    run(&["commit", "--signature-policy", &policy.display().to_string(), &container, &target]);
    layers_return(&layout);
}
