//! How fast a collection may be, and when it is to end early.

use std::fmt;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::tally::Tally;

/// Naps are not longer than this, so that an end is noticed.
const NAP: Duration = Duration::from_millis(50);

/// How much a collection may remove in a second. As text: `500` (files), `20M` or `20MiB` (bytes on the disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Files.
    Files(u64),
    /// Bytes on the disk.
    Bytes(u64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let wrong = || format!("{text:?} is no rate: files in a second (500) or bytes in a second (64K, 20M, 1G)");
        let bare = text.strip_suffix("/s").unwrap_or(text);
        let digits = bare.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = bare[..digits].parse().map_err(|_| wrong())?;
        let unit = bare[digits..].trim_start();
        let shift = match unit.strip_suffix("iB").or(unit.strip_suffix('B')).unwrap_or(unit) {
            "" => 0,
            "K" | "k" => 10,
            "M" => 20,
            "G" => 30,
            _ => return Err(wrong()),
        };
        let number = number.checked_mul(1 << shift).filter(|number| *number > 0).ok_or_else(wrong)?;
        Ok(if unit.is_empty() { Rate::Files(number) } else { Rate::Bytes(number) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Files(files) => write!(out, "{files}"),
            Rate::Bytes(bytes) => write!(out, "{bytes}B"),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Files(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Files(files) => files.to_string().parse(),
            Form::Text(text) => text.parse(),
        }
        .map_err(serde::de::Error::custom)
    }
}

/// Why a collection does not go on.
#[derive(Debug)]
pub(super) enum Halt {
    /// Somebody asked it to end.
    Stopped,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Failed(error)
    }
}

/// Keeps a collection to its rate.
pub(super) struct Pace<'a> {
    rate: Option<Rate>,
    stopped: Option<&'a (dyn Fn() -> bool + Sync)>,
    since: Instant,
    /// Files or bytes, as the rate counts.
    spent: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn new(rate: Option<Rate>, stopped: Option<&'a (dyn Fn() -> bool + Sync)>) -> Pace<'a> {
        Pace { rate, stopped, since: Instant::now(), spent: 0 }
    }

    /// See [`super::GcOptions::stopped`].
    pub(super) fn stopped(&self) -> Option<&'a (dyn Fn() -> bool + Sync)> {
        self.stopped
    }

    /// Ends the collection if somebody asked for that.
    pub(super) fn check(&self) -> Result<(), Halt> {
        if self.stopped.is_some_and(|stopped| stopped()) { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// So much was removed: waits until that is due. To be called without any lock.
    pub(super) fn spend(&mut self, removed: Tally) -> Result<(), Halt> {
        let (amount, per_second) = match self.rate {
            None => return self.check(),
            Some(Rate::Files(rate)) => (removed.count, rate),
            Some(Rate::Bytes(rate)) => (removed.disk_bytes, rate),
        };
        self.spent += amount;
        let due = Duration::from_millis((u128::from(self.spent) * 1000 / u128::from(per_second.max(1))) as u64);
        loop {
            self.check()?;
            match due.checked_sub(self.since.elapsed()) {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(early) => thread::sleep(early.min(NAP)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rate_of_every_form_is_read_and_comes_back_from_its_text() {
        let forms = [
            ("500", Rate::Files(500)),
            ("500/s", Rate::Files(500)),
            ("64K", Rate::Bytes(64 << 10)),
            ("20M/s", Rate::Bytes(20 << 20)),
            ("20 MiB/s", Rate::Bytes(20 << 20)),
            ("1GB", Rate::Bytes(1 << 30)),
            ("7B", Rate::Bytes(7)),
        ];
        for (text, rate) in forms {
            assert_eq!(text.parse(), Ok(rate), "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
        }
        for text in ["", "0", "-1", "M", "1T", "1.5M", "99999999999G", "5 apples"] {
            assert!(text.parse::<Rate>().unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn spending_faster_than_the_rate_takes_the_time_that_it_is_due() {
        let mut pace = Pace::new(Some(Rate::Files(1000)), None);
        for _ in 0..10 {
            pace.spend(Tally { count: 10, ..Tally::default() }).unwrap();
        }
        // A machine can be slower than the rate, but never faster.
        assert!(pace.since.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn stop_ends_a_wait() {
        let mut pace = Pace::new(Some(Rate::Bytes(1)), Some(&|| true));
        let halt = pace.spend(Tally { count: 1, bytes: 0, disk_bytes: 1 << 40 }).unwrap_err();
        assert!(matches!(halt, Halt::Stopped));
    }
}
