//! What layers and images hold, and how they differ.

mod contents;

pub use contents::Contents;
