//! Backends as they are written: which service and port, by what weight.

use gateway_api::httproutes::{HttpRouteRulesBackendRefs, HttpRouteRulesFiltersRequestMirrorBackendRef};

use super::super::{check_name, port};
use super::filters::Place;
use super::{Fault, FieldPath, Flaw, Key, at_most, filters, strict};
use crate::model::{BackendTarget, RouteBackend, ServiceName};

/// Most backends of one rule.
const BACKENDS_MAX: usize = 16;
/// Largest weight.
const WEIGHT_MAX: i32 = 1_000_000;

pub(super) fn accept(
    key: &Key,
    written: &[HttpRouteRulesBackendRefs],
    field: &FieldPath,
) -> Result<Vec<RouteBackend>, Flaw> {
    at_most(written.len(), BACKENDS_MAX, field)?;
    written.iter().enumerate().map(|(index, one)| backend(key, one, &field.index(index))).collect()
}

fn backend(key: &Key, written: &HttpRouteRulesBackendRefs, field: &FieldPath) -> Result<RouteBackend, Flaw> {
    let weight = written.weight.unwrap_or(1);
    let weight = u32::try_from(weight).ok().filter(|_| weight <= WEIGHT_MAX).ok_or_else(|| {
        Fault::at(field.key("weight"), format!("{weight} is not a weight: use 0 to {WEIGHT_MAX}"))
    })?;
    let filters_field = field.key("filters");
    let written_filters: Vec<_> =
        strict::recast(&written.filters.clone().unwrap_or_default(), &filters_field)?;
    Ok(RouteBackend {
        target: target(key, &strict::recast(written, field)?, field)?,
        weight,
        filters: filters::accept(key, &written_filters, Place::Backend, &filters_field)?,
    })
}

/// A reference to something else than a service is well-formed and leads nowhere.
pub(super) fn target(
    key: &Key,
    written: &HttpRouteRulesFiltersRequestMirrorBackendRef,
    field: &FieldPath,
) -> Result<BackendTarget, Fault> {
    let group = written.group.as_deref().unwrap_or_default();
    let kind = written.kind.as_deref().unwrap_or("Service");
    if (group, kind) != ("", "Service") {
        let name = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let reason = format!("{name} is not a kind of backend here: use a Service");
        return Ok(BackendTarget::Invalid { reason: reason.into() });
    }
    let name = service_name(key, written.namespace.as_deref(), &written.name, field)?;
    let number =
        written.port.ok_or_else(|| Fault::at(field.key("port"), "missing: a Service needs a port here"))?;
    Ok(BackendTarget::Service { name, port: port(number, || field.key("port"))? })
}

/// The service that a reference names; without a namespace, of the route's own.
pub(super) fn service_name(
    key: &Key,
    namespace: Option<&str>,
    name: &str,
    field: &FieldPath,
) -> Result<ServiceName, Fault> {
    check_name(name, 253).map_err(|message| Fault::at(field.key("name"), message))?;
    let namespace = match namespace {
        None => key.namespace.clone(),
        Some(namespace) => {
            check_name(namespace, 63).map_err(|message| Fault::at(field.key("namespace"), message))?;
            namespace.into()
        }
    };
    Ok(ServiceName { namespace, name: name.into() })
}
