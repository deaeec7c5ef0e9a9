//! Messages to the kernel that answer nothing, among them those that `fuser` does not know.
//!
//! A notification is an answer with number 0 whose error field is the kind.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::inode::Ino;

const INVALIDATE_INODE: i32 = 2;
const INVALIDATE_ENTRY: i32 = 3;
const RESEND: i32 = 7;
const HEADER: usize = 16;

/// Has every request that was read and not answered sent again. To be used before a server starts to read: it would
/// take back what that one has just read.
pub(crate) fn resend(device: impl AsFd) -> Result<(), Errno> {
    send(device, RESEND, &[])
}

/// Makes the kernel ask for an inode's attributes again. One that the kernel does not know is none of our business.
pub(crate) fn invalidate_attributes(device: impl AsFd, ino: Ino) -> Result<(), Errno> {
    let mut body = [0; 24];
    body[0..8].copy_from_slice(&ino.0.to_le_bytes());
    // A negative offset leaves the data alone.
    body[8..16].copy_from_slice(&(-1i64).to_le_bytes());
    match send(device, INVALIDATE_INODE, &body) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Makes the kernel forget a name, and what is behind it if nobody uses that. No lock may be held that a request waits for:
/// the kernel locks the directory.
pub(crate) fn invalidate_entry(device: impl AsFd, parent: Ino, name: &[u8]) -> Result<(), Errno> {
    let mut body = vec![0; 16];
    body[0..8].copy_from_slice(&parent.0.to_le_bytes());
    body[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
    body.extend_from_slice(name);
    body.push(0);
    match send(device, INVALIDATE_ENTRY, &body) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn send(device: impl AsFd, kind: i32, body: &[u8]) -> Result<(), Errno> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(body);
    rustix::io::write(device, &message).map(drop)
}
