//! Lookups in stacks of 1 to 500 layers.
//!
//! All layers have the directory `d`. The bottom one has the names that are looked for; each above has ten others.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use mica_tests::{Result, ensure_eq};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use super::Workload;
use crate::fs::files::c_path;
use crate::fs::lower::Lower;
use crate::fs::place::Upper;
use crate::fs::row::{Goal, Kind, Row, overlayfs};
use crate::fs::stage::{Stage, drop_caches};
use crate::fs::subject::Subject;

/// The rows.
pub const DEPTH: Workload = Workload {
    name: "depth",
    rows: &[
        Row::time("lookup-1", "lookup, cold, 1 layer", Kind::Metadata, &[]).of_kernel(None),
        Row::time("lookup-16", "lookup, cold, 16 layers", Kind::Metadata, &[]).of_kernel(None),
        Row::time("lookup-64", "lookup, cold, 64 layers", Kind::Metadata, &[]).of_kernel(None),
        Row::time("lookup-128", "lookup, cold, 128 layers", Kind::Metadata, &[overlayfs(8.0)]).of_kernel(None),
        Row::time("lookup-500", "lookup, cold, 500 layers", Kind::Metadata, &[Goal::Growth("lookup-1", 1.1)])
            .of_kernel(None),
        Row::time("absent-1", "lookup of what is absent, cold, 1 layer", Kind::Metadata, &[]).of_kernel(None),
        Row::time("absent-16", "lookup of what is absent, cold, 16 layers", Kind::Metadata, &[]).of_kernel(None),
        Row::time("absent-64", "lookup of what is absent, cold, 64 layers", Kind::Metadata, &[]).of_kernel(None),
        Row::time("absent-128", "lookup of what is absent, cold, 128 layers", Kind::Metadata, &[overlayfs(8.0)])
            .of_kernel(None),
        Row::time(
            "absent-500",
            "lookup of what is absent, cold, 500 layers",
            Kind::Metadata,
            &[Goal::Growth("absent-1", 1.1)],
        )
        .of_kernel(None),
    ],
    run,
};

/// Numbers of layers, and the rows of each.
pub const DEPTHS: [(u32, &str, &str); 5] = [
    (1, "lookup-1", "absent-1"),
    (16, "lookup-16", "absent-16"),
    (64, "lookup-64", "absent-64"),
    (128, "lookup-128", "absent-128"),
    (500, "lookup-500", "absent-500"),
];
const NAMES: u32 = 1000;
const OWN: u32 = 10;

fn run(stage: &Stage<'_>) -> Result {
    for (depth, lookup, absent) in DEPTHS {
        if stage.subject() == Subject::Directory && depth > 1 {
            for row in [lookup, absent] {
                stage.lacks(row, "no layers");
            }
            continue;
        }
        let depth = if depth == 1 { 1 } else { stage.of(depth) };
        let lower = stage.lower(&format!("depth-{depth}"), |folder| stack(folder, depth))?;
        let place = stage.place(&lower, Upper::Disk)?;
        drop_caches()?;
        let mount = place.mount()?;
        let paths = |kind: char| -> Result<Vec<CString>> {
            (0..NAMES).map(|name| c_path(&mount.path(format!("d/{kind}{name:03}")))).collect()
        };
        let (there, not_there) = (paths('n')?, paths('x')?);
        stage.time(lookup, NAMES, || {
            for path in &there {
                statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        });
        stage.time(absent, NAMES, || {
            for path in &not_there {
                let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
                ensure_eq!(found.map(drop), Err(Errno::NOENT), "stat of what is absent");
            }
            Ok(())
        });
        mount.end()?;
    }
    Ok(())
}

/// Layers below `folder`, whose names are short: fuse-overlayfs takes them all on one line.
pub fn stack(folder: &Path, depth: u32) -> Result<Lower> {
    let mut dirs = Vec::new();
    for layer in 0..depth {
        let dir = folder.join(layer.to_string());
        fs::create_dir_all(dir.join("d"))?;
        let bottom = layer + 1 == depth;
        for name in 0..if bottom { NAMES } else { OWN } {
            let name = if bottom { format!("d/n{name:03}") } else { format!("d/l{layer}-{name}") };
            fs::write(dir.join(&name), name.as_bytes())?;
        }
        dirs.push(dir);
    }
    Lower::layers(dirs, &format!("depth-{depth}"), &folder.join("layout"))
}
