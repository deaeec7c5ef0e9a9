//! The file `FORMAT`: what a program must understand before it touches anything else below the root.
//!
//! One JSON object. Rules: an unknown name in `incompat` or `ro_compat`, or a `version` above ours, means hands off
//! (this program has no read-only mode, so `ro_compat` is as strict); an unknown name in `compat` is ignored.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::error::{Error, Result};

/// The version this program writes, and the newest it understands.
pub(crate) const VERSION: u32 = 1;

const INCOMPAT: &[&str] = &["erofs-trees", "sha256-objects"];
/// `layer-recipes`: a recipe may name objects that no tree names, so a program that doesn't know recipes must not collect
/// garbage.
const RO_COMPAT: &[&str] = &["layer-recipes"];
const PATH: &str = "FORMAT";
const TEMPORARY: &str = "FORMAT.new";

/// The contents of `FORMAT`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Format {
    pub(crate) version: u32,
    /// Identifies this store for ever, whatever its path.
    pub(crate) uuid: String,
    #[serde(default)]
    pub(crate) compat: Vec<String>,
    #[serde(default)]
    pub(crate) ro_compat: Vec<String>,
    #[serde(default)]
    pub(crate) incompat: Vec<String>,
    /// Members that this program doesn't know.
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

impl Format {
    /// Reads and judges the file. `None` if there is none.
    pub(crate) fn read(disk: &dyn Disk, root: &Path) -> Result<Option<Format>> {
        let action = || format!("read {}", root.join(PATH).display());
        let Some(file) = disk::open(disk, Path::new(PATH)).map_err(Error::io(action()))? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(64 << 10).read_to_end(&mut text).map_err(Error::io(action()))?;
        let format: Format = serde_json::from_slice(&text).map_err(|error| Error::NotAStore {
            root: root.to_path_buf(),
            reason: format!("its FORMAT file is damaged: {error}"),
        })?;
        format.judge(root)?;
        Ok(Some(format))
    }

    fn judge(&self, root: &Path) -> Result<()> {
        let foreign: Vec<&str> = self
            .incompat
            .iter()
            .filter(|name| !INCOMPAT.contains(&name.as_str()))
            .chain(self.ro_compat.iter().filter(|name| !RO_COMPAT.contains(&name.as_str())))
            .map(String::as_str)
            .collect();
        if self.version <= VERSION && foreign.is_empty() {
            return Ok(());
        }
        let with = |features: &[&str]| match features {
            [] => String::new(),
            features => format!(" with {}", features.join(", ")),
        };
        Err(Error::NewerFormat {
            root: root.to_path_buf(),
            found: format!("{}{}", self.version, with(&foreign)),
            supported: VERSION.to_string(),
        })
    }

    /// Writes the file of a new store, durably. The caller holds the store's lock.
    pub(crate) fn create(disk: &dyn Disk, root: &Path) -> Result<Format> {
        let format = Format {
            version: VERSION,
            uuid: new_uuid().map_err(Error::io("draw a random store id"))?,
            compat: Vec::new(),
            ro_compat: RO_COMPAT.iter().map(ToString::to_string).collect(),
            incompat: INCOMPAT.iter().map(ToString::to_string).collect(),
            others: serde_json::Map::new(),
        };
        format.write(disk, root)?;
        Ok(format)
    }

    /// Adds what this program will write and older ones didn't, durably. The caller holds the store's lock.
    pub(crate) fn upgrade(mut self, disk: &dyn Disk, root: &Path) -> Result<Format> {
        let missing = RO_COMPAT.iter().filter(|name| !self.ro_compat.iter().any(|known| known == *name));
        let missing: Vec<String> = missing.map(ToString::to_string).collect();
        if !missing.is_empty() {
            self.ro_compat.extend(missing);
            self.write(disk, root)?;
        }
        Ok(self)
    }

    fn write(&self, disk: &dyn Disk, root: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| Error::NotAStore {
            root: root.to_path_buf(),
            reason: format!("its FORMAT cannot be written: {error}"),
        })?;
        text.push(b'\n');
        let publish = || {
            disk::remove_tree(disk, Path::new(TEMPORARY))?;
            let file = disk.create(Path::new(TEMPORARY))?;
            disk.write(&file, &text)?;
            disk.set_mode(Path::new(TEMPORARY), 0o444)?;
            disk.sync(&file)?;
            disk.replace(Path::new(TEMPORARY), Path::new(PATH))?;
            disk.sync_dir(Path::new("."))
        };
        publish().map_err(Error::io(format!("write {}", root.join(PATH).display())))
    }

    /// True for the names that a half-made store may hold.
    pub(crate) fn is_leftover(name: &std::ffi::OsStr) -> bool {
        name == TEMPORARY
    }
}

/// A version 4 UUID (RFC 9562, section 5.4).
fn new_uuid() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}
