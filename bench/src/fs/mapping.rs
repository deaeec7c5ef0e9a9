//! Reading through a mapping: one byte of a page, as often as is asked for.
//!
//! It is done by a process of its own: when the server of a mapped file is lost, who touches it is killed (SIGBUS).
#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use memmap2::Mmap;
use mica_tests::command::succeed;
use mica_tests::wait::LATER;
use mica_tests::{Context as _, Result};

use super::files::Numbers;

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// What the process is to do.
#[derive(Debug, Args)]
pub struct Touch {
    /// Pages at random, so many; without, all from first to last.
    #[arg(long, value_name = "NUMBER")]
    random: Option<u32>,
    /// The file.
    file: PathBuf,
}

impl Touch {
    /// All pages of a file, from first to last.
    pub fn all(file: PathBuf) -> Touch {
        Touch { random: None, file }
    }

    /// So many pages of a file, at random.
    pub fn random(file: PathBuf, number: u32) -> Touch {
        Touch { random: Some(number), file }
    }

    /// Has another process do it; seconds for each page.
    pub fn measure(&self) -> Result<f64> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("touch").arg(&self.file);
        if let Some(number) = self.random {
            command.args(["--random", &number.to_string()]);
        }
        let said = succeed(&mut command, LATER)?.text();
        said.trim().parse().context(format!("a number of seconds is not {said:?}"))
    }

    /// Does it and prints the seconds for each page.
    pub fn run(&self) -> Result {
        let seconds = self.touch(&self.file)?;
        Ok(writeln!(std::io::stdout().lock(), "{seconds}")?)
    }

    fn touch(&self, path: &Path) -> Result<f64> {
        let file = File::open(path).context(path.display())?;
        let start = Instant::now();
        // SAFETY: the file is the benchmark's own and nobody shortens it while it is mapped.
        let map = unsafe { Mmap::map(&file) }?;
        let pages = map.len() / PAGE;
        let mut sum = 0u8;
        let number = if let Some(number) = self.random {
            let mut numbers = Numbers::new(9);
            for _ in 0..number {
                sum = sum.wrapping_add(map[numbers.below(pages as u64) as usize * PAGE]);
            }
            number
        } else {
            for page in 0..pages {
                sum = sum.wrapping_add(map[page * PAGE]);
            }
            u32::try_from(pages)?
        };
        let took = start.elapsed().as_secs_f64();
        black_box(sum);
        Ok(took / f64::from(number))
    }
}
