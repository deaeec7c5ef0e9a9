//! Unions for mounts that no engine asks for.

mod apart;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use mica_layerdb::tree::Tree;
use rustix::io::Errno;

use crate::branches::{BranchMode, Branches};
use crate::error::{Error, Result};
use crate::lower::{DirsLower, Lower, TreeLower};
use crate::objects::Objects;
use crate::options::Options;
use crate::union::{Below, Union};
use crate::upper::{BlockCopy, Claim, Format, METACOPY_ABOVE, Upper};

/// The union of plain directories that `options` names. Without an upper it is read-only.
pub fn union_of_dirs(options: &Options) -> Result<Union> {
    options.check()?;
    if options.lower.is_empty() {
        return Err(Error::Option { option: "lowerdir".to_owned(), reason: "is missing".to_owned() });
    }
    apart::check(&options.lower, options.upper.as_deref(), options.work.as_deref())?;
    let format = options.format.unwrap_or_else(Format::detect);
    let lower = DirsLower::with(&options.lower, format, options.owners)?;
    let upper = match (&options.upper, &options.work) {
        (Some(upper), Some(work)) => {
            let mut upper = Upper::claimed(upper, work, format, options.claim)?.with_owners(options.owners);
            if options.metacopy {
                upper = upper.with_metacopy(METACOPY_ABOVE);
            }
            if let Some(how) = options.block_copy {
                upper = upper.with_block_copy(how);
            }
            if options.adopt {
                upper = upper.adopt()?;
            }
            upper.own_root(lower.root_owner()?)?;
            Some(upper)
        }
        _ => None,
    };
    Union::new(Below::Ready(Arc::new(lower)), upper)
}

/// The union of the branches that `options` names. A work directory is the topmost writable one's.
pub fn union_of_branches(options: &Options) -> Result<Branches> {
    options.check()?;
    let mut branches = options.branches.clone();
    if let Some(first) = branches.iter_mut().find(|branch| branch.mode == BranchMode::Writable) {
        first.work.clone_from(&options.work);
    }
    // What tells one branch from another, now and later, is not where this process is at present.
    for branch in &mut branches {
        branch.path = std::fs::canonicalize(&branch.path).map_err(|error| unusable(&branch.path, &error))?;
    }
    Branches::new(&branches, options.format.unwrap_or_else(Format::detect), options.create.unwrap_or_default())
}

/// The union of an image's merged tree and the changes kept in `changes`, a folder that is made if it does not exist.
/// Without one it is read-only. Large files are copied up block by block as `block_copy` says, or not at all.
pub fn union_of_image(
    tree: Arc<Tree>,
    objects: Arc<Objects>,
    changes: Option<&Path>,
    claim: Claim,
    block_copy: Option<BlockCopy>,
) -> Result<Union> {
    let lower: Arc<dyn Lower> = Arc::new(TreeLower::new(tree, objects));
    let upper = changes.map(|changes| -> Result<Upper> {
        let (upper, work) = (changes.join("upper"), changes.join("work"));
        for dir in [&upper, &work] {
            make(dir)?;
        }
        let upper = Upper::claimed(&upper, &work, Format::detect(), claim)?.with_fresh_root();
        Ok(upper.with_metacopy(METACOPY_ABOVE).with_block_copy(block_copy.unwrap_or(BlockCopy::NEVER)))
    });
    Union::new(Below::Ready(lower), upper.transpose()?)
}

pub(crate) fn make(dir: &Path) -> Result<()> {
    // The upper's own mode is that of the root; the umask has no say in it.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| unusable(dir, &error))
}

fn unusable(dir: &Path, error: &std::io::Error) -> Error {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Error::Layer { path: dir.display().to_string(), reason: error.to_string(), errno }
}
