//! Waiting, never for ever.

use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};

/// How long something quick may take on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);
/// How long something slow may take: a pull, an unpack.
pub const LATER: Duration = Duration::from_secs(180);

/// Asks every few milliseconds until there is an answer. `what` names it in the error.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            return Err(Failure::new(format!("waited {} s in vain for {what}", limit.as_secs())));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until a number has not changed for half a second.
pub fn quiet(what: &str, limit: Duration, mut number: impl FnMut() -> Result<u64>) -> Result {
    let mut last = (number()?, Instant::now());
    until(what, limit, || {
        let now = number()?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        Ok((last.1.elapsed() > Duration::from_millis(500)).then_some(()))
    })
}
