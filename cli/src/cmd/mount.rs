//! `mica mount`
//!
//! The process that serves a mount holds its connection itself: when it ends, so does the mount. Without `-f` that is a
//! second process, which this one starts and waits for until the mount answers.
//!
//! An image is mounted without its store being open, so a daemon may come and go meanwhile: whoever has the store
//! prepares the image's merged tree and pins its layers; the serving process reads the sealed files. See
//! `admin::ImageLock`.

mod kernel;

use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use mica_fs::Claim;
use mica_fs::keeper::Keeper;
use mica_fs::mount::{union_of_branches, union_of_dirs, union_of_image};
use mica_fs::options::Options;
use mica_fs::served::Served;
use mica_fs::session::Session;
use mica_fs::{Branches, Objects, Owners};
use mica_layerdb::tree::Tree;
use mica_snapshotter::admin::{Call, ImageLock, MountableImage};
use mica_snapshotter::config::Verify;
use rustix::fs::{Mode, OFlags};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Context, helper};
use crate::args::Mount;
use crate::backend::Backend;
use crate::control::Control;
use crate::mounts::{Note, Written};
use crate::{Failure, output};

/// Set for the second process.
const BACKGROUND: &str = "MICA_MOUNT_BACKGROUND";
/// What it says when the mount answers.
const READY: &[u8] = b"ready\n";

/// Whether another process has read the command line before, and told what is to be told of it.
pub fn is_second_process() -> bool {
    std::env::var_os(BACKGROUND).is_some()
}

/// Mounts.
pub fn run(context: &Context, arguments: &Mount) -> Result<(), Failure> {
    mount(context, arguments, &options(arguments)?)
}

/// Mounts with options that have been read already.
pub fn mount(context: &Context, arguments: &Mount, options: &Options) -> Result<(), Failure> {
    let mountpoint = mountpoint(arguments)?;
    let background = is_second_process();
    if arguments.foreground || background {
        serve(context, arguments, options, &mountpoint, background)
    } else {
        start()
    }
}

/// What the command line says, and whether it makes sense.
fn options(arguments: &Mount) -> Result<Options, Failure> {
    let usage = |error: mica_fs::Error| Failure::Usage(error.to_string());
    let mut options = Options::default();
    if let Some(source) = arguments.source().and_then(|source| source.to_owned().into_os_string().into_string().ok()) {
        options.mount.fsname = source;
    } else if let Some(image) = &arguments.image {
        options.mount.fsname.clone_from(image);
    }
    for text in &arguments.options {
        options.parse(text.as_bytes()).map_err(usage)?;
    }
    for branch in &arguments.branches {
        options.parse(&[b"branch=", &*escaped(branch.as_bytes())].concat()).map_err(usage)?;
    }
    if let Some(policy) = &arguments.create {
        options.parse(format!("create={policy}").as_bytes()).map_err(usage)?;
    }
    options.check().map_err(usage)?;
    match &arguments.image {
        None if options.lower.is_empty() && options.branches.is_empty() => {
            Err(Failure::Usage("what to mount? `-o lowerdir=A:B` names directories, `--image REF` an image".to_owned()))
        }
        Some(_) if options.owners != Owners::Disk => {
            Err(Failure::Usage("xattr_permissions: an image of the store has its owners itself".to_owned()))
        }
        Some(_) if !options.lower.is_empty() || options.upper.is_some() || !options.branches.is_empty() => {
            let text = "an image is mounted with `--rw DIR`, not with lowerdir, upperdir or branches";
            Err(Failure::Usage(text.to_owned()))
        }
        _ => Ok(options),
    }
}

/// What means something in the text of options is only itself.
fn escaped(word: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(word.len());
    for byte in word {
        if matches!(byte, b'\\' | b',' | b'"') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

fn mountpoint(arguments: &Mount) -> Result<PathBuf, Failure> {
    let given = arguments.mountpoint();
    let wrong = |reason: String| Failure::text(format!("can't mount at {}: {reason}", given.display()));
    let path = std::fs::canonicalize(given).map_err(|error| wrong(error.to_string()))?;
    if path.is_dir() { Ok(path) } else { Err(wrong("it is not a directory".to_owned())) }
}

/// Starts the second process and returns when it has mounted.
fn start() -> Result<(), Failure> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        // What it was called decides how the rest is read.
        .arg0(name)
        .args(arguments)
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = [0; READY.len()];
    let ready = child.stdout.take().is_some_and(|mut out| out.read_exact(&mut said).is_ok() && said == READY);
    if ready {
        return Ok(());
    }
    // It has told the reason itself, on the standard error that it shares with this process.
    child.wait()?;
    Err(Failure::Said)
}

fn serve(
    context: &Context,
    arguments: &Mount,
    options: &Options,
    mountpoint: &Path,
    background: bool,
) -> Result<(), Failure> {
    if background {
        rustix::process::setsid()?;
    }
    // Modes are what programs in the mount ask for.
    rustix::process::umask(Mode::empty());
    let wait = Wait { background };
    let prepared = arguments.image.as_deref().map(|image| prepare(context, arguments, image)).transpose()?;
    let mut branches = None;
    let union: Arc<dyn Served> = match &prepared {
        Some(prepared) if kernel::serve(context, arguments, options, prepared, mountpoint, wait)? => return Ok(()),
        Some(prepared) => {
            let changes = prepared.changes.as_deref();
            let how = options.block_copy;
            Arc::new(union_of_image(prepared.tree()?, prepared.objects()?, changes, Claim::Strict, how)?)
        }
        None if options.branches.is_empty() => Arc::new(union_of_dirs(options)?),
        None => {
            // A descriptor for each file that the kernel knows.
            helper::raise_limit();
            branches.insert(Arc::new(union_of_branches(options)?)).clone()
        }
    };
    let signals = Signals::catch()?;
    let id = format!("{}", std::process::id());
    let session = Session::mount(&Keeper::in_process(), &id, mountpoint, union, &options.mount)?;
    let session = Arc::new(session);
    let ending = Arc::downgrade(&session);
    signals.end(move |lazy| ending.upgrade().map_or(Ok(()), |session| session.try_unmount(lazy)))?;
    let note = leave_note(context, mountpoint);
    let control = match (branches, &note) {
        (Some(branches), Some(note)) => control(note, branches, &session),
        _ => None,
    };
    ready(wait)?;
    session.wait();
    // Whoever unmounts may want to unmount next what the layers are on.
    drop((control, session));
    drop((note, prepared));
    Ok(())
}

/// Whether somebody waits for the mount to answer.
#[derive(Clone, Copy)]
struct Wait {
    background: bool,
}

/// Leaves a note of a mount that answers.
fn leave_note(context: &Context, mountpoint: &Path) -> Option<Written> {
    let note = Note { pid: std::process::id(), mountpoint: mountpoint.to_path_buf() }.write(&context.state());
    match &note {
        // Without privilege there may be no such folder; engines, which end their mounts themselves, need none.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::debug!(%error, "no note of this mount");
        }
        Err(error) => tracing::warn!(%error, "`mica umount --all` will not know of this mount"),
        Ok(_) => {}
    }
    note.ok()
}

/// Lets the branches of a mount be changed.
fn control(note: &Written, branches: Arc<Branches>, session: &Arc<Session>) -> Option<Control> {
    let control = Control::serve(note.path(), branches, Arc::clone(session));
    control.inspect_err(|error| tracing::warn!(%error, "`mica branch` can't reach this mount")).ok()
}

/// Tells who waits for the mount to answer.
fn ready(wait: Wait) -> Result<(), Failure> {
    rustix::process::chdir("/")?;
    if wait.background {
        say_ready()?;
    }
    Ok(())
}

/// An image that is about to be mounted, and what keeps its layers.
struct Prepared {
    found: MountableImage,
    verify: Verify,
    changes: Option<PathBuf>,
    _lock: ImageLock,
}

fn prepare(context: &Context, arguments: &Mount, image: &str) -> Result<Prepared, Failure> {
    let root = context.root();
    let backend = Backend::of(&root)?;
    let lock = ImageLock::take(&root)?;
    let call = Call::ImageMount { reference: image.to_owned(), lock: lock.id().to_owned() };
    let found: MountableImage = backend.call(call, &())?;
    let verify = arguments.verify.as_deref().and_then(Verify::named).unwrap_or(found.verify);
    let changes = arguments.rw.as_deref().map(std::path::absolute).transpose()?;
    Ok(Prepared { found, verify, changes, _lock: lock })
}

impl Prepared {
    fn tree(&self) -> Result<Arc<Tree>, Failure> {
        let MountableImage { tree, image, .. } = &self.found;
        let file = std::fs::File::open(tree)
            .map_err(|error| Failure::text(format!("can't open {}: {error}", tree.display())))?;
        Ok(Arc::new(Tree::open(&file, &image.name)?))
    }

    fn objects(&self) -> Result<Arc<Objects>, Failure> {
        let objects = Arc::new(Objects::sealed(&self.found.objects)?);
        if self.verify == Verify::FirstUse {
            objects.verify_first_use();
        }
        Ok(objects)
    }
}

/// Tells the first process, and lets go of everything it shares with this one.
fn say_ready() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(READY)?;
    out.flush()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// SIGTERM, SIGINT and SIGHUP, which end a mount in an orderly way.
struct Signals {
    runtime: tokio::runtime::Runtime,
    signals: [Signal; 3],
}

impl Signals {
    /// From now on they do nothing else.
    fn catch() -> Result<Signals, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _entered = runtime.enter();
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]
        };
        Ok(Signals { runtime, signals })
    }

    /// The first one unmounts: a mount that is in use is served until its last user is gone. The second one ends this
    /// process, and programs in the mount get errors.
    fn end(self, unmount: impl Fn(bool) -> mica_fs::Result<()> + Send + 'static) -> Result<(), Failure> {
        let Signals { runtime, signals: [mut terminate, mut interrupt, mut hangup] } = self;
        std::thread::Builder::new().name("mica-signals".to_owned()).spawn(move || {
            let mut any = || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {}
                    }
                });
            };
            any();
            if unmount(false).is_err()
                && let Err(error) = unmount(true)
            {
                output::complain(&format!("mica: {error}"));
            }
            any();
            std::process::exit(1);
        })?;
        Ok(())
    }
}
