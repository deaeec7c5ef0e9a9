//! Plots, as SVG.

use std::fmt::Write as _;

use super::samples::{Line, Samples};
use super::subject::Subject;
use super::workload::DEPTHS;

/// Colours that the colour-blind can tell apart (Okabe and Ito), one for each subject.
const COLOURS: [&str; 8] = ["#999999", "#000000", "#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#d55e00", "#009e73"];

/// One line for each row: where every subject is on a scale of times overlayfs' throughput.
pub fn ratios(samples: &Samples, subjects: &[Subject]) -> String {
    const LEFT: f64 = 420.0;
    const WIDTH: f64 = 620.0;
    const STEP: f64 = 20.0;
    const TOP: f64 = 60.0;
    let lines: Vec<&Line> = samples.lines.iter().filter(|line| line.spread(Subject::BASE).is_some()).collect();
    let of = |line: &Line, subject| line.ratio(subject, Subject::BASE).map(|ratio| ratio.median);
    let all = lines.iter().flat_map(|line| subjects.iter().filter_map(|subject| of(line, *subject)));
    let (low, high) = decades(all);
    let across = |ratio: f64| LEFT + WIDTH * (ratio.log10() - low) / (high - low);
    let bottom = TOP + STEP * float(lines.len());
    let mut svg = Svg::new(LEFT + WIDTH + 30.0, bottom + 40.0);
    svg.legend(subjects, 7, 16.0);
    let mut decade = low;
    while decade <= high {
        let at = across(10f64.powf(decade));
        let colour = if decade == 0.0 { "#000000" } else { "#dddddd" };
        svg.line((at, TOP - 10.0), (at, bottom), colour);
        svg.text(at, bottom + 18.0, "middle", &format!("{}", 10f64.powf(decade)));
        decade += 1.0;
    }
    for (number, line) in lines.iter().enumerate() {
        let height = TOP + STEP * float(number);
        svg.text(LEFT - 12.0, height + 4.0, "end", line.row.what);
        svg.line((LEFT, height + STEP / 2.0), (LEFT + WIDTH, height + STEP / 2.0), "#f4f4f4");
        for (place, subject) in subjects.iter().enumerate() {
            if let Some(ratio) = of(line, *subject) {
                svg.dot(across(ratio), height, place);
            }
        }
    }
    svg.text(LEFT + WIDTH / 2.0, bottom + 36.0, "middle", "times the throughput of overlayfs");
    svg.finish()
}

/// Time of a lookup against the number of layers.
pub fn layers(samples: &Samples, subjects: &[Subject]) -> String {
    const LEFT: f64 = 70.0;
    const WIDTH: f64 = 620.0;
    const TOP: f64 = 60.0;
    const HEIGHT: f64 = 320.0;
    let point =
        |key: &str, subject| samples.line(key).and_then(|line| line.spread(subject)).map(|time| time.median * 1e6);
    let all = DEPTHS.iter().flat_map(|(_, key, _)| subjects.iter().filter_map(|subject| point(key, *subject)));
    let (low, high) = decades(all);
    let deepest = DEPTHS.last().map_or(1.0, |(depth, ..)| f64::from(*depth)).log10();
    let across = |depth: u32| LEFT + WIDTH * f64::from(depth).log10() / deepest;
    let down = |time: f64| TOP + HEIGHT * (high - time.log10()) / (high - low);
    let mut svg = Svg::new(LEFT + WIDTH + 30.0, TOP + HEIGHT + 50.0);
    svg.legend(subjects, 4, 16.0);
    let mut decade = low;
    while decade <= high {
        let at = down(10f64.powf(decade));
        svg.line((LEFT, at), (LEFT + WIDTH, at), "#dddddd");
        svg.text(LEFT - 8.0, at + 4.0, "end", &format!("{} us", 10f64.powf(decade)));
        decade += 1.0;
    }
    for (depth, ..) in DEPTHS {
        svg.text(across(depth), TOP + HEIGHT + 18.0, "middle", &depth.to_string());
    }
    for (place, subject) in subjects.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            DEPTHS.iter().filter_map(|(depth, key, _)| Some((across(*depth), down(point(key, *subject)?)))).collect();
        for pair in points.windows(2) {
            svg.line(pair[0], pair[1], COLOURS[place % COLOURS.len()]);
        }
        for (x, y) in points {
            svg.dot(x, y, place);
        }
    }
    svg.text(LEFT + WIDTH / 2.0, TOP + HEIGHT + 38.0, "middle", "layers; time of a cold lookup");
    svg.finish()
}

/// The powers of ten around these numbers; from one to ten where there are none.
fn decades(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        numbers.filter(|number| number.is_finite() && *number > 0.0).fold((0.0f64, 1.0f64), |(low, high), number| {
            (low.min(number.log10().floor()), high.max(number.log10().ceil()))
        });
    (low, high)
}

/// A count of lines of a table has fewer digits than a float.
#[allow(clippy::cast_precision_loss)]
fn float(number: usize) -> f64 {
    number as f64
}

struct Svg {
    text: String,
}

impl Svg {
    fn new(width: f64, height: f64) -> Svg {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">"
        );
        let _ = writeln!(text, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
        Svg { text }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let _ = writeln!(
            self.text,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    fn dot(&mut self, x: f64, y: f64, place: usize) {
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(
            self.text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\" fill-opacity=\"0.85\"/>"
        );
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
    }

    /// Names and colours, in rows of so many.
    fn legend(&mut self, subjects: &[Subject], across: usize, y: f64) {
        for (place, subject) in subjects.iter().enumerate() {
            let x = 20.0 + 145.0 * float(place % across);
            let y = y + 18.0 * float(place / across);
            self.dot(x, y, place);
            self.text(x + 9.0, y + 4.0, "start", subject.name());
        }
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_surround_the_numbers() {
        assert_eq!(decades([0.3, 50.0].into_iter()), (-1.0, 2.0));
        assert_eq!(decades([].into_iter()), (0.0, 1.0));
    }

    #[test]
    fn words_are_no_markup() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text(1.0, 1.0, "end", "a<b & c");
        assert!(svg.finish().contains(">a&lt;b &amp; c</text>"));
    }
}
