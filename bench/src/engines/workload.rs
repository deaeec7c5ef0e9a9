//! What is done.

mod start;
mod unpack;

use std::time::Duration;

use mica_tests::Result;
use mica_tests::scene::Scene;

use crate::engines::subject::{self, Subject};

/// Something that is done on each subject in turn, and timed.
pub trait Workload {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Who does it.
    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subject::all()
    }

    /// What all rounds need, once.
    fn prepare(&self, scene: &Scene, image: &str, subjects: &[Box<dyn Subject>]) -> Result;

    /// One round on one subject: named times. What isn't measured leaves the subject as it was.
    fn measure(&self, scene: &Scene, image: &str, subject: &dyn Subject) -> Result<Vec<(&'static str, Duration)>>;

    /// Takes back what [`Workload::prepare`] did.
    fn clean_up(&self, scene: &Scene, image: &str, subjects: &[Box<dyn Subject>]) -> Result;
}

/// All of them.
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![Box::new(unpack::Unpack), Box::new(start::Start)]
}
