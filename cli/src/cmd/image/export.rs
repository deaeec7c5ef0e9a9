//! `mica image export`

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use mica_layerdb::image::{BlobState, Encoding, ExportForm, ExportOptions, Exported};
use mica_layerdb::unpack::{Unpacked, unpack};
use mica_snapshotter::admin::Call;
use rustix::fs::{CWD, Mode, OFlags};

use super::Context;
use crate::args::{Compression, Export, ExportFormat};
use crate::backend::Backend;
use crate::interrupt::Unfinished;
use crate::output::ImportProgress;
use crate::sink::{Sink, beside};
use crate::{Failure, output};

const GATHERED_BYTES: usize = 256 << 10;

/// Exports.
pub fn run(context: &Context, arguments: Export) -> Result<(), Failure> {
    let Export { reference, destination, format, compression } = arguments;
    let is_stdout = destination == Path::new("-");
    let format = format.unwrap_or_else(|| {
        let archive = is_stdout || destination.extension() == Some(OsStr::new("tar"));
        if archive { ExportFormat::OciArchive } else { ExportFormat::Oci }
    });
    let (form, folder) = match format {
        ExportFormat::Oci => (ExportForm::OciLayout, true),
        ExportFormat::OciArchive => (ExportForm::OciArchive, false),
        ExportFormat::DockerArchive => (ExportForm::DockerArchive, false),
        ExportFormat::Tar => (ExportForm::Tar, false),
        ExportFormat::Dir => (ExportForm::Tar, true),
    };
    let compression = compression.map(|compression| match compression {
        Compression::None => Encoding::Plain,
        Compression::Gzip => Encoding::Gzip,
        Compression::Zstd => Encoding::Zstd,
    });
    let has_blobs = matches!(format, ExportFormat::Oci | ExportFormat::OciArchive);
    if !has_blobs && compression.is_some_and(|it| it != Encoding::Plain) {
        return Err(Failure::Usage("--compression is for the blobs of `oci` and `oci-archive`".to_owned()));
    }
    if folder && is_stdout {
        return Err(Failure::Usage("a folder can't be written to standard output; choose an archive".to_owned()));
    }
    let call = Call::ImageExport { reference, options: ExportOptions { form, compression } };
    let backend = Backend::of(&context.root())?;
    let progress = ImportProgress::new();
    let exported = if folder {
        let owners = format == ExportFormat::Dir && rustix::process::geteuid().is_root();
        let exported = to_folder(&backend, call, &destination, owners, &progress);
        progress.finish();
        let (exported, unpacked) = exported?;
        if format == ExportFormat::Dir {
            complain(&unpacked, owners);
        }
        exported
    } else {
        let mut sink = Sink::open(Some(&destination), "an image")?;
        let exported: Result<Exported, Failure> = backend.stream(call, &progress, &mut sink);
        progress.finish();
        let exported = exported?;
        sink.finish()?;
        exported
    };
    tell(context, &exported, &destination, is_stdout)
}

fn tell(context: &Context, exported: &Exported, destination: &Path, is_stdout: bool) -> Result<(), Failure> {
    if exported.left_out > 0 {
        output::complain(&format!(
            "mica: {} sockets and attributes are left out: tar can't hold them",
            exported.left_out
        ));
    }
    // Standard output is the image.
    if is_stdout {
        return Ok(());
    }
    if context.json {
        return Ok(output::json(exported)?);
    }
    output::line(&format!("{}: {} {}", destination.display(), exported.name, exported.manifest))?;
    let remade = exported.layers.iter().filter(|layer| layer.blob == BlobState::Remade).count();
    if remade > 0 {
        let all = exported.layers.len();
        let what = format!("{remade} of {all} blobs are made again: same tars, other digests");
        output::line(&format!("{what}; annotations of the manifest name the originals"))?;
    }
    Ok(())
}

/// Unpacks what comes into a folder that gets its name when it is complete.
fn to_folder(
    backend: &Backend,
    call: Call,
    destination: &Path,
    owners: bool,
    progress: &ImportProgress,
) -> Result<(Exported, Unpacked), Failure> {
    let cannot =
        |error: &dyn std::fmt::Display| Failure::text(format!("cannot write {}: {error}", destination.display()));
    match fs::read_dir(destination) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(cannot(&"the folder is not empty"));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(&error)),
    }
    let is_files = matches!(&call, Call::ImageExport { options, .. } if options.form == ExportForm::Tar);
    let destination = trimmed(destination);
    let folder = Unfinished::create(&beside(&destination)).map_err(|error| cannot(&error))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, folder.path(), flags, Mode::empty());
    let root = root.map_err(|errno| cannot(&io::Error::from(errno)))?;
    let (mut reader, writer) = io::pipe()?;
    let stop = || crate::interrupt::happened();
    let (streamed, unpacked) = thread::scope(|scope| {
        let unpacking = scope.spawn(move || unpack(&mut reader, root, owners, &stop));
        let mut out = BufWriter::with_capacity(GATHERED_BYTES, writer);
        let streamed: Result<Exported, Failure> = backend.stream(call, progress, &mut out);
        let streamed = streamed.and_then(|exported| out.flush().map(|()| exported).map_err(Failure::from));
        drop(out.into_parts());
        (streamed, unpacking.join())
    });
    let unpacked = unpacked.map_err(|_| Failure::text("unpacking failed: a bug in Mica"))?;
    match (streamed, unpacked) {
        // Who finds the other gone has nothing to say.
        (Ok(exported), Ok(unpacked)) => {
            if !is_files {
                // An archive of a layout says nothing of the folder itself.
                fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
            }
            folder.finish(&destination).map_err(|error| cannot(&error))?;
            Ok((exported, unpacked))
        }
        (Err(failure), Ok(_)) => Err(failure),
        (Err(failure), Err(error)) if is_truncated(&error) => Err(failure),
        (_, Err(error)) => Err(error.into()),
    }
}

/// Whether an archive ended too soon, because its writer failed.
fn is_truncated(error: &mica_layerdb::Error) -> bool {
    matches!(error, mica_layerdb::Error::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
}

fn trimmed(path: &Path) -> PathBuf {
    // Without the slash at its end.
    path.components().collect()
}

fn complain(unpacked: &Unpacked, owners: bool) {
    let Unpacked { owners: foreign, devices, xattrs, .. } = *unpacked;
    if foreign + devices + xattrs == 0 {
        return;
    }
    let who = if owners { "the system does not let everything be made" } else { "you are not root" };
    output::complain(&format!(
        "mica: {who}: {foreign} files belong to you instead of their owners, {devices} devices and {xattrs} extended \
         attributes are left out"
    ));
}
