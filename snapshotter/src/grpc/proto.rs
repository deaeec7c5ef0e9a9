//! Messages, clients and servers generated from `proto/`.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::expect_used)]

tonic::include_proto!("proto");
