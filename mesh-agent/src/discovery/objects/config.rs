//! The `MeshConfig` object, read into the model.

use std::time::Duration;

use super::{Fault, FieldPath};
use crate::discovery::duration;
use crate::discovery::resources::{DefaultInboundSpec, MeshConfigSpec, Present, Switch};
use crate::model::{DefaultInbound, MeshConfig};

/// Validates; absent fields keep their defaults.
///
/// # Errors
/// A value that cannot be read, or a field that is not supported yet.
pub fn accept(spec: &MeshConfigSpec) -> Result<MeshConfig, Fault> {
    refuse_unsupported(spec)?;
    let mut config = MeshConfig::default();
    if let Some(text) = &spec.trust_domain {
        config.trust_domain =
            text.parse().map_err(|error| Fault::at(FieldPath::of("spec.trustDomain"), format!("{error}")))?;
    }
    if let Some(name) = &spec.system_namespace {
        super::check_name(name, 63)
            .map_err(|message| Fault::at(FieldPath::of("spec.systemNamespace"), message))?;
        config.system_namespace.clone_from(name);
    }
    if let Some(text) = spec.certificates.as_ref().and_then(|certificates| certificates.ttl.as_ref()) {
        config.certificate_ttl = ttl(text)?;
    }
    if let Some(mode) = spec.default_inbound {
        config.default_inbound = match mode {
            DefaultInboundSpec::Permissive => DefaultInbound::Permissive,
            DefaultInboundSpec::Authenticated => DefaultInbound::Authenticated,
            DefaultInboundSpec::Deny => DefaultInbound::Deny,
            DefaultInboundSpec::Audit => DefaultInbound::Audit,
        };
    }
    if let Some(splice) = spec.fast_path.as_ref().and_then(|fast_path| fast_path.splice) {
        config.splice = Some(splice == Switch::Enabled);
    }
    if let Some(text) = spec.protocol_detection.as_ref().and_then(|detection| detection.timeout.as_ref()) {
        config.protocol_detection_timeout = detection_timeout(text)?;
    }
    let tracing = spec.telemetry.as_ref().and_then(|telemetry| telemetry.tracing.as_ref());
    if let Some(percent) = tracing.and_then(|tracing| tracing.sampling) {
        config.trace_sampling_permyriad = sampling(percent)?;
    }
    Ok(config)
}

/// Longer than this and a client that waits for the server's greeting gives up first.
const DETECTION_TIMEOUT_MAX: Duration = Duration::from_secs(10);

fn detection_timeout(text: &str) -> Result<Duration, Fault> {
    duration::parse(text).filter(|timeout| *timeout <= DETECTION_TIMEOUT_MAX).ok_or_else(|| {
        Fault::at(
            FieldPath::of("spec.protocolDetection.timeout"),
            format!("{text:?} is not a waiting time: write a duration from 0s to 10s, for example 500ms"),
        )
    })
}

fn sampling(percent: f64) -> Result<u16, Fault> {
    let hundredths = percent * 100.0;
    // A hundredth of a percent is not exact in binary, so whole hundredths are told with some room.
    let whole = (0.0..=10_000.0).contains(&hundredths) && (hundredths - hundredths.round()).abs() < 1e-6;
    if whole {
        // In range and whole, so nothing is cut off.
        Ok(hundredths.round() as u16)
    } else {
        Err(Fault::at(
            FieldPath::of("spec.telemetry.tracing.sampling"),
            format!("{percent} is not a percentage: write 0 to 100 with up to two decimals"),
        ))
    }
}

fn ttl(text: &str) -> Result<Duration, Fault> {
    duration::parse(text).filter(|ttl| *ttl >= Duration::from_secs(1)).ok_or_else(|| {
        Fault::at(
            FieldPath::of("spec.certificates.ttl"),
            format!("{text:?} is not a lifetime: write a duration of at least 1s, for example 24h or 1h30m"),
        )
    })
}

fn refuse_unsupported(spec: &MeshConfigSpec) -> Result<(), Fault> {
    let certificates = spec.certificates.clone().unwrap_or_default();
    let telemetry = spec.telemetry.clone().unwrap_or_default();
    let tracing = telemetry.tracing.clone().unwrap_or_default();
    let later: [(&str, Option<Present>); 10] = [
        ("spec.trustBundles", spec.trust_bundles),
        ("spec.ca", spec.ca),
        ("spec.certificates.keyAlg", certificates.key_alg),
        ("spec.certificates.pqMode", certificates.pq_mode),
        ("spec.egressDefault", spec.egress_default),
        ("spec.telemetry.metrics", telemetry.metrics),
        ("spec.telemetry.accessLog", telemetry.access_log),
        ("spec.telemetry.pathTemplates", telemetry.path_templates),
        ("spec.telemetry.tracing.otlp", tracing.otlp),
        ("spec.enrollment", spec.enrollment),
    ];
    match later.iter().find(|(_, present)| present.is_some()) {
        Some((field, _)) => Err(Fault::at(FieldPath::of(field), "not supported yet")),
        None => Ok(()),
    }
}
