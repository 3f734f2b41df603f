//! One report after the other: the whole, then what changed. Pure.

use std::sync::Arc;

use super::wire::{InForce, OBJECTS_MAX, Report};
use crate::model::Generations;

/// What control has heard of us, in one series.
#[derive(Clone, Debug)]
pub(super) struct Series {
    number: u64,
    next: u64,
    told: Arc<Generations>,
    /// That of which `told` is as much as there is room for.
    current: Arc<Generations>,
}

impl Series {
    /// A series that begins with everything. Its number must not be that of another.
    pub(super) fn begin(number: u64) -> Self {
        Self { number, next: 0, told: Arc::default(), current: Arc::default() }
    }

    /// Whether control has heard of exactly this.
    pub(super) fn has_told(&self, current: &Arc<Generations>) -> bool {
        self.next > 0 && (Arc::ptr_eq(&self.current, current) || self.current == *current)
    }

    /// What is to be said next, and the series once it was heard.
    pub(super) fn report(&self, current: &Arc<Generations>) -> (Report, Self) {
        let told = limited(current);
        let news = told.iter().filter(|(uid, generation)| self.told.get(*uid) != Some(*generation));
        let in_force =
            news.map(|(uid, generation)| InForce { uid: uid.to_string(), generation: *generation });
        let gone = self.told.keys().filter(|uid| !told.contains_key(*uid));
        let report = Report {
            series: self.number,
            number: self.next,
            in_force: in_force.collect(),
            gone: gone.map(ToString::to_string).collect(),
        };
        (report, Self { number: self.number, next: self.next + 1, told, current: current.clone() })
    }
}

/// As many as a report has room for.
fn limited(current: &Arc<Generations>) -> Arc<Generations> {
    if current.len() <= OBJECTS_MAX {
        return current.clone();
    }
    tracing::warn!(objects = current.len(), told = OBJECTS_MAX, "control is told about some objects only");
    Arc::new(current.iter().take(OBJECTS_MAX).map(|(uid, generation)| (uid.clone(), *generation)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generations(all: &[(&str, i64)]) -> Arc<Generations> {
        Arc::new(all.iter().map(|(uid, generation)| ((*uid).into(), *generation)).collect())
    }

    fn said(report: &Report) -> (u64, Vec<(&str, i64)>, Vec<&str>) {
        let in_force = report.in_force.iter().map(|one| (one.uid.as_str(), one.generation)).collect();
        (report.number, in_force, report.gone.iter().map(String::as_str).collect())
    }

    #[test]
    fn the_whole_comes_first_then_what_changed_then_nothing() {
        let begin = Series::begin(5);
        let state = generations(&[("a", 1), ("b", 1)]);
        assert!(!begin.has_told(&generations(&[])), "even nothing has to be said once");
        let (report, series) = begin.report(&state);
        assert_eq!((report.series, said(&report)), (5, (0, vec![("a", 1), ("b", 1)], vec![])));
        assert!(series.has_told(&state) && !begin.has_told(&state));
        let next = generations(&[("b", 2), ("c", 1)]);
        assert!(!series.has_told(&next));
        let (report, series) = series.report(&next);
        assert_eq!((report.series, said(&report)), (5, (1, vec![("b", 2), ("c", 1)], vec!["a"])));
        let (report, _) = series.report(&next);
        assert_eq!(said(&report), (2, vec![], vec![]), "a sign of life");
    }

    #[test]
    fn no_more_is_told_than_a_report_has_room_for() {
        let many = (0..OBJECTS_MAX + 5).map(|number| (format!("{number:06}").into(), 1));
        let many: Arc<Generations> = Arc::new(many.collect());
        let (report, series) = Series::begin(1).report(&many);
        assert_eq!(report.in_force.len(), OBJECTS_MAX);
        assert!(series.has_told(&many));
        let (report, _) = series.report(&many);
        assert_eq!(said(&report), (1, vec![], vec![]));
    }
}
