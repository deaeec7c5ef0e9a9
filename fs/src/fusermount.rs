//! `fusermount3`, which mounts and unmounts FUSE filesystems for users without privilege (fusermount3(1)).

use std::ffi::OsString;
use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

const PROGRAM: &str = "fusermount3";

/// Mounts at `mountpoint` with these options and returns the device; the error is the reason in the program's words.
pub(crate) fn mount(mountpoint: &Path, options: &[(&str, Option<&str>)]) -> Result<OwnedFd, String> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| errno.to_string())?;
    // It is told by number which descriptor to answer on; its standard input is as good as any.
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(text(options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{PROGRAM}: {error}"))?;
    let device = receive(&ours);
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut words);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(errno) => Err(format!("{PROGRAM}: {errno}")),
        Ok(_) => Err(words_or_status(words.trim(), status)),
    }
}

/// Unmounts what may be unmounted; lazily if it is in use.
///
/// Who has no privilege over the mount asks `fusermount3`, which unmounts for users what it has mounted for them.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Errno> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => {}
        done => return done,
    }
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    match command.output() {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(Output { stderr, .. }) => {
            let words = String::from_utf8_lossy(&stderr).into_owned();
            tracing::debug!(words = words.trim(), "{PROGRAM}");
            Err(if words.contains("busy") { Errno::BUSY } else { Errno::PERM })
        }
        Err(_) => Err(Errno::PERM),
    }
}

/// The text of `-o`; commas and backslashes of values are escaped.
fn text(options: &[(&str, Option<&str>)]) -> OsString {
    let mut text = Vec::new();
    for (name, value) in options {
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(name.as_bytes());
        let Some(value) = value else { continue };
        text.push(b'=');
        for byte in value.bytes() {
            if matches!(byte, b',' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }
    }
    OsString::from_vec(text)
}

/// The descriptor that comes with a message; none if the other side is closed without one.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(descriptors.next().and_then(|mut rights| rights.next()))
}

fn words_or_status(words: &str, status: std::process::ExitStatus) -> String {
    if words.is_empty() { format!("{PROGRAM}: {status}") } else { words.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_joined_and_their_values_escaped() {
        let options = [("fsname", Some("a,b\\c")), ("ro", None), ("subtype", Some("mica"))];
        assert_eq!(text(&options), OsString::from("fsname=a\\,b\\\\c,ro,subtype=mica"));
    }
}
