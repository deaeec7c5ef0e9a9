//! Mica's layer database: content-addressed layers, and the trees that describe them.
//!
//! ```text
//! <root>/
//!   FORMAT                       format version, feature flags, store UUID
//!   meta/                        metadata rows (RocksDB): one synced batch per change of state
//!   objects/ab/cdef...           content of a regular file, named by its sha256; mode 0400; never changed
//!   layers/sha256/<diff-id>      one layer as a tree file; never changed once published
//!   layers/sha256/<diff-id>.recipe  how the layer's tar is rebuilt from the tree and the objects
//!   chains/sha256/<chain-id>     a stack of layers merged into one tree file; derived, may be rebuilt
//!   snapshots/<n>/{upper,work}   the writable part of an active snapshot
//!   quarantine/                  damaged files that were taken out of use, each with a note
//!   tmp/                         emptied when the store opens
//! ```
//!
//! Map of the crate: [`digest`] names things; [`tree`] reads, writes and merges tree files (EROFS images
//! that hold metadata and small contents, see `docs/FORMAT.md`); [`disk`] is under every write; [`store`] opens the
//! directory and keeps the metadata; `object` publishes files; [`ingest`] turns a tar into a layer; [`recipe`] says how
//! a layer's tar is rebuilt, `export` does it; `layer` and [`chain`] open trees; [`image`] imports images; `gc` and
//! [`df`] say what is garbage and what takes space; `damage` and `quarantine` keep book of what is no longer whole;
//! [`error`] says what can go wrong. Nothing in here needs root, FUSE or a network.

pub mod chain;
mod damage;
pub mod df;
pub mod diff;
pub mod digest;
pub mod disk;
pub mod error;
mod export;
pub mod fsck;
mod gc;
pub mod image;
pub mod ingest;
mod layer;
pub mod limits;
mod object;
mod quarantine;
pub mod recipe;
mod sorter;
pub mod store;
mod tally;
pub mod tar;
pub mod tree;
pub mod unpack;
pub mod verify;
mod walk;

pub use damage::{DamagedLayer, DamagedObject};
pub use digest::{BlobDigest, ChainId, DiffId, Digest, Hasher, ObjectId};
pub use error::{Error, Kind, Result};
pub use gc::{Explained, Explanation, GcOptions, GcReport, Keeper, ObjectUse, Rate, UnreadableLayer};
pub use image::{Image, ImportFormat, ImportOptions, ImportSource};
pub use ingest::{Compression, IngestOptions, Progress};
pub use layer::{BlobCompression, BlobOrigin, Layer};
pub use limits::Limits;
pub use quarantine::{Damaged, Finding, Quarantined};
pub use recipe::RecipeRecord;
pub use store::{Batch, Db, Family, Hold, Store, StoreOptions};
pub use tally::Tally;
