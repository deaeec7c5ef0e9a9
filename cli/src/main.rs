//! `mica`: the command line.

mod args;
mod backend;
mod cmd;
mod control;
mod interrupt;
mod lines;
mod mounts;
mod output;
mod sink;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use cmd::helper::Helper;

/// Why a command failed; what a person is told, and what the shell.
#[derive(Debug)]
enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// It could not be done.
    Failed(Box<dyn std::error::Error>),
    /// It has said so itself.
    Said,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Failed(Box::new(error))
    }
}

impl Failure {
    /// With a text of our own.
    fn text(text: impl Into<String>) -> Failure {
        Failure::Failed(text.into().into())
    }
}

fn main() -> ExitCode {
    let done = if let Some(helper) = Helper::called() {
        output::log(&std::env::var("MICA_LOG").unwrap_or_else(|_| "error".to_owned()));
        helper.run()
    } else {
        let cli = Cli::parse();
        output::log(&cli.log_filter());
        cmd::run(cli)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Usage(text)) => {
            output::complain(&format!("mica: {text}\nTry 'mica --help'."));
            ExitCode::from(2)
        }
        // Whoever reads our output has had enough.
        Err(Failure::Failed(error)) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            output::complain(&format!("mica: {}", explain(&*error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its sources, each said once.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return true;
        }
        next = error.source();
    }
    false
}
