//! Which alternatives name this gRPC method? By hash where names are exact.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;

use super::paths::Places;
use super::patterns::Patterns;
use crate::model::StringMatch;

/// Candidates by service, then by method.
#[derive(Debug)]
pub(super) struct Calls {
    services: Names<Names<Places>>,
}

/// Values by how a name is compared, from narrow to wide.
#[derive(Debug)]
struct Names<T> {
    exact: HashMap<Arc<str>, T>,
    patterns: Patterns<T>,
    any: Option<T>,
}

/// One alternative: how service and method are compared, and its place.
pub(super) struct Call<'a> {
    pub(super) service: Option<&'a StringMatch>,
    pub(super) method: Option<&'a StringMatch>,
    pub(super) place: usize,
}

impl Calls {
    /// Of calls in order of precedence.
    pub(super) fn new(calls: Vec<Call<'_>>) -> Self {
        let by_service = calls.into_iter().map(|call| (call.service, call));
        let services = Names::new(by_service, |calls| {
            Names::new(calls.into_iter().map(|call| (call.method, call.place)), |places| places)
        });
        Self { services }
    }

    /// The least of what `judge` finds among the candidates for the call that this path names.
    pub(super) fn least(&self, path: &str, judge: impl Fn(&Places) -> Option<usize>) -> Option<usize> {
        let (service, method) = match service_and_method(path) {
            Some((service, method)) => (Some(service), Some(method)),
            None => (None, None),
        };
        self.services.narrowest(service, |methods| methods.narrowest(method, &judge))
    }
}

impl<T> Names<T> {
    fn new<'a, C>(
        compared: impl Iterator<Item = (Option<&'a StringMatch>, C)>,
        make: impl Fn(Vec<C>) -> T,
    ) -> Self {
        let (mut exact, mut any) = (HashMap::<_, Vec<C>>::new(), Vec::new());
        let mut patterns = HashMap::<_, (Regex, Vec<C>)>::new();
        for (name, value) in compared {
            match name {
                Some(StringMatch::Exact(name)) => exact.entry(name.clone()).or_default().push(value),
                Some(StringMatch::Regex(regex)) => {
                    patterns
                        .entry(regex.as_str())
                        .or_insert_with(|| (regex.clone(), Vec::new()))
                        .1
                        .push(value);
                }
                None => any.push(value),
            }
        }
        Self {
            exact: exact.into_iter().map(|(name, values)| (name, make(values))).collect(),
            patterns: Patterns::new(
                patterns.into_values().map(|(regex, values)| (regex, make(values))).collect(),
            ),
            any: (!any.is_empty()).then(|| make(any)),
        }
    }

    /// What `judge` finds behind the exact name, else behind expressions that match it, else behind "any".
    fn narrowest<R: Ord>(&self, name: Option<&str>, judge: impl Fn(&T) -> Option<R>) -> Option<R> {
        let exact = || judge(self.exact.get(name?)?);
        let patterns = || self.patterns.least(name?, &judge);
        let any = || self.any.as_ref().and_then(&judge);
        exact().or_else(patterns).or_else(any)
    }
}

/// `/service/method` taken apart. `None`: this is not the path of a call.
fn service_and_method(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}
