//! Mica's filesystem: a union of a read-only lower and a writable upper.
//!
//! Map of the crate: [`lower`] is what lies below (a chain tree with its [`objects`], or a stack of plain
//! directories); [`upper`] is the writable directory in overlayfs' format; [`union`] puts them together, one
//! file per family of operations, and is where to start reading (`union/lookup.rs`). [`branches`] is another union, of
//! directories any of which can be written to. Nothing of that needs a kernel. The FUSE adapter translates the
//! kernel's messages into operations ([`served`]) and decides nothing. [`error`] is the one place that makes an errno of an error.

pub mod branches;
mod cache;
pub mod diff;
pub mod error;
pub mod fuse;
pub mod fusermount;
pub mod ids;
pub mod inode;
pub mod keeper;
pub mod kernel;
mod listing;
pub mod lower;
pub mod mount;
pub mod mountinfo;
pub mod objects;
pub mod options;
pub mod owners;
mod passthrough;
pub mod served;
pub mod session;
mod sys;
pub mod union;
pub mod upper;

pub use branches::Branches;
pub use error::{Error, Result};
pub use inode::{Attr, Caller, DirEntry, Fh, Ino, Opened, ROOT, SetAttr, SetTime};
pub use keeper::Keeper;
pub use objects::{Objects, Watch};
pub use owners::Owners;
pub use session::{MountOptions, Session};
pub use union::{Backing, BackingPlace, Below, Union};
pub use upper::{Claim, Format, Upper};
