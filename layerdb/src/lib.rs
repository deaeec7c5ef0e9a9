//! Mica.
