//! The table: ratios and goals first, then what was measured.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use mica_tests::{Context as _, Result};

use super::Scale;
use super::row::{Goal, Unit};
use super::samples::{Cell, Judged, Line, Samples};
use super::subject::Subject;
use crate::machine::Machine;
use crate::spread::Spread;

/// What stands around the part of a document that a run replaces.
const BEGIN: &str = "<!-- begin: written by `make bench` -->\n";
const END: &str = "<!-- end: written by `make bench` -->\n";

/// All of it, as Markdown.
pub fn markdown(
    machine: &Machine,
    samples: &Samples,
    subjects: &[Subject],
    repetitions: u32,
    scale: Scale,
    seconds: u64,
) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{machine}; {repetitions} repetitions in {} min\n\n`{}`\n",
        seconds / 60,
        machine.command_line()
    );
    if scale == Scale::Small {
        text.push_str(SMALL);
    }
    let judged: Vec<Subject> = subjects.iter().copied().filter(|subject| subject.is_mica()).collect();
    for subject in judged {
        goals(&mut text, samples, subject);
    }
    medians(&mut text, samples, subjects);
    reasons(&mut text, samples);
    text
}

/// What has to be known of a run that did little.
const SMALL: &str = "A small run, to try something: a tenth of the sizes and numbers that the rows name.\n\n";

/// Replaces the marked part of a document.
pub fn publish(document: &Path, table: &str) -> Result {
    let text = fs::read_to_string(document).context(document.display())?;
    let (before, rest) = text.split_once(BEGIN).context("the document has no begin mark")?;
    let (_, after) = rest.split_once(END).context("the document has no end mark")?;
    Ok(fs::write(document, format!("{before}{BEGIN}\n{}\n\n{END}{after}", table.trim()))?)
}

/// Ratios of one form of Mica, and what they should be.
fn goals(text: &mut String, samples: &Samples, subject: Subject) {
    let (name, base, rival) = (subject.name(), Subject::BASE.name(), Subject::RIVAL.name());
    let _ = writeln!(text, "**{name}**: times as fast as others (median of the repetitions' ratios, lowest-highest)\n");
    let _ = writeln!(text, "| workload | {name} / {base} | goal | met | {name} / {rival} | goal | met |");
    let _ = writeln!(text, "|---|--:|--:|---|--:|--:|---|");
    let (mut met, mut decided) = (0, 0);
    for line in &samples.lines {
        let judged = samples.judge(line, subject);
        let all = judged.iter().map(Judged::met).reduce(|one, next| Some(one? && next?)).flatten();
        let ratio = line.ratio(subject, Subject::RIVAL);
        let ahead = ratio.map(|ratio| ratio.median >= line.row.lead());
        for answer in [all, ahead].into_iter().flatten() {
            decided += 1;
            met += u32::from(answer);
        }
        // What has no goal of its own is still shown beside overlayfs.
        let found: Vec<String> =
            if judged.iter().any(|judged| matches!(judged.goal, Goal::Times(Subject::Overlayfs, _))) {
                judged.iter().map(|judged| shown(line, judged)).collect()
            } else {
                [line.ratio(subject, Subject::BASE).map(times)]
                    .into_iter()
                    .flatten()
                    .chain(judged.iter().map(|judged| shown(line, judged)))
                    .collect()
            };
        let wanted: Vec<String> = judged.iter().map(|judged| goal(line, &judged.goal)).collect();
        let lead = if ratio.is_some() { format!("{}", line.row.lead()) } else { String::new() };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {lead} | {} |",
            line.row.what,
            found.join("; "),
            wanted.join("; "),
            yes(all),
            ratio.map(times).unwrap_or_default(),
            yes(ahead)
        );
    }
    if let Some(mean) = samples.mean_of_work(subject, Subject::BASE) {
        let rival = samples.mean_of_work(subject, Subject::RIVAL);
        let beside = rival.map(|rival| format!("{rival:.2}")).unwrap_or_default();
        let answer = Some(mean >= MEAN_OF_WORK);
        let _ = writeln!(
            text,
            "| real work, geometric mean | {mean:.2} | {MEAN_OF_WORK} | {} | {beside} | 1 | {} |",
            yes(answer),
            yes(rival.map(|rival| rival >= 1.0))
        );
    }
    let _ = writeln!(text, "\n{met} of {decided} goals are met.\n");
}

/// What the geometric mean over real programs should be.
const MEAN_OF_WORK: f64 = 0.95;

/// What was measured: medians, lowest and highest.
fn medians(text: &mut String, samples: &Samples, subjects: &[Subject]) {
    let _ = write!(text, "Medians (lowest-highest)\n\n| workload |");
    for subject in subjects {
        let _ = write!(text, " {} |", subject.name());
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(subjects.len()));
    for line in &samples.lines {
        let _ = write!(text, "| {} |", line.row.what);
        for subject in subjects {
            let cell = match line.spread(*subject) {
                Some(found) => with_ends(found, |number| amount(line.row.unit, number)),
                None => "n/a".to_owned(),
            };
            let _ = write!(text, " {cell} |");
        }
        let _ = writeln!(text);
    }
}

/// Why something is missing.
fn reasons(text: &mut String, samples: &Samples) {
    let mut lines = Vec::new();
    for line in &samples.lines {
        for (subject, Cell { failures, samples }) in &line.cells {
            let Some(failure) = failures.first() else { continue };
            let first = failure.lines().collect::<Vec<_>>().join(" ");
            let times = if samples.is_empty() {
                String::new()
            } else {
                format!(", {} of {} times", failures.len(), failures.len() + samples.len())
            };
            lines.push(format!("* {}, {}{times}: {first}\n", line.row.what, subject.name()));
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(text, "\nNot measured:\n\n{}", lines.concat());
    }
}

fn shown(line: &Line, judged: &Judged) -> String {
    match (judged.goal, judged.found) {
        (_, None) => "n/a".to_owned(),
        (Goal::Times(Subject::Overlayfs, _), Some(found)) => times(found),
        (Goal::Times(peer, _), Some(found)) => format!("{} ({})", times(found), peer.name()),
        (Goal::AtMost(_), Some(found)) => amount(line.row.unit, found.median),
        (Goal::Growth(..), Some(found)) => format!("{} of the time at 1", times(found)),
    }
}

fn goal(line: &Line, goal: &Goal) -> String {
    match goal {
        Goal::Times(_, at_least) => format!("{at_least}"),
        Goal::AtMost(at_most) => format!("at most {}", amount(line.row.unit, *at_most)),
        Goal::Growth(_, at_most) => format!("at most {at_most}"),
    }
}

fn times(ratio: Spread) -> String {
    with_ends(ratio, digits)
}

/// The median, and the ends if there is more than one number.
fn with_ends(found: Spread, shown: impl Fn(f64) -> String) -> String {
    let Spread { low, median, high } = found;
    if low < high { format!("{} ({}-{})", shown(median), shown(low), shown(high)) } else { shown(median) }
}

fn yes(answer: Option<bool>) -> &'static str {
    match answer {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "",
    }
}

/// A time or an amount in a unit that suits it.
fn amount(unit: Unit, number: f64) -> String {
    let units: &[(f64, &str)] = match unit {
        Unit::Time => &[(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")],
        Unit::Memory => &[(1_048_576.0, "MiB"), (1024.0, "KiB"), (1.0, "B")],
    };
    let (size, name) = units.iter().find(|(size, _)| number >= *size).or(units.last()).copied().unwrap_or((1.0, ""));
    format!("{} {name}", digits(number / size))
}

/// Three digits that matter.
fn digits(number: f64) -> String {
    match number {
        large if large >= 100.0 => format!("{large:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_a_unit_that_suits_them() {
        assert_eq!(amount(Unit::Time, 0.001_234), "1.23 ms");
        assert_eq!(amount(Unit::Time, 12.0), "12.0 s");
        assert_eq!(amount(Unit::Time, 2.5e-7), "250 ns");
        assert_eq!(amount(Unit::Memory, 65_536.0), "64.0 KiB");
        assert_eq!(amount(Unit::Memory, 0.0), "0.00 B");
    }

    #[test]
    fn publish_replaces_what_is_between_the_marks_and_nothing_else() -> Result {
        let folder = tempfile::tempdir()?;
        let document = folder.path().join("document");
        fs::write(&document, format!("before\n{BEGIN}old\n{END}after\n"))?;
        publish(&document, "new\n")?;
        assert_eq!(fs::read_to_string(&document)?, format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        fs::write(&document, "no marks")?;
        assert!(publish(&document, "new").is_err());
        Ok(())
    }
}
