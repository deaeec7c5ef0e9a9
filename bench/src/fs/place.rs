//! Where one subject works: what it is mounted over, what takes its changes, and its mounts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mica_tests::command::{line_of, succeed};
use mica_tests::wait::{self, LATER, SOON};
use mica_tests::{Context as _, Result, ensure, fail};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, mount_bind, move_mount, unmount,
};

use super::lower::Lower;
use super::subject::{Subject, Way};
use super::tools::Tools;
use super::watch::Watch;

/// What takes the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nothing: the mount is read-only.
    None,
    /// A directory on the disk.
    Disk,
    /// A directory in memory (tmpfs).
    Memory,
}

/// A folder of one subject, with what takes its changes; empty at first.
pub struct Place<'a> {
    subject: Subject,
    tools: &'a Tools,
    watch: &'a Watch,
    lower: Rc<Lower>,
    upper: Upper,
    folder: PathBuf,
    root: PathBuf,
}

impl<'a> Place<'a> {
    /// A new one in the new `folder`, which shows at `root`. Where there is no union, a writable place has a copy of the files.
    pub fn new(
        subject: Subject,
        tools: &'a Tools,
        watch: &'a Watch,
        lower: Rc<Lower>,
        upper: Upper,
        folder: PathBuf,
        root: PathBuf,
    ) -> Result<Place<'a>> {
        for part in ["files", "rw/upper", "rw/work"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::create_dir_all(&root)?;
        let place = Place { subject, tools, watch, lower, upper, folder, root };
        if subject == Subject::Directory && upper != Upper::None {
            for dir in place.lower.dirs.iter().rev() {
                succeed(Command::new("cp").arg("-a").arg(dir.join(".")).arg(place.files()), LATER)?;
            }
        }
        Ok(place)
    }

    /// What it is mounted over.
    pub fn lower(&self) -> &Lower {
        &self.lower
    }

    /// What holds `upper` and `work`, if it can be written to.
    pub fn writable(&self) -> Option<PathBuf> {
        (self.upper != Upper::None).then(|| self.folder.join("rw"))
    }

    /// The options of overlayfs and fuse-overlayfs.
    pub fn options(&self) -> OsString {
        let mut text = OsString::from("lowerdir=");
        for (number, dir) in self.lower.dirs.iter().enumerate() {
            text.push(if number == 0 { "" } else { ":" });
            text.push(dir);
        }
        if let Some(writable) = self.writable() {
            for (option, part) in [(",upperdir=", "upper"), (",workdir=", "work")] {
                text.push(option);
                text.push(writable.join(part));
            }
        }
        text
    }

    /// Where the files are copied to.
    fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Mounts.
    pub fn mount(&self) -> Result<Mount<'_>> {
        let root = &self.root;
        let start = Instant::now();
        let server = match self.subject.way(self.tools, self, root)? {
            Way::Bind => {
                let files = match (self.upper, self.lower.dirs.as_slice()) {
                    (Upper::None, [only]) => only.clone(),
                    (Upper::None, _) => fail!("several directories are no single one without a union"),
                    _ => self.files(),
                };
                mount_bind(files, root)?;
                None
            }
            Way::Kernel(features) => {
                overlay(self, features, root).context("mount overlayfs")?;
                None
            }
            Way::Server(mut command) => Some(serve(&mut command, root, self.watch)?),
        };
        Ok(Mount { root: root.clone(), server, mounted: true, watch: self.watch, took: start.elapsed() })
    }

    /// Deletes all, now.
    pub fn delete(self) -> Result {
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

/// A mount. Dropped, it is unmounted and its server ended.
pub struct Mount<'a> {
    root: PathBuf,
    server: Option<Child>,
    mounted: bool,
    watch: &'a Watch,
    took: Duration,
}

impl Mount<'_> {
    /// What programs see.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// The process that serves it.
    pub fn server(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// How long it took to mount.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Unmounts; the server has to end by itself.
    pub fn end(mut self) -> Result {
        self.finish()
    }

    fn finish(&mut self) -> Result {
        if std::mem::take(&mut self.mounted) {
            wait::until("the mount to be unused", SOON, || match unmount(&self.root, UnmountFlags::empty()) {
                Ok(()) => Ok(Some(())),
                Err(rustix::io::Errno::BUSY) => Ok(None),
                Err(error) => fail!("unmount {}: {error}", self.root.display()),
            })?;
        }
        if let Some(server) = &mut self.server {
            let status = wait::until("the server of a mount to end", SOON, || Ok(server.try_wait()?))?;
            self.watch.forget(server.id());
            self.server = None;
            ensure!(status.success(), "the server of {} ended with {status}", self.root.display());
        }
        Ok(())
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if self.finish().is_ok() {
            return;
        }
        // After a failure: whoever still uses it gets errors.
        if let Some(mut server) = self.server.take() {
            self.watch.forget(server.id());
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = unmount(&self.root, UnmountFlags::DETACH);
    }
}

/// Mounts overlayfs by the newer calls, which take layers one by one: mount(2) has one page for all options.
fn overlay(place: &Place<'_>, features: &[(&str, &str)], root: &Path) -> Result {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for dir in &place.lower.dirs {
        fsconfig_set_string(&context, "lowerdir+", dir).context(dir.display())?;
    }
    if place.upper == Upper::None && place.lower.dirs.len() == 1 {
        // It wants two layers where it has no upper.
        fsconfig_set_string(&context, "lowerdir+", place.folder.join("rw/work"))?;
    }
    if let Some(writable) = place.writable() {
        fsconfig_set_string(&context, "upperdir", writable.join("upper"))?;
        fsconfig_set_string(&context, "workdir", writable.join("work"))?;
        for (name, value) in features {
            fsconfig_set_string(&context, *name, *value)?;
        }
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mount, "", rustix::fs::CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// What statfs(2) says of EROFS.
const EROFS: rustix::fs::FsWord = 0xE0F5_E1E2;

/// Starts a server and waits until its mount answers.
fn serve(command: &mut Command, root: &Path, watch: &Watch) -> Result<Child> {
    let below = fs::metadata(root)?.dev();
    let log = tempfile::tempfile()?;
    let line = line_of(command);
    // Ctrl-C ends this program, which then unmounts: servers are not to end before.
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?).process_group(0).spawn();
    let mut child = child.context(format!("start `{line}`"))?;
    watch.add(child.id());
    let waited = wait::until("a mount", SOON, || {
        if let Some(status) = child.try_wait()? {
            fail!("`{line}` ended with {status}: {}", said(&log)?);
        }
        // The kernel form mounts the tree first, and what shows on top of it.
        let shows = fs::metadata(root)?.dev() != below && rustix::fs::statfs(root)?.f_type != EROFS;
        Ok(shows.then_some(()))
    });
    if waited.is_err() {
        watch.forget(child.id());
        let _ = child.kill();
        let _ = child.wait();
    }
    waited.map(|()| child)
}

fn said(mut log: &fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut text = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut text)?;
    Ok(mica_tests::command::tail(&String::from_utf8_lossy(&text), 3))
}
