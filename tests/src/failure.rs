//! Why a test failed: a sentence, not a type, because a person reads it.

use std::fmt::{self, Debug, Display};

/// The result of everything in this crate, and of the tests.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// A readable reason. Shown as it is when a test returns it.
pub struct Failure(String);

impl Failure {
    /// A failure for this reason.
    pub fn new(reason: impl Into<String>) -> Failure {
        Failure(reason.into())
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        &self.0
    }
}

impl Debug for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Failure(reason)
    }
}

/// Says what was being done when something failed or was missing.
pub trait Context<T> {
    /// Puts `doing` before the reason.
    fn context(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{doing}: {}", error.into())))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.ok_or_else(|| Failure(doing.to_string()))
    }
}

/// Returns a [`Failure`] made as by `format!`.
#[macro_export]
macro_rules! fail {
    ($($reason:tt)*) => { return ::std::result::Result::Err($crate::Failure::new(format!($($reason)*))) };
}

/// Returns a [`Failure`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($reason:tt)*) => {
        if !$condition {
            $crate::fail!($($reason)*);
        }
    };
}

/// Returns a [`Failure`] that shows both sides unless they are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($reason:tt)*) => {
        match (&$left, &$right) {
            (left, right) if *left == *right => {}
            (left, right) => $crate::fail!("{}: {left:?} is not {right:?}", format!($($reason)*)),
        }
    };
}
