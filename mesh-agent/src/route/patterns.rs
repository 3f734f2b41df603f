//! Which of many regular expressions match a text? Asked of all at once.

use regex::{Regex, RegexSet, RegexSetBuilder};

/// Largest compiled set, in bytes.
///
/// The regex crate's own default for one expression; a set also takes memory while it matches, up to about as much in each
/// thread. Expressions that are larger together are asked in several sets, which costs time and nothing else.
const SET_BYTES_MAX: usize = 10 << 20;

/// Values, each behind a regular expression.
#[derive(Debug)]
pub(super) struct Patterns<T> {
    parts: Vec<Part>,
    values: Vec<T>,
}

/// Neighbouring expressions; the first of them belongs to `values[first]`.
#[derive(Debug)]
struct Part {
    first: usize,
    expressions: Expressions,
}

#[derive(Debug)]
enum Expressions {
    /// Spares the set's allocation, and always compiles.
    One(Regex),
    Many(RegexSet),
}

impl<T> Patterns<T> {
    /// Compiles them. Expressions should differ from each other; the same one twice costs twice.
    pub(super) fn new(entries: Vec<(Regex, T)>) -> Self {
        Self::in_sets_of(entries, SET_BYTES_MAX)
    }

    fn in_sets_of(entries: Vec<(Regex, T)>, set_bytes_max: usize) -> Self {
        let (expressions, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let mut parts = Vec::new();
        compile(&expressions, 0, set_bytes_max, &mut parts);
        Self { parts, values }
    }

    /// The least of what `judge` finds in the values whose expressions match.
    pub(super) fn least<R: Ord>(&self, text: &str, mut judge: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let mut least = None;
        let mut consider = |index: usize| {
            if let Some(found) = judge(&self.values[index])
                && least.as_ref().is_none_or(|least| found < *least)
            {
                least = Some(found);
            }
        };
        for part in &self.parts {
            match &part.expressions {
                Expressions::One(regex) if regex.is_match(text) => consider(part.first),
                Expressions::One(_) => {}
                Expressions::Many(set) => {
                    set.matches(text).iter().for_each(|index| consider(part.first + index));
                }
            }
        }
        least
    }
}

/// Compiles expressions into as few sets as the size limit of a set allows.
fn compile(regexes: &[Regex], first: usize, set_bytes_max: usize, parts: &mut Vec<Part>) {
    match regexes {
        [] => {}
        [one] => parts.push(Part { first, expressions: Expressions::One(one.clone()) }),
        many => match set(many, set_bytes_max) {
            Ok(set) => parts.push(Part { first, expressions: Expressions::Many(set) }),
            // Each of them compiled alone, so together they are too large.
            Err(_) => {
                let (left, right) = many.split_at(many.len() / 2);
                compile(left, first, set_bytes_max, parts);
                compile(right, first + left.len(), set_bytes_max, parts);
            }
        },
    }
}

fn set(regexes: &[Regex], bytes_max: usize) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(regexes.iter().map(Regex::as_str)).size_limit(bytes_max).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is room for all, some or none in one set, the same values are found.
    #[test]
    fn expressions_too_large_for_one_set_are_asked_in_several() {
        for (set_bytes_max, parts) in [(SET_BYTES_MAX, 1..=1), (4096, 2..=39), (0, 40..=40)] {
            let entries = (0..40).map(|n| (regex(&format!("^(?:/{n}/.*|/all)$")), n)).collect();
            let patterns = Patterns::in_sets_of(entries, set_bytes_max);
            assert!(parts.contains(&patterns.parts.len()), "{} parts", patterns.parts.len());
            for n in [0, 19, 20, 39] {
                assert_eq!(patterns.least(&format!("/{n}/x"), |value| Some(*value)), Some(n));
            }
            assert_eq!(patterns.least("/all", |value| (*value > 6).then_some(*value)), Some(7));
            assert_eq!(patterns.least("/40/x", |value| Some(*value)), None);
        }
    }

    fn regex(pattern: &str) -> Regex {
        Regex::new(pattern).expect("a regular expression")
    }
}
