//! Which of many regular expressions match a text? Asked of all at once.

use regex::{Regex, RegexSet};

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
        let (expressions, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let mut parts = Vec::new();
        compile(&expressions, 0, &mut parts);
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
fn compile(regexes: &[Regex], first: usize, parts: &mut Vec<Part>) {
    match regexes {
        [] => {}
        [one] => parts.push(Part { first, expressions: Expressions::One(one.clone()) }),
        many => match RegexSet::new(many.iter().map(Regex::as_str)) {
            Ok(set) => parts.push(Part { first, expressions: Expressions::Many(set) }),
            // Each of them compiled alone, so together they are too large.
            Err(_) => {
                let (left, right) = many.split_at(many.len() / 2);
                compile(left, first, parts);
                compile(right, first + left.len(), parts);
            }
        },
    }
}
