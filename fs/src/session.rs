//! A mount being served: made anew, or taken over from a server that is gone.
//!
//! Both are one code path. A new connection starts with the kernel's INIT message, which `fuser` insists on reading.
//! The session reads it from the device itself, plays it to `fuser` through a socket, hands `fuser`'s answer to the
//! kernel and leaves both with the keeper; then it puts the device in the socket's place. For a takeover the saved
//! INIT is played again, the answer must be the saved one, and the kernel is told to send again what the earlier
//! server has read and not answered, before anybody reads (a request that comes twice: see `fuse/names.rs`).
//!
//! All threads read one descriptor: requests that were read through a cloned one end with it, so programs would see
//! errors when a server is killed. `fuser` never owns the mount and ends none.

mod handshake;
pub(crate) mod ledger;
pub(crate) mod notify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{Error, Result};
use crate::fuse::{Adapter, Serving, Shown};
use crate::fusermount::unmount;
use crate::inode::Ino;
use crate::keeper::{Attach, Connection, Keeper};
use crate::served::Served;

/// How long an unmount waits for the last request of a mount that nobody sees any more.
const LAST: Duration = Duration::from_secs(5);

/// How a union is mounted and served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed. So are unions without an upper, whatever this says.
    pub read_only: bool,
    /// Whether the kernel may read and write backing files itself, where it can.
    pub passthrough: bool,
    /// What `findmnt` shows as source.
    pub fsname: String,
    /// What `findmnt` shows behind `fuse.` as type.
    pub subtype: String,
    /// How many threads serve the mount.
    pub threads: usize,
    /// Whether other users than the one who mounts may enter.
    pub allow_other: bool,
    /// nosuid, nodev, noexec and the treatment of access times. None of them by default: a container's root needs what
    /// they take away.
    pub attributes: MountAttrFlags,
    /// Security labels for all files: options of the kernel and their values.
    pub labels: Vec<(String, String)>,
    /// What programs see of owners, attributes and syncs.
    pub shown: Shown,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        let threads = std::thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16));
        MountOptions {
            read_only: false,
            passthrough: true,
            fsname: "mica".to_owned(),
            subtype: "mica".to_owned(),
            threads,
            // Without privilege it takes leave of the machine's administrator (fuse.conf).
            allow_other: rustix::process::geteuid().is_root(),
            attributes: MountAttrFlags::empty(),
            labels: Vec::new(),
            shown: Shown::default(),
        }
    }
}

/// A mount that this process serves. Dropping it changes nothing: it is served until it is unmounted, this process
/// ends, or [`Session::leave`].
#[derive(Debug)]
pub struct Session {
    id: String,
    mountpoint: PathBuf,
    serving: Arc<Serving>,
    ended: Arc<Ended>,
}

/// Whether the connection is gone.
#[derive(Debug, Default)]
struct Ended {
    ended: Mutex<bool>,
    signal: Condvar,
}

/// What a session does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Open files and directories; none in a read-only mount, which is not told.
    pub handles: usize,
    /// Inodes whose data the kernel reads and writes in the upper itself.
    pub upper_passthrough: usize,
    /// Inodes whose data the kernel reads in the lower itself.
    pub lower_passthrough: usize,
}

impl Session {
    /// Mounts `union` at `mountpoint` under the name `id` and serves it; the mount answers when this returns.
    pub fn mount(
        keeper: &Keeper,
        id: &str,
        mountpoint: &Path,
        union: Arc<dyn Served>,
        options: &MountOptions,
    ) -> Result<Session> {
        union.begin()?;
        let attach = Attach {
            fsname: options.fsname.clone(),
            subtype: options.subtype.clone(),
            read_only: options.read_only || union.is_read_only(),
            allow_other: options.allow_other,
            attributes: options.attributes.bits(),
            labels: options.labels.clone(),
        };
        let connection = keeper.mount(id, mountpoint, &attach)?;
        Session::start(keeper, id, connection, union, options).inspect_err(|_| {
            // Nobody answers there, so nobody may find it.
            let _ = unmount(mountpoint, true);
            let _ = keeper.forget(id);
        })
    }

    /// Goes on serving what an earlier server mounted under the name `id`. `union` must be made of the same
    /// directories or layers, `options` must say the same.
    pub fn resume(keeper: &Keeper, id: &str, union: Arc<dyn Served>, options: &MountOptions) -> Result<Session> {
        let connection = keeper.take(id)?;
        union.recover()?;
        Session::start(keeper, id, connection, union, options)
    }

    fn start(
        keeper: &Keeper,
        id: &str,
        connection: Connection,
        union: Arc<dyn Served>,
        options: &MountOptions,
    ) -> Result<Session> {
        let Connection { device, ledger, mountpoint, init } = connection;
        let read_only = options.read_only || union.is_read_only();
        let serving = Arc::new(Serving::new(union, &device, ledger, read_only, options)?);
        let save = |init: &_| keeper.save(id, init);
        let session = handshake::establish(&device, Adapter(serving.clone()), init, options.threads.max(1), &save)?;
        let session = Session { id: id.to_owned(), mountpoint, serving, ended: Arc::default() }.run(session, keeper)?;
        Ok(session)
    }

    fn run(self, session: fuser::Session<Adapter>, keeper: &Keeper) -> Result<Session> {
        let (id, ended, keeper) = (self.id.clone(), self.ended.clone(), keeper.reach());
        std::thread::Builder::new().name(format!("mica-{id}")).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, id, "serving ends");
            }
            if let Err(error) = keeper.forget(&id) {
                tracing::debug!(%error, id, "the keeper was not told of an unmount");
            }
            *ended.ended.lock() = true;
            ended.signal.notify_all();
        })?;
        Ok(self)
    }

    /// The name it was mounted under.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it was mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What is open.
    pub fn counts(&self) -> Counts {
        let (upper_passthrough, lower_passthrough) = self.serving.table.counts();
        Counts { handles: self.serving.handles.count(), upper_passthrough, lower_passthrough }
    }

    /// Makes the kernel forget a name; what nobody uses is then given back. To be called without locks of what is served.
    pub fn forget_name(&self, parent: Ino, name: &[u8]) {
        self.serving.forget_name(parent, name);
    }

    /// Unmounts and waits until the connection has ended. `lazy` takes the mount out of sight at once, whoever uses
    /// it, and returns; it is served until the last user is gone. Without, a mount in use is EBUSY.
    pub fn unmount(self, lazy: bool) -> Result<()> {
        self.try_unmount(lazy)
    }

    /// The same, for one who wants to go on after EBUSY.
    pub fn try_unmount(&self, lazy: bool) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        match unmount(&self.mountpoint, lazy) {
            // Not a mountpoint, or gone with its folder: unmounted by somebody else.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => {
                let path = self.mountpoint.display().to_string();
                return Err(Error::Mount { path, reason: format!("can't unmount: {errno}"), errno });
            }
        }
        // Copies of the mount in other namespaces keep the connection alive; whoever has them ends it.
        self.wait_until(Some(Instant::now() + if lazy { Duration::from_millis(100) } else { LAST }));
        self.rest();
        Ok(())
    }

    /// Serves no more requests, once those at hand are answered. The mount stays, with the keeper: its users wait for
    /// the next server. To be called by a process that is about to end.
    pub fn leave(self) {
        self.serving.leave();
        self.serving.union.rest();
    }

    /// Waits until the mount is gone for whatever reason.
    pub fn wait(&self) {
        self.wait_until(None);
        self.rest();
    }

    /// Nothing is done in the background for a mount that is gone.
    fn rest(&self) {
        if self.has_ended() {
            self.serving.union.rest();
        }
    }

    /// Whether the mount is gone.
    pub fn has_ended(&self) -> bool {
        *self.ended.ended.lock()
    }

    fn wait_until(&self, deadline: Option<Instant>) {
        let mut ended = self.ended.ended.lock();
        while !*ended {
            match deadline {
                None => self.ended.signal.wait(&mut ended),
                Some(deadline) if self.ended.signal.wait_until(&mut ended, deadline).timed_out() => return,
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stderr)]
mod tests {
    use super::*;
    use crate::lower::{DirsLower, Format};
    use crate::union::{Below, Union};

    fn served_after(first: impl FnOnce(&Connection)) {
        if !rustix::process::getuid().is_root() || rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK).is_err()
        {
            return eprintln!("mounts are not tested: not root, or no /dev/fuse");
        }
        let place = tempfile::tempdir().unwrap();
        let (lower, mountpoint) = (place.path().join("lower"), place.path().join("mnt"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::create_dir(&mountpoint).unwrap();
        std::fs::write(lower.join("file"), "below").unwrap();
        let keeper = Keeper::in_process();
        let attach = Attach {
            fsname: "mica".to_owned(),
            subtype: "mica".to_owned(),
            read_only: true,
            allow_other: true,
            attributes: 0,
            labels: Vec::new(),
        };
        first(&keeper.mount("one", &mountpoint, &attach).unwrap());
        assert!(!keeper.held().unwrap()[0].ready);

        let lower = DirsLower::open(&[lower], Format::Trusted).unwrap();
        let union = Arc::new(Union::new(Below::Ready(Arc::new(lower)), None).unwrap());
        let session = Session::resume(&keeper, "one", union, &MountOptions::default()).unwrap();
        assert!(keeper.held().unwrap()[0].ready);
        assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"below");
        session.unmount(false).unwrap();
        assert_eq!(keeper.held().unwrap(), []);
    }

    #[test]
    fn connections_that_are_idle_take_little_memory() {
        if !rustix::process::getuid().is_root() || rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK).is_err()
        {
            return eprintln!("mounts are not tested: not root, or no /dev/fuse");
        }
        let anonymous_kib = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let place = tempfile::tempdir().unwrap();
        let keeper = Keeper::in_process();
        let mount = |number: usize| {
            let [lower, mountpoint] = ["lower", "mnt"].map(|name| place.path().join(format!("{name}{number}")));
            std::fs::create_dir(&lower).unwrap();
            std::fs::create_dir(&mountpoint).unwrap();
            let lower = DirsLower::open(&[lower], Format::Trusted).unwrap();
            let union = Arc::new(Union::new(Below::Ready(Arc::new(lower)), None).unwrap());
            Session::mount(&keeper, &number.to_string(), &mountpoint, union, &MountOptions::default()).unwrap()
        };
        mount(0).unmount(false).unwrap();
        let before = anonymous_kib();
        let sessions: Vec<Session> = (1..=16).map(mount).collect();
        let taken = anonymous_kib().saturating_sub(before);
        for session in sessions {
            session.unmount(false).unwrap();
        }
        // Less than 100 KiB each; other tests of this process have theirs. A buffer that is touched has 16 MiB.
        assert!(taken < 64 << 10, "16 idle mounts take {taken} KiB");
    }

    #[test]
    fn a_connection_whose_server_died_before_it_read_init_can_be_resumed() {
        served_after(|_| {});
    }

    #[test]
    fn a_connection_whose_server_died_with_init_in_hand_can_be_resumed() {
        served_after(|connection| {
            let mut message = [0; 8192];
            assert!(rustix::io::read(&connection.device, &mut message).unwrap() > 0);
        });
    }
}
