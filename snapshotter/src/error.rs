//! What can go wrong with a snapshot, and what the caller can do about it.

use std::io;

/// The result of every fallible operation of the domain.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the name of the snapshot concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no snapshot of that name.
    #[error("snapshot {key} does not exist")]
    NoSnapshot {
        /// The name.
        key: String,
    },

    /// The parent of a snapshot to be does not exist.
    #[error("parent snapshot {parent} of {key} does not exist")]
    NoParent {
        /// The snapshot to be.
        key: String,
        /// The parent asked for.
        parent: String,
    },

    /// The parent of a snapshot to be can still change.
    #[error("parent snapshot {parent} of {key} is not committed")]
    ParentNotCommitted {
        /// The snapshot to be.
        key: String,
        /// The parent asked for.
        parent: String,
    },

    /// The new parent of a snapshot that is being committed can still change.
    #[error("cannot commit {key} upon {parent}, which is not committed")]
    RebaseNotCommitted {
        /// The snapshot being committed.
        key: String,
        /// The parent asked for.
        parent: String,
    },

    /// A snapshot that has a parent was to be committed upon another.
    #[error("cannot change parent of active snapshot {key} from {parent} to {wanted}")]
    ParentChange {
        /// The snapshot being committed.
        key: String,
        /// Its parent.
        parent: String,
        /// The parent asked for.
        wanted: String,
    },

    /// The name is taken.
    #[error("snapshot {key} already exists")]
    Exists {
        /// The name.
        key: String,
    },

    /// Only active snapshots can be committed and take in layers.
    #[error("snapshot {key} is {kind}, not active")]
    NotActive {
        /// The snapshot.
        key: String,
        /// What it is instead.
        kind: &'static str,
    },

    /// Committed snapshots have no mounts.
    #[error("snapshot {key} is committed and has no mounts; prepare or view it")]
    NoMounts {
        /// The snapshot.
        key: String,
    },

    /// Snapshots that others build upon stay.
    #[error("cannot remove snapshot {key}: it has children, {child} is one")]
    HasChildren {
        /// The snapshot.
        key: String,
        /// One of its children.
        child: String,
    },

    /// A field mask names what can't be changed.
    #[error("cannot update field {path:?} of snapshot {key}: only labels can be changed")]
    FieldPath {
        /// The snapshot.
        key: String,
        /// The path.
        path: String,
    },

    /// A request that is wrong in itself.
    #[error("{what}: {reason}")]
    Invalid {
        /// The part that is wrong.
        what: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A filter that does not follow the grammar.
    #[error(transparent)]
    Filter(#[from] crate::filter::FilterError),

    /// Another call has been at this snapshot for too long.
    #[error("snapshot {key} is busy: an earlier call has not ended")]
    Busy {
        /// The snapshot.
        key: String,
    },

    /// The changes of a committed snapshot could not be made a layer so far; it is tried again.
    #[error("the changes of snapshot {key} are not a layer yet: {reason}")]
    Settling {
        /// The snapshot.
        key: String,
        /// What happened at the last attempt.
        reason: String,
        /// What a caller can do about that.
        kind: Kind,
    },

    /// What a committed snapshot held was lost before it became a layer.
    #[error("snapshot {key} is damaged: {reason}; remove it and make it anew")]
    Lost {
        /// The snapshot.
        key: String,
        /// How it was lost.
        reason: String,
    },

    /// A snapshot could not be mounted.
    #[error("cannot mount snapshot {number}: {reason}")]
    Mount {
        /// Its number.
        number: u64,
        /// Why.
        reason: String,
    },

    /// The form of mounts that somebody insists on can't be had.
    #[error("{what} can't be the kernel's: {reason}")]
    Form {
        /// Whose mounts.
        what: String,
        /// Why.
        reason: String,
    },

    /// The filesystem failed.
    #[error("{action}: {source}")]
    Fs {
        /// What was being done.
        action: String,
        /// Its answer.
        source: mica_fs::Error,
    },

    /// The disk or the kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, and to what.
        action: String,
        /// The system's answer.
        source: io::Error,
    },

    /// The layer database failed.
    #[error(transparent)]
    Store(#[from] mica_layerdb::Error),

    /// The daemon is not able to, as things are.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ask for something else: this isn't there.
    NotFound,
    /// Choose another name, or take what is there.
    AlreadyExists,
    /// Ask differently: this will never do.
    InvalidArgument,
    /// Change what stands in the way first.
    FailedPrecondition,
    /// Try again later.
    Unavailable,
    /// Make room.
    ResourceExhausted,
    /// Make it anew: what is stored is damaged.
    DataLoss,
    /// Ask somebody else.
    Unimplemented,
    /// Report it.
    Internal,
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Error::NoSnapshot { .. } | Error::NoParent { .. } => Kind::NotFound,
            Error::Exists { .. } => Kind::AlreadyExists,
            Error::ParentNotCommitted { .. }
            | Error::ParentChange { .. }
            | Error::FieldPath { .. }
            | Error::Invalid { .. }
            | Error::Filter(_) => Kind::InvalidArgument,
            Error::RebaseNotCommitted { .. }
            | Error::NotActive { .. }
            | Error::NoMounts { .. }
            | Error::Form { .. }
            | Error::HasChildren { .. } => Kind::FailedPrecondition,
            Error::Busy { .. } | Error::Mount { .. } | Error::Unavailable { .. } => Kind::Unavailable,
            Error::Settling { kind, .. } => *kind,
            Error::Lost { .. } => Kind::DataLoss,
            Error::Fs { source, .. } => kind_of_fs(source),
            Error::Io { source, .. } => kind_of_io(source),
            Error::Store(error) => kind_of_store(error),
        }
    }

    /// Gives a system error the name of what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }
}

fn kind_of_store(error: &mica_layerdb::Error) -> Kind {
    use mica_layerdb::Kind as Stored;
    match error.kind() {
        Stored::NotFound => Kind::NotFound,
        Stored::Exists => Kind::AlreadyExists,
        Stored::Invalid => Kind::InvalidArgument,
        Stored::Corrupt => Kind::DataLoss,
        Stored::NoSpace => Kind::ResourceExhausted,
        Stored::Busy | Stored::Unavailable => Kind::Unavailable,
    }
}

fn kind_of_fs(error: &mica_fs::Error) -> Kind {
    match error {
        mica_fs::Error::Lower(error) => kind_of_store(error),
        error => kind_of_io(&error.errno().into()),
    }
}

fn kind_of_io(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Kind::ResourceExhausted
        }
        _ => Kind::Unavailable,
    }
}
