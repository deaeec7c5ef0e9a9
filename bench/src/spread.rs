//! What several samples come to.

use serde::Serialize;

/// The middle and both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub low: f64,
    /// The middle one, or between the middle two.
    pub median: f64,
    /// The greatest.
    pub high: f64,
}

impl Spread {
    /// Of these numbers; none of no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { low, median: f64::midpoint(below, above), high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_numbers_of_samples() {
        assert_eq!(Spread::of([5.0, 1.0, 9.0]), Some(Spread { low: 1.0, median: 5.0, high: 9.0 }));
        assert_eq!(Spread::of([5.0, 1.0, 9.0, 7.0]), Some(Spread { low: 1.0, median: 6.0, high: 9.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
