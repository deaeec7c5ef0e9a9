//! The state machine of snapshots over a real store, with a kernel that is played.
#![allow(clippy::unwrap_used, missing_docs)]

mod state {
    mod applying;
    mod calls;
    mod concurrency;
    mod machine;
    mod restart;
    mod settling;
    mod world;
}
