//! Families about the feeds of the Kubernetes API: one series per kind.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;

use super::{Catalogue, KindLabels};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindReasonLabels {
    kind: &'static str,
    reason: &'static str,
}

/// The families.
#[derive(Debug)]
pub(in crate::telemetry) struct Feeds {
    connected: Family<KindLabels, Gauge>,
    failures: Family<KindReasonLabels, Counter>,
    lists: Family<KindLabels, Counter>,
    objects: Family<KindLabels, Gauge>,
    last_event: Family<KindLabels, Gauge>,
}

impl Feeds {
    pub(super) fn register(all: &mut Catalogue) -> Self {
        Self {
        connected: all.add(
            "discovery_connected",
            None,
            &["kind"],
            "1 while changes of objects of this kind arrive from the Kubernetes API, 0 while they do not",
            Family::default(),
        ),
        failures: all.add(
            "discovery_failures",
            None,
            &["kind", "reason"],
            "Times that the Kubernetes API could not be read, by what went wrong",
            Family::default(),
        ),
        lists: all.add(
            "discovery_lists",
            None,
            &["kind"],
            "Times that all objects of a kind were listed; each watch that goes on where it was needs none",
            Family::default(),
        ),
        objects: all.add(
            "discovery_objects",
            None,
            &["kind"],
            "Objects of a kind that the Kubernetes API has, as far as is known",
            Family::default(),
        ),
        last_event: all.add(
            "discovery_last_event_timestamp",
            Some(Unit::Seconds),
            &["kind"],
            "When the Kubernetes API last said something about a kind, in seconds since 1970",
            Family::default(),
        ),
    }
    }

    pub(in crate::telemetry) fn connected(&self, kind: &'static str) -> Gauge {
        self.connected.get_or_create_owned(&KindLabels { kind })
    }

    pub(in crate::telemetry) fn failures(&self, kind: &'static str, reason: &'static str) -> Counter {
        self.failures.get_or_create_owned(&KindReasonLabels { kind, reason })
    }

    pub(in crate::telemetry) fn lists(&self, kind: &'static str) -> Counter {
        self.lists.get_or_create_owned(&KindLabels { kind })
    }

    pub(in crate::telemetry) fn objects(&self, kind: &'static str) -> Gauge {
        self.objects.get_or_create_owned(&KindLabels { kind })
    }

    pub(in crate::telemetry) fn last_event(&self, kind: &'static str) -> Gauge {
        self.last_event.get_or_create_owned(&KindLabels { kind })
    }
}
