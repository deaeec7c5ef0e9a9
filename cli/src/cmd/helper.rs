//! `mica` by another name: what calls a mount helper gets the command line it knows.
//!
//! | called as | command line |
//! |---|---|
//! | `fuse-overlayfs` | that program's: `[-f] [-d] [-o OPT[,OPT...]]... [SOURCE] MOUNTPOINT`; unknown options are warned of |
//! | `mount.mica`, `mount.fuse.mica` | mount(8)'s helpers': `SOURCE MOUNTPOINT [-sfnv] [-N NS] [-o OPT[,OPT...]] [-t TYPE]` |
//!
//! Both mount as `mica mount` does, and return when the mount answers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use mica_fs::Claim;
use mica_fs::options::Options;
use mica_fs::session::MountOptions;
use rustix::mount::{MountAttrFlags, MountFlags, mount_remount};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{Context, mount};
use crate::args::Mount;
use crate::{Failure, output};

/// The version of `fuse-overlayfs` whose command line this is.
const SURFACE: &str = "2.0";

const USAGE: &str =
    "usage: fuse-overlayfs [-f] [-d] [-o lowerdir=A:B[,upperdir=U,workdir=W][,OPT...]] [SOURCE] MOUNTPOINT
    -f, --foreground   serve the mount in the foreground
    -d, --debug        the same, and log
    -o OPT[,OPT...]    options of the mount; may be repeated
    -V, --version      print the version
    -h, --help         print this";

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    FuseOverlayfs,
    Mount,
}

/// A command line as a mount helper is given one.
#[derive(Debug)]
pub struct Helper {
    form: Form,
    arguments: Vec<OsString>,
}

/// What a command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    options: Vec<OsString>,
    positional: Vec<PathBuf>,
    foreground: bool,
    debug: bool,
    /// Unknown options are no errors.
    sloppy: bool,
    /// Everything but the mount.
    fake: bool,
    /// Print this and do nothing.
    say: Option<String>,
    ignored: Vec<String>,
}

impl Helper {
    /// The command line of this process, if it was called by a helper's name.
    pub fn called() -> Option<Helper> {
        let mut arguments = std::env::args_os();
        let name = arguments.next()?;
        let form = Form::of(Path::new(&name).file_name()?)?;
        Some(Helper { form, arguments: arguments.collect() })
    }

    /// Mounts.
    pub fn run(self) -> Result<(), Failure> {
        let line = match self.form {
            Form::FuseOverlayfs => fuse_overlayfs(self.arguments),
            Form::Mount => mount_helper(self.arguments),
        }
        .map_err(Failure::Usage)?;
        if let Some(text) = &line.say {
            return Ok(output::line(text)?);
        }
        let mut options = Options::default();
        let mut ignored = line.ignored;
        let name = match self.form {
            Form::FuseOverlayfs => "fuse-overlayfs",
            Form::Mount => "mica",
        };
        if self.form == Form::FuseOverlayfs {
            options.adopt = true;
            // Engines mount a container's upper again while somebody still holds the last mount of it.
            options.claim = Claim::Tolerant;
        }
        name.clone_into(&mut options.mount.subtype);
        name.clone_into(&mut options.mount.fsname);
        if let (Form::Mount, [source, _]) = (self.form, &line.positional[..])
            && let Ok(source) = source.clone().into_os_string().into_string()
        {
            options.mount.fsname = source;
        }
        for text in &line.options {
            ignored.extend(options.take(text.as_bytes()).map_err(|error| Failure::text(error.to_string()))?);
        }
        if self.form == Form::FuseOverlayfs && !labels_files() {
            // Engines ask for labels wherever they are; fuse-overlayfs takes no notice anywhere.
            options.mount.labels.clear();
        }
        if let (Form::Mount, Some(mountpoint)) = (self.form, line.positional.last())
            && ignored.iter().any(|option| option == "remount")
        {
            return if line.fake { Ok(()) } else { remount(mountpoint, &options.mount) };
        }
        if !mount::is_second_process() {
            report(self.form, line.sloppy, &ignored)?;
        }
        options.check().map_err(|error| Failure::text(error.to_string()))?;
        if options.lower.is_empty() && options.branches.is_empty() {
            return Err(Failure::text("no lowerdir: what is to be mounted?"));
        }
        if line.fake {
            return Ok(());
        }
        raise_limit();
        let arguments = Mount {
            options: Vec::new(),
            branches: Vec::new(),
            create: None,
            image: None,
            rw: None,
            verify: None,
            form: None,
            foreground: line.foreground,
            positional: line.positional,
        };
        mount::mount(&Context::of_environment(), &arguments, &options)
    }
}

impl Form {
    fn of(name: &OsStr) -> Option<Form> {
        match name.as_bytes() {
            b"fuse-overlayfs" => Some(Form::FuseOverlayfs),
            b"mount.mica" | b"mount.fuse.mica" => Some(Form::Mount),
            _ => None,
        }
    }
}

/// Changes what the kernel enforces of a mount that is there. mount(8) hands all other options over as they were shown to it.
fn remount(mountpoint: &Path, options: &MountOptions) -> Result<(), Failure> {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    for (attribute, flag) in [
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
    ] {
        flags.set(flag, options.attributes.contains(attribute));
    }
    mount_remount(mountpoint, flags, c"")
        .map_err(|errno| Failure::text(format!("can't remount {}: {errno}", mountpoint.display())))
}

/// Options that are not known: `fuse-overlayfs` goes on, since engines hand it whatever they were given.
fn report(form: Form, sloppy: bool, ignored: &[String]) -> Result<(), Failure> {
    match (form, ignored.first()) {
        (Form::Mount, Some(first)) if !sloppy => Err(Failure::text(format!("mount option {first}: is not known"))),
        (Form::FuseOverlayfs, Some(_)) => {
            for option in ignored {
                output::complain(&format!("unknown argument ignored: {option}"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether this kernel knows what a label is.
fn labels_files() -> bool {
    std::fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("selinuxfs"))
}

/// Many layers are many open files.
pub(super) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

fn fuse_overlayfs(arguments: Vec<OsString>) -> Result<Line, String> {
    let mut line = Line::default();
    let mut arguments = arguments.into_iter();
    let mut literal = false;
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        match bytes {
            _ if literal || !bytes.starts_with(b"-") || bytes == b"-" => line.positional.push(argument.into()),
            b"--" => literal = true,
            b"-f" | b"--foreground" => line.foreground = true,
            b"-d" | b"--debug" => line.debug = true,
            b"-V" | b"--version" => {
                let version = env!("CARGO_PKG_VERSION");
                line.say = Some(format!("fuse-overlayfs: version {SURFACE}\nMica version {version}"));
            }
            b"-h" | b"--help" => line.say = Some(USAGE.to_owned()),
            b"-o" => line.options.push(arguments.next().ok_or("option -o needs a value")?),
            _ if bytes.starts_with(b"-o") => line.options.push(OsString::from_vec(bytes[2..].to_vec())),
            _ => line.ignored.push(bytes.escape_ascii().to_string()),
        }
    }
    line.options = line.options.into_iter().map(|text| without_debug(text, &mut line.debug)).collect();
    line.foreground |= line.debug;
    // The last one is meant; engines put a source before it.
    let mountpoint = line.positional.pop();
    if mountpoint.is_none() && line.say.is_none() {
        return Err(format!("no mountpoint\n{USAGE}"));
    }
    line.positional = mountpoint.into_iter().collect();
    Ok(line)
}

/// `-o debug` is `-d`.
fn without_debug(text: OsString, debug: &mut bool) -> OsString {
    let parts: Vec<&[u8]> = text.as_bytes().split(|&byte| byte == b',').collect();
    if !parts.contains(&&b"debug"[..]) {
        return text;
    }
    *debug = true;
    OsString::from_vec(parts.into_iter().filter(|part| *part != b"debug").collect::<Vec<_>>().join(&b','))
}

fn mount_helper(arguments: Vec<OsString>) -> Result<Line, String> {
    let mut line = Line::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let value = |arguments: &mut std::vec::IntoIter<OsString>| {
            arguments.next().ok_or_else(|| format!("option {} needs a value", bytes.escape_ascii()))
        };
        match bytes {
            b"-o" => line.options.push(value(&mut arguments)?),
            b"-t" | b"-N" => drop(value(&mut arguments)?),
            _ if bytes.starts_with(b"-o") => line.options.push(OsString::from_vec(bytes[2..].to_vec())),
            _ if bytes.len() > 1 && bytes.starts_with(b"-") => {
                for flag in &bytes[1..] {
                    match flag {
                        b's' => line.sloppy = true,
                        b'f' => line.fake = true,
                        b'n' | b'v' => {}
                        other => return Err(format!("unknown flag -{}", other.escape_ascii())),
                    }
                }
            }
            _ => line.positional.push(argument.into()),
        }
    }
    match line.positional.len() {
        2 => Ok(line),
        count => Err(format!("a source and a mountpoint are needed, {count} were given")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn fuse_overlayfs_takes_its_options_in_every_way_engines_write_them() {
        let line = fuse_overlayfs(words("-o lowerdir=/a:/b -oupperdir=/u,debug,workdir=/w overlay /mnt")).unwrap();
        assert_eq!(line.options, words("lowerdir=/a:/b upperdir=/u,workdir=/w"));
        assert_eq!(line.positional, [PathBuf::from("/mnt")]);
        assert!(line.debug && line.foreground);
        let line = fuse_overlayfs(words("overlay /mnt -o lowerdir=/a -q --frob")).unwrap();
        assert_eq!(line.positional, [PathBuf::from("/mnt")]);
        assert_eq!(line.ignored, ["-q", "--frob"]);
        assert!(!line.foreground);
    }

    #[test]
    fn fuse_overlayfs_says_its_version_and_misses_a_mountpoint() {
        let version = fuse_overlayfs(words("--version")).unwrap().say.unwrap();
        assert!(version.starts_with("fuse-overlayfs: version "), "{version}");
        assert!(fuse_overlayfs(words("-o lowerdir=/a")).unwrap_err().contains("mountpoint"));
        assert!(fuse_overlayfs(words("/mnt -o")).unwrap_err().contains("-o"));
    }

    #[test]
    fn mount_helper_takes_what_mount_gives_it() {
        let line = mount_helper(words("src /mnt -sv -n -o rw,lowerdir=/a -t fuse.mica -N /proc/1/ns/mnt")).unwrap();
        assert_eq!(line.positional, [PathBuf::from("src"), PathBuf::from("/mnt")]);
        assert_eq!(line.options, words("rw,lowerdir=/a"));
        assert!(line.sloppy && !line.fake);
        assert!(mount_helper(words("/mnt -o ro")).unwrap_err().contains("source"));
        assert!(mount_helper(words("a b -x")).unwrap_err().contains("-x"));
    }

    #[test]
    fn only_names_of_helpers_change_the_command_line() {
        assert_eq!(Form::of(OsStr::new("fuse-overlayfs")), Some(Form::FuseOverlayfs));
        assert_eq!(Form::of(OsStr::new("mount.fuse.mica")), Some(Form::Mount));
        assert_eq!(Form::of(OsStr::new("mica")), None);
    }
}
