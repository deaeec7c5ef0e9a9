//! Collecting garbage, and saying what takes space and why.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "gc/concurrent.rs"]
mod concurrent;
#[path = "gc/damaged.rs"]
mod damaged;
#[path = "gc/explain.rs"]
mod explain;
#[path = "gc/model.rs"]
mod model;
#[path = "gc/shop.rs"]
mod shop;
#[path = "gc/space.rs"]
mod space;
