//! What can go wrong in a union, and the one place that makes an errno of it.

use std::io;

use rustix::io::Errno;

use crate::inode::Ino;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operation is refused as POSIX says, or a disk refused it.
    #[error("{0}")]
    Refused(#[from] Errno),

    /// The lower is damaged or can't be read.
    #[error("lower: {0}")]
    Lower(#[from] mica_layerdb::Error),

    /// The lower of a lazily resolved union can't be had.
    #[error("the lower of this mount is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// What programs are told.
        errno: Errno,
    },

    /// The kernel named an inode that is not known (any more).
    #[error("inode {ino} is not known")]
    Stale {
        /// The number.
        ino: Ino,
    },

    /// Directories that can't be united, or an upper that can't be used.
    #[error("{path}: {reason}")]
    Layer {
        /// Which.
        path: String,
        /// Why.
        reason: String,
        /// What programs are told.
        errno: Errno,
    },

    /// A mount option that is not known or makes no sense.
    #[error("mount option {option}: {reason}")]
    Option {
        /// As it was given.
        option: String,
        /// What is wrong.
        reason: String,
    },

    /// A mount can't be made, ended or served.
    #[error("{path}: {reason}")]
    Mount {
        /// The mountpoint.
        path: String,
        /// Why.
        reason: String,
        /// The system's answer.
        errno: Errno,
    },

    /// The keeper refuses, or can't be reached.
    #[error("keeper: {reason}")]
    Keeper {
        /// Why.
        reason: String,
        /// The system's answer.
        errno: Errno,
    },
}

impl Error {
    /// What a program is told (`errno(3)`).
    pub fn errno(&self) -> Errno {
        match self {
            Error::Refused(errno)
            | Error::Unavailable { errno, .. }
            | Error::Layer { errno, .. }
            | Error::Mount { errno, .. }
            | Error::Keeper { errno, .. } => *errno,
            Error::Option { .. } => Errno::INVAL,
            Error::Stale { .. } => Errno::STALE,
            Error::Lower(error) => lower_errno(error),
        }
    }
}

/// Damage is EIO; a disk's own answer is passed on.
fn lower_errno(error: &mica_layerdb::Error) -> Errno {
    match error {
        mica_layerdb::Error::Io { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        _ => Errno::IO,
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Refused(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}
