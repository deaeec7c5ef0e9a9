//! The one place that makes a gRPC status of an error.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// What a client is told. containerd turns these codes back into its own errors and acts on them.
pub(crate) fn status(error: &Error) -> Status {
    Status::new(code(error.kind()), error.to_string())
}

/// The code of each kind of error.
pub(crate) const fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::DataLoss => Code::DataLoss,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}
