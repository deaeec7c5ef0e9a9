//! Mica.
fn main() {}
