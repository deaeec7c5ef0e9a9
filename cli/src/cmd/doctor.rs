//! `mica doctor`: what this kernel, disk and engine offer, and what to do about what is missing.
//!
//! Each check tries the thing itself where that is possible and leaves nothing behind.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use serde::Serialize;

use crate::output;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// Mica uses it.
    Ok,
    /// Mica works without it, at a price.
    Missing,
    /// Mica can't work without it.
    Fatal,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn missing(check: &'static str, found: impl Into<String>, advice: &str) -> Finding {
        Finding { check, verdict: Verdict::Missing, found: found.into(), advice: Some(advice.to_owned()) }
    }

    fn fatal(check: &'static str, found: impl Into<String>, advice: &str) -> Finding {
        Finding { check, verdict: Verdict::Fatal, found: found.into(), advice: Some(advice.to_owned()) }
    }
}

/// Runs every check; `Ok(false)` when one of them is fatal.
pub fn run(root: &Path, containerd: &Path, as_json: bool) -> io::Result<bool> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = kernel_version(&release);
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut findings = vec![
        fuse_device(),
        passthrough(version, &release),
        resend(version, &release),
        filesystem(&filesystems, "erofs", "kernel mounts of trees are not possible: load the `erofs` module"),
        filesystem(&filesystems, "overlay", "only needed for kernel mounts and nested engines: load `overlay`"),
        privilege(),
        helper("fusermount3", "unprivileged mounts need it: install the package `fuse3`"),
        descriptors(),
    ];
    findings.extend(disk(root));
    findings.push(engine(containerd));
    if as_json {
        output::json(&findings)?;
    } else {
        print(&findings)?;
    }
    Ok(findings.iter().all(|finding| finding.verdict != Verdict::Fatal))
}

fn print(findings: &[Finding]) -> io::Result<()> {
    let mut table = output::Table::new(["CHECK", "", "FOUND"]);
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Missing => "missing",
            Verdict::Fatal => "FATAL",
        };
        table.row([finding.check.to_owned(), mark.to_owned(), finding.found.clone()]);
    }
    table.print()?;
    for finding in findings {
        if let Some(advice) = &finding.advice {
            output::line(&format!("{}: {advice}", finding.check))?;
        }
    }
    Ok(())
}

/// `6.18.44-x` as `(6, 18)`.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn fuse_device() -> Finding {
    match fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/fuse") {
        Ok(_) => Finding::ok("fuse device", "/dev/fuse opens"),
        Err(error) => {
            Finding::fatal("fuse device", error.to_string(), "load the `fuse` module; check /dev/fuse's mode")
        }
    }
}

fn passthrough(version: (u32, u32), release: &str) -> Finding {
    if version >= (6, 9) {
        Finding::ok("fuse passthrough", format!("Linux {release}, in the kernel since 6.9 (needs CAP_SYS_ADMIN)"))
    } else {
        Finding::missing(
            "fuse passthrough",
            format!("Linux {release}"),
            "file data goes through the daemon and the page cache; Linux 6.9 or newer passes it through",
        )
    }
}

fn resend(version: (u32, u32), release: &str) -> Finding {
    if version >= (6, 9) {
        Finding::ok("fuse resend", format!("Linux {release}: requests survive a restart of the daemon"))
    } else {
        Finding::missing(
            "fuse resend",
            format!("Linux {release}"),
            "a request that a killed daemon had read is lost; Linux 6.9 or newer delivers it again",
        )
    }
}

fn filesystem(known: &str, name: &'static str, advice: &str) -> Finding {
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        Finding::ok(name, "in /proc/filesystems")
    } else {
        Finding::missing(name, "not in /proc/filesystems", advice)
    }
}

fn privilege() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("privilege", "root")
    } else {
        Finding::missing("privilege", "not root", "no passthrough and no `mica serve`; `mica mount` uses fusermount3")
    }
}

fn helper(name: &'static str, advice: &str) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()) {
        Some(file) => Finding::ok(name, file.display().to_string()),
        None => Finding::missing(name, "not in PATH", advice),
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    if hard >= 4096 {
        Finding::ok("descriptors", format!("RLIMIT_NOFILE up to {hard}"))
    } else {
        Finding::missing("descriptors", format!("RLIMIT_NOFILE at most {hard}"), "raise it: busy nodes need some 4,096")
    }
}

/// The nearest existing ancestor of `root`, where the disk checks are made.
fn existing(root: &Path) -> PathBuf {
    root.ancestors().find(|path| path.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

fn disk(root: &Path) -> Vec<Finding> {
    let base = existing(root);
    let dir = base.join(format!(".mica-doctor-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&dir) {
        let advice = "the store can't be written: choose another `--root` or run as root";
        return vec![Finding::fatal("store folder", format!("{}: {error}", base.display()), advice)];
    }
    let mut findings = vec![space(&base), trusted_xattr(&dir), whiteout(&dir), reflink(&dir), kernel_mounts(&dir)];
    if let Err(error) = fs::remove_dir_all(&dir) {
        let advice = "remove the folder by hand";
        findings.push(Finding::missing("clean-up", format!("{}: {error}", dir.display()), advice));
    }
    findings
}

fn space(base: &Path) -> Finding {
    match rustix::fs::statvfs(base) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} free at {}", output::bytes(free), base.display());
            if free < 1 << 30 {
                Finding::missing("store folder", found, "less than 1 GiB: images will not fit")
            } else {
                Finding::ok("store folder", found)
            }
        }
        Err(error) => Finding::fatal("store folder", error.to_string(), "the disk does not answer"),
    }
}

fn trusted_xattr(dir: &Path) -> Finding {
    let name = "trusted.mica.doctor";
    match rustix::fs::setxattr(dir, name, b"y", XattrFlags::empty()) {
        Ok(()) => Finding::ok("trusted xattrs", "kept by this disk"),
        Err(error) => {
            let advice =
                "opaque and redirect marks fall back to user.overlay.*: use a disk with trusted xattrs, as root";
            Finding::missing("trusted xattrs", error.to_string(), advice)
        }
    }
}

fn whiteout(dir: &Path) -> Finding {
    let node = dir.join("whiteout");
    let made = rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0), 0)
        .and_then(|()| fs::write(dir.join("a"), b"a").map_err(|_| rustix::io::Errno::IO))
        .and_then(|()| rustix::fs::renameat_with(CWD, dir.join("a"), CWD, dir.join("b"), RenameFlags::WHITEOUT));
    match made {
        Ok(()) => Finding::ok("whiteouts", "char 0:0 and RENAME_WHITEOUT work"),
        Err(error) => {
            Finding::missing("whiteouts", error.to_string(), "deletions are recorded by other, slower means here")
        }
    }
}

fn reflink(dir: &Path) -> Finding {
    let clone = || -> io::Result<()> {
        let mut from = File::create_new(dir.join("from"))?;
        from.write_all(&[1; 4096])?;
        let to = rustix::fs::openat(
            CWD,
            dir.join("to"),
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let from = File::open(dir.join("from"))?;
        Ok(rustix::fs::ioctl_ficlone(to, from)?)
    };
    match clone() {
        Ok(()) => Finding::ok("reflink", "copy-up shares blocks"),
        Err(error) => {
            let advice = "copy-up copies data: use xfs or btrfs for the store";
            Finding::missing("reflink", error.to_string(), advice)
        }
    }
}

fn kernel_mounts(dir: &Path) -> Finding {
    let folder = dir.join("kernel");
    let tried = fs::create_dir(&folder).map_err(|error| error.to_string());
    match tried.and_then(|()| mica_fs::kernel::probe(&folder).map_err(|error| error.to_string())) {
        Ok(()) => {
            Finding::ok("kernel mounts", "an EROFS tree with overlayfs and objects as its data: `--mount kernel` works")
        }
        Err(reason) => {
            let advice =
                "`--mount kernel` can't be had, mounts are FUSE's: root, Linux 6.12 with erofs and overlay have it";
            Finding::missing("kernel mounts", reason, advice)
        }
    }
}

fn engine(socket: &Path) -> Finding {
    match UnixStream::connect(socket) {
        Ok(_) => Finding::ok("containerd", format!("{} answers", socket.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::missing(
            "containerd",
            format!("no socket at {}", socket.display()),
            "name another with --containerd; without an engine `mica mount` works alone",
        ),
        Err(error) => Finding::missing("containerd", error.to_string(), "start containerd or check the socket's mode"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;

    #[test]
    fn kernel_version_of_any_release_text() {
        assert_eq!(kernel_version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(kernel_version("5.10"), (5, 10));
        assert_eq!(kernel_version("weird"), (0, 0));
    }

    #[test]
    fn disk_checks_leave_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("mica-doctor-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("temporary folder");
        let findings = disk(&dir.join("not/there/yet"));
        assert_eq!(findings.len(), 5);
        fs::remove_dir(&dir).expect("the folder is empty again");
    }
}
