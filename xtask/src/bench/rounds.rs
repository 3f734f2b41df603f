//! Variants take turns within a round, and the first of a round changes: what disturbs the machine disturbs all alike.

use anyhow::Result;

use super::Effort;
use super::traffic::Sample;
use crate::shell::say;

/// All samples of one measure of one variant.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// In the order of the rounds.
    pub samples: Vec<Sample>,
}

impl Series {
    /// The median over the samples in which nothing went wrong; none when there is no such sample.
    pub fn median(&self, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().filter(|sample| sample.is_clean()).map(value).collect())
    }

    /// Samples in which something went wrong.
    pub fn failed(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| !sample.is_clean())
    }
}

/// The median; of an even number of values the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Measures every measure of every variant once per round. `series[measure][variant]` comes back.
pub fn interleave<M, V>(
    effort: &Effort,
    measures: &[M],
    variants: &[V],
    name: impl Fn(&M, &V) -> String,
    mut measure: impl FnMut(&M, &V) -> Result<Sample>,
) -> Result<Vec<Vec<Series>>> {
    let mut series = vec![vec![Series::default(); variants.len()]; measures.len()];
    for round in 0..effort.rounds {
        say(format!(
            "round {} of {}: {} measurements",
            round + 1,
            effort.rounds,
            measures.len() * variants.len()
        ));
        for (which, one) in measures.iter().enumerate() {
            for turn in 0..variants.len() {
                let variant = (turn + round + which) % variants.len();
                let sample = measure(one, &variants[variant])?;
                if !sample.is_clean() {
                    let errors = sample.client.errors.iter().chain(&sample.server.errors);
                    let errors: Vec<&str> = errors.map(String::as_str).collect();
                    say(format!("{}: {}", name(one, &variants[variant]), errors.join("; ")));
                }
                series[which][variant].samples.push(sample);
            }
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }
}
