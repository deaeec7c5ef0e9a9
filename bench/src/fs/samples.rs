//! What was measured, and what it comes to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::row::{Goal, Kind, Row};
use super::subject::Subject;
use crate::spread::Spread;

/// What one subject gave in one row.
#[derive(Debug, Default, Serialize)]
pub struct Cell {
    /// By repetition: times in seconds, amounts in bytes.
    pub samples: BTreeMap<u32, f64>,
    /// Why there is none, or not in each repetition.
    pub failures: Vec<String>,
}

/// A row with what all subjects gave.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The row.
    #[serde(flatten)]
    pub row: Row,
    /// By subject.
    pub cells: BTreeMap<Subject, Cell>,
}

/// All rows, in the order of the table.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Samples {
    /// The lines.
    pub lines: Vec<Line>,
}

/// A goal and what it came to.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The goal.
    pub goal: Goal,
    /// The ratio or amount, if both sides were measured.
    pub found: Option<Spread>,
}

impl Judged {
    /// Whether the goal is reached, if it can be said.
    pub fn met(&self) -> Option<bool> {
        let median = self.found?.median;
        Some(match self.goal {
            Goal::Times(_, at_least) => median >= at_least,
            Goal::AtMost(at_most) | Goal::Growth(_, at_most) => median <= at_most,
        })
    }
}

impl Samples {
    /// Adds a line, still empty.
    pub fn declare(&mut self, row: Row) {
        self.lines.push(Line { row, cells: BTreeMap::new() });
    }

    /// The cell of a row that was declared.
    pub fn cell(&mut self, key: &str, subject: Subject) -> Option<&mut Cell> {
        let line = self.lines.iter_mut().find(|line| line.row.key == key)?;
        Some(line.cells.entry(subject).or_default())
    }

    /// The line of a row.
    pub fn line(&self, key: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.row.key == key)
    }

    /// What the goals of a line came to for a subject.
    pub fn judge(&self, line: &Line, subject: Subject) -> Vec<Judged> {
        let found = |goal: &Goal| match *goal {
            Goal::Times(peer, _) => line.ratio(subject, peer),
            Goal::AtMost(_) => line.spread(subject),
            Goal::Growth(from, _) => self.line(from).and_then(|from| {
                let (own, first) = (line.cells.get(&subject)?, from.cells.get(&subject)?);
                ratios(&own.samples, &first.samples)
            }),
        };
        line.row.goals_of(subject).into_iter().map(|goal| Judged { goal, found: found(&goal) }).collect()
    }

    /// The geometric mean of a subject's ratios over the real programs, if each of them has one.
    pub fn mean_of_work(&self, subject: Subject, peer: Subject) -> Option<f64> {
        let work = self.lines.iter().filter(|line| line.row.kind == Kind::Work);
        let ratios: Option<Vec<f64>> = work.map(|line| line.ratio(subject, peer).map(|found| found.median)).collect();
        let ratios = ratios.filter(|ratios| !ratios.is_empty())?;
        let number = f64::from(u32::try_from(ratios.len()).ok()?);
        Some((ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / number).exp())
    }
}

impl Line {
    /// A subject's samples.
    pub fn spread(&self, subject: Subject) -> Option<Spread> {
        Spread::of(self.cells.get(&subject)?.samples.values().copied())
    }

    /// The throughput of a subject in that of a peer, repetition by repetition.
    pub fn ratio(&self, subject: Subject, peer: Subject) -> Option<Spread> {
        ratios(&self.cells.get(&peer)?.samples, &self.cells.get(&subject)?.samples)
    }
}

/// The first in the second, of the repetitions that both have.
fn ratios(these: &BTreeMap<u32, f64>, those: &BTreeMap<u32, f64>) -> Option<Spread> {
    Spread::of(these.iter().filter_map(|(repetition, sample)| Some(sample / those.get(repetition)?)))
}

#[cfg(test)]
mod tests {
    use super::super::row::overlayfs;
    use super::*;

    const ROW: Row = Row::time("key", "what", Kind::Work, &[overlayfs(2.0)]);

    fn samples(of_peer: &[(u32, f64)], own: &[(u32, f64)]) -> Samples {
        let mut samples = Samples::default();
        samples.declare(ROW);
        for (subject, numbers) in [(Subject::Overlayfs, of_peer), (Subject::Mica, own)] {
            if let Some(cell) = samples.cell("key", subject) {
                cell.samples.extend(numbers.iter().copied());
            }
        }
        samples
    }

    #[test]
    fn ratio_is_taken_within_each_repetition_and_more_is_better() {
        let samples = samples(&[(0, 2.0), (1, 40.0), (2, 3.0)], &[(0, 1.0), (1, 10.0), (3, 1.0)]);
        let found = samples.lines[0].ratio(Subject::Mica, Subject::Overlayfs);
        assert_eq!(found, Some(Spread { low: 2.0, median: 3.0, high: 4.0 }));
        assert_eq!(samples.judge(&samples.lines[0], Subject::Mica)[0].met(), Some(true));
    }

    #[test]
    fn goal_is_undecided_where_one_side_was_not_measured() {
        let samples = samples(&[], &[(0, 1.0)]);
        assert_eq!(samples.judge(&samples.lines[0], Subject::Mica)[0].met(), None);
        assert_eq!(samples.mean_of_work(Subject::Mica, Subject::Overlayfs), None);
    }
}
