//! Mounts by FUSE: a union of the snapshot's tree and folder, served by this process, held by the keeper.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_fs::diff::write_diff;
use mica_fs::keeper::Keeper;
use mica_fs::lower::{Lower, TreeLower};
use mica_fs::session::{MountOptions, Session};
use mica_fs::upper::METACOPY_ABOVE;
use mica_fs::{Below, Format, Objects, Union, Upper};
use mica_layerdb::Store;
use mica_layerdb::tar::write_tree;
use mica_layerdb::tree::Tree;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::place::{detach, is_mountpoint, make_folder, remove_mountpoint};
use super::watch::Watch;
use super::{Mounted, Mounter, Plan, Resolve};
use crate::config::Verify;
use crate::error::{Error, Result};

/// What the keeper calls the mount of snapshot 7: `snapshot-7`.
const ID: &str = "snapshot-";

/// Mounts by FUSE, below one state folder.
#[derive(Debug)]
pub struct FuseMounter {
    mounts: PathBuf,
    keeper: Mutex<Arc<Keeper>>,
    /// Socket and program of a keeper that is a process of its own.
    process: Option<(PathBuf, PathBuf)>,
    objects: Arc<Objects>,
    format: Format,
    options: MountOptions,
}

impl FuseMounter {
    /// Mounts below `state`/mnt. `program` is this program's file, which also serves as the keeper of connections.
    pub fn new(state: &Path, store: &Arc<Store>, program: &Path) -> Result<FuseMounter> {
        let socket = state.join("keeper.sock");
        make_folder(&state.join("mnt"))?;
        let keeper = Arc::new(start(&socket, program)?);
        let mounter = FuseMounter::with_keeper(state, store, keeper)?;
        Ok(FuseMounter { process: Some((socket, program.to_path_buf())), ..mounter })
    }

    /// [`FuseMounter::new`] with a keeper that is not started anew when it dies.
    pub fn with_keeper(state: &Path, store: &Arc<Store>, keeper: Arc<Keeper>) -> Result<FuseMounter> {
        let mounts = state.join("mnt");
        make_folder(&mounts)?;
        let objects = Objects::sealed(store.objects_path()).map_err(fs_error("seal the objects"))?;
        let objects = objects.watched_by(Arc::new(Watch::new(store)));
        Ok(FuseMounter {
            mounts,
            keeper: Mutex::new(keeper),
            process: None,
            objects: Arc::new(objects),
            format: Format::detect(),
            options: MountOptions::default(),
        })
    }

    /// The same; the kernel may read and write file data itself where it can, or not.
    #[must_use]
    pub fn with_passthrough(mut self, passthrough: bool) -> FuseMounter {
        self.options.passthrough = passthrough;
        self
    }

    /// The same; objects are compared with their digests before they are served for the first time, or not.
    #[must_use]
    pub fn with_verification(self, verify: Verify) -> FuseMounter {
        if verify == Verify::FirstUse {
            self.objects.verify_first_use();
        }
        self
    }

    fn keeper(&self) -> Arc<Keeper> {
        Arc::clone(&self.keeper.lock())
    }

    /// Starts a new keeper if the last one has died; says whether it did. Mounts that somebody serves live on.
    fn revive_keeper(&self) -> bool {
        let mut keeper = self.keeper.lock();
        let Some((socket, program)) = &self.process else { return false };
        if keeper.held().is_ok() {
            return false;
        }
        match start(socket, program) {
            Ok(started) => *keeper = Arc::new(started),
            Err(error) => tracing::error!(%error, "the keeper has died"),
        }
        true
    }

    fn attach(&self, plan: &Plan) -> mica_fs::Result<Session> {
        let union = self.union(plan)?;
        union.begin()?;
        Session::mount(&self.keeper(), &id(plan.number), &self.mountpoint(plan.number), union, &self.options)
    }

    fn union(&self, plan: &Plan) -> mica_fs::Result<Arc<Union>> {
        let upper = plan.writable.as_deref().map(|folder| self.upper(folder, "work")).transpose()?;
        let lower = lazily(plan.number, Arc::clone(&plan.lower), Arc::clone(&self.objects));
        Ok(Arc::new(Union::new(lower, upper)?))
    }

    fn upper(&self, folder: &Path, work: &str) -> mica_fs::Result<Upper> {
        let upper = Upper::open(&folder.join("upper"), &folder.join(work), self.format)?;
        Ok(upper.with_fresh_root().with_metacopy(METACOPY_ABOVE))
    }

    /// Puts what a writable folder holds into words that overlayfs knows: the kernel is to mount it, and nobody else has it mounted.
    pub(super) fn hand_over(&self, lower: Arc<Tree>, folder: &Path) -> Result<()> {
        let below = Below::Ready(Arc::new(self.lower(lower)));
        let handed = self.upper(folder, "work").and_then(|upper| {
            let union = Union::new(below, Some(upper))?;
            union.begin()?;
            union.hand_over()
        });
        handed.map_err(fs_error(format!("open {}", folder.display())))
    }

    /// Whether contents are compared with their digests before they are served.
    pub(super) fn is_verifying(&self) -> bool {
        self.objects.is_verifying()
    }

    fn lower(&self, tree: Arc<Tree>) -> TreeLower {
        TreeLower::new(tree, Arc::clone(&self.objects))
    }
}

impl Mounter for FuseMounter {
    fn mountpoint(&self, number: u64) -> PathBuf {
        self.mounts.join(number.to_string())
    }

    fn mount(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        let mountpoint = self.mountpoint(plan.number);
        make_folder(&mountpoint)?;
        let session = match self.attach(&plan) {
            Err(mica_fs::Error::Keeper { .. }) if self.revive_keeper() => self.attach(&plan),
            attached => attached,
        };
        let mounted = serve(plan.number, session);
        if mounted.is_err() {
            remove_mountpoint(&mountpoint)?;
        }
        mounted
    }

    fn resume(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        let union = self.union(&plan);
        let resumed = union.and_then(|union| Session::resume(&self.keeper(), &id(plan.number), union, &self.options));
        serve(plan.number, resumed)
    }

    fn left(&self) -> Result<Vec<u64>> {
        let held = self.keeper().held().map_err(fs_error("ask the keeper"))?;
        let ready = held.into_iter().filter(|held| held.ready);
        Ok(ready.filter_map(|held| held.id.strip_prefix(ID)?.parse().ok()).collect())
    }

    fn mountpoints(&self) -> Result<Vec<u64>> {
        let action = || format!("read {}", self.mounts.display());
        let mut numbers = HashSet::new();
        for entry in fs::read_dir(&self.mounts).map_err(Error::io(action()))? {
            let name = entry.map_err(Error::io(action()))?.file_name();
            numbers.extend(std::str::from_utf8(name.as_encoded_bytes()).ok().and_then(|name| name.parse::<u64>().ok()));
        }
        let held = self.keeper().held().map_err(fs_error("ask the keeper"))?;
        numbers.extend(held.into_iter().filter_map(|held| held.id.strip_prefix(ID)?.parse::<u64>().ok()));
        Ok(numbers.into_iter().collect())
    }

    fn discard(&self, number: u64) -> Result<()> {
        let mountpoint = self.mountpoint(number);
        detach(&mountpoint)?;
        remove_mountpoint(&mountpoint)?;
        match self.keeper().forget(&id(number)) {
            // One that has died keeps nothing.
            Err(mica_fs::Error::Keeper { .. }) if self.revive_keeper() => Ok(()),
            told => told.map_err(fs_error("tell the keeper")),
        }
    }

    fn finish(&self, lower: Arc<Tree>, folder: &Path) -> Result<()> {
        let below = Below::Ready(Arc::new(self.lower(lower)));
        // A new union of it does what an earlier one owes.
        let union = self.upper(folder, "work").and_then(|upper| Union::new(below, Some(upper)));
        union.map(drop).map_err(fs_error(format!("open {}", folder.display())))
    }

    fn write_changes(&self, lower: Arc<Tree>, folder: &Path, out: &mut dyn Write) -> Result<u64> {
        tell_changes(&self.objects, self.format, lower, folder, out)
    }

    fn write_layer(&self, layer: Arc<Tree>, out: &mut dyn Write) -> Result<()> {
        let open = |id| {
            let opened = self.objects.open_unverified(id);
            opened.map_err(|error| mica_layerdb::Error::io(format!("open object {id}"))(error.errno().into()))
        };
        Ok(write_tree(&layer, &open, out).map(drop)?)
    }

    fn stop(&self) -> Result<()> {
        self.keeper().stop().map_err(fs_error("stop the keeper"))
    }
}

/// Writes what a writable folder changes in `lower`; its mount may be in use.
fn tell_changes(
    objects: &Arc<Objects>,
    format: Format,
    lower: Arc<Tree>,
    folder: &Path,
    out: &mut dyn Write,
) -> Result<u64> {
    // Another work folder than that of the mount.
    match fs::create_dir(folder.join("look")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io(format!("create {}", folder.join("look").display()))(error));
        }
        _ => {}
    }
    let upper = Upper::open(&folder.join("upper"), &folder.join("look"), format)
        .and_then(|upper| upper.with_fresh_root().with_maps_of(&folder.join("work")));
    let lower = TreeLower::new(lower, Arc::clone(objects));
    let written = upper.and_then(|upper| write_diff(&lower, &upper, out));
    Ok(written.map_err(fs_error(format!("read the changes in {}", folder.display())))?.entries)
}

/// Mounts nothing: tells what is in folders, for a store that no daemon serves.
#[derive(Debug)]
pub(crate) struct Unmounted {
    objects: Arc<Objects>,
    format: Format,
}

impl Unmounted {
    pub(crate) fn new(store: &Store) -> Result<Unmounted> {
        let objects = Objects::sealed(store.objects_path()).map_err(fs_error("seal the objects"))?;
        Ok(Unmounted { objects: Arc::new(objects), format: Format::detect() })
    }

    fn refuse<T>() -> Result<T> {
        Err(Error::Unavailable { reason: "no daemon serves this store".into() })
    }
}

impl Mounter for Unmounted {
    fn mountpoint(&self, number: u64) -> PathBuf {
        PathBuf::from(number.to_string())
    }

    fn mount(&self, _plan: Plan) -> Result<Box<dyn Mounted>> {
        Unmounted::refuse()
    }

    fn resume(&self, _plan: Plan) -> Result<Box<dyn Mounted>> {
        Unmounted::refuse()
    }

    fn left(&self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }

    fn mountpoints(&self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }

    fn discard(&self, _number: u64) -> Result<()> {
        Unmounted::refuse()
    }

    fn write_changes(&self, lower: Arc<Tree>, folder: &Path, out: &mut dyn Write) -> Result<u64> {
        tell_changes(&self.objects, self.format, lower, folder, out)
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct FuseMount {
    session: Session,
}

impl Mounted for FuseMount {
    fn is_live(&self) -> bool {
        !self.session.has_ended() && is_mountpoint(self.session.mountpoint())
    }

    fn has_ended(&self) -> bool {
        self.session.has_ended()
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        self.session.try_unmount(true).map_err(fs_error("unmount"))?;
        remove_mountpoint(self.session.mountpoint())?;
        self.session.wait();
        Ok(())
    }

    fn leave(self: Box<Self>) {
        self.session.leave();
    }
}

fn serve(number: u64, session: mica_fs::Result<Session>) -> Result<Box<dyn Mounted>> {
    match session {
        Ok(session) => Ok(Box::new(FuseMount { session })),
        Err(error) => Err(Error::Mount { number, reason: error.to_string() }),
    }
}

fn start(socket: &Path, program: &Path) -> Result<Keeper> {
    Keeper::connect_or_start(socket, program).map_err(fs_error("start the keeper"))
}

fn id(number: u64) -> String {
    format!("{ID}{number}")
}

fn lazily(number: u64, resolve: Resolve, objects: Arc<Objects>) -> Below {
    Below::Lazy(Box::new(move || match resolve() {
        Ok(base) => Ok(Arc::new(TreeLower::new(base.tree, Arc::clone(&objects))) as Arc<dyn Lower>),
        Err(error) => {
            tracing::error!(number, %error, "a mount has no lower");
            Err(mica_fs::Error::Unavailable { reason: error.to_string(), errno: Errno::IO })
        }
    }))
}

pub(super) fn fs_error(action: impl Into<String>) -> impl FnOnce(mica_fs::Error) -> Error {
    let action = action.into();
    move |source| Error::Fs { action, source }
}
