//! Merging stacks of layers ahead of their first container.
//!
//! While an image is unpacked each of its snapshots is built upon at once; the last one isn't. So a committed snapshot that
//! still has no child after a moment is merged in the background, one at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::core::Core;
use crate::error::Result;

/// How long an engine may take from one layer to the next.
const MOMENT: Duration = Duration::from_millis(500);
/// Older ones are dropped: they are merged on first use.
const QUEUED: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When, which, and its number. In order of time.
    waiting: VecDeque<(Instant, String, u64)>,
    closed: bool,
}

impl Ahead {
    pub(super) fn add(&self, name: &str, number: u64) {
        let mut state = self.state.lock();
        if state.waiting.len() >= QUEUED {
            state.waiting.pop_front();
        }
        state.waiting.push_back((Instant::now() + MOMENT, name.to_owned(), number));
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<(String, u64)> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            match state.waiting.front() {
                None => self.changed.wait(&mut state),
                Some((due, ..)) if *due > Instant::now() => {
                    let due = *due;
                    self.changed.wait_until(&mut state, due);
                }
                Some(_) => return state.waiting.pop_front().map(|(_, name, number)| (name, number)),
            }
        }
    }
}

impl Core {
    /// The thread that merges ahead.
    pub(super) fn merge_ahead(&self) {
        while let Some((name, number)) = self.ahead.next() {
            if let Err(error) = self.merge(&name, number) {
                tracing::warn!(name, %error, "a stack of layers is not merged ahead");
            }
        }
    }

    fn merge(&self, name: &str, number: u64) -> Result<()> {
        let Some(record) = self.rows.get(name)? else { return Ok(()) };
        if record.number != number || !record.is_settled() || self.rows.any_child(name)?.is_some() {
            return Ok(());
        }
        let stack = self.rows.pinned(number)?;
        let begun = Instant::now();
        self.store.chain(&stack)?;
        tracing::debug!(name, layers = stack.len(), elapsed = ?begun.elapsed(), "merged ahead");
        Ok(())
    }
}
