//! containerd's filter language.

/// A filter that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason} at position {position}")]
pub struct FilterError {
    /// The filter.
    pub filter: String,
    /// Where in it, in bytes.
    pub position: usize,
    /// What is wrong.
    pub reason: String,
}
