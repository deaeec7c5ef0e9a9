//! `mica branch`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use mica_fs::branches::{BranchMode, BranchSpec};
use mica_fs::options;
use serde::Serialize;

use super::{Context, umount};
use crate::args::{Add, Branch};
use crate::control::{Question, Row, ask};
use crate::mounts::Note;
use crate::output::{Table, bytes};
use crate::{Failure, output};

/// A branch, for programs.
#[derive(Debug, Serialize)]
struct Report {
    path: PathBuf,
    mode: String,
    free_bytes: u64,
}

/// Does one of the branch verbs.
pub fn run(context: &Context, arguments: Branch) -> Result<(), Failure> {
    match arguments {
        Branch::Ls { mountpoint } => list(context, &mountpoint),
        Branch::Add(Add { index, bottom, mountpoint, branch }) => {
            let BranchSpec { path, mode, .. } = spec(&branch, Some(BranchMode::ReadOnly))?;
            let path = canonical(&path)?;
            if std::fs::metadata(&path)?.dev() == std::fs::metadata(&mountpoint)?.dev() {
                return Err(Failure::text(format!("{} is in the mount itself", path.display())));
            }
            let index = if bottom { usize::MAX } else { index };
            let path = path.into_os_string().into_vec();
            change(context, &mountpoint, &Question::Add { path, mode: mode.to_string(), index })
        }
        Branch::Rm { mountpoint, path } => {
            let path = known(&path).into_os_string().into_vec();
            change(context, &mountpoint, &Question::Remove { path })
        }
        Branch::Mode { mountpoint, branch } => {
            let BranchSpec { path, mode, .. } = spec(&branch, None)?;
            let path = known(&path).into_os_string().into_vec();
            change(context, &mountpoint, &Question::Mode { path, mode: mode.to_string() })
        }
    }
}

fn list(context: &Context, mountpoint: &Path) -> Result<(), Failure> {
    let rows = ask(&note(context, mountpoint)?, &Question::List)?;
    let report = |Row { path, mode, free_bytes }| Report { path: OsString::from_vec(path).into(), mode, free_bytes };
    let reports: Vec<Report> = rows.into_iter().map(report).collect();
    if context.json {
        return Ok(output::json(&reports)?);
    }
    let mut table = Table::new(["BRANCH", "MODE", "FREE"]);
    for Report { path, mode, free_bytes } in reports {
        table.row([path.display().to_string(), mode, bytes(free_bytes)]);
    }
    Ok(table.print()?)
}

fn change(context: &Context, mountpoint: &Path, question: &Question) -> Result<(), Failure> {
    ask(&note(context, mountpoint)?, question).map(drop)
}

/// The note of the process that serves a mount.
fn note(context: &Context, mountpoint: &Path) -> Result<PathBuf, Failure> {
    let place = umount::place(mountpoint)?;
    // Of mounts on top of each other the last is seen.
    let notes =
        Note::all(&context.state()).into_iter().filter(|(_, note)| note.mountpoint == place && note.is_served());
    let last = notes.max_by_key(|(path, _)| path.metadata().and_then(|metadata| metadata.modified()).ok());
    last.map(|(path, _)| path)
        .ok_or_else(|| Failure::text(format!("{} is no mount that `mica mount` serves", place.display())))
}

/// `PATH=MODE`; without `=` the default, if there is one.
fn spec(text: &OsStr, default: Option<BranchMode>) -> Result<BranchSpec, Failure> {
    if default.is_none() && !text.as_bytes().contains(&b'=') {
        return Err(Failure::Usage("which mode? `PATH=rw`, `PATH=ro` or `PATH=ro+wh`".to_owned()));
    }
    let read = options::branch(text.as_bytes(), default.unwrap_or(BranchMode::ReadOnly));
    read.map_err(|error| Failure::Usage(error.to_string()))
}

fn canonical(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| Failure::text(format!("{}: {error}", path.display())))
}

/// The name that a branch has among the others, also when its directory is gone.
fn known(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
}
