//! The gRPC services: they translate requests into calls of the domain and its answers back, and decide nothing.

pub mod proto;
