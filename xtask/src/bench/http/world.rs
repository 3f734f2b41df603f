//! Weft's world: a service with a port for each version of HTTP, and routes that turn requests on it into something that
//! agents see.

use std::fmt::Write;

use crate::bench::peer::Rules;
use crate::bench::stage::NAMESPACE;

/// The service's address, known beforehand so that the client needs no resolver.
pub(super) const SERVICE_IP: &str = "10.96.0.50";

/// Most rules of one HTTPRoute (Gateway API v1).
const RULES_PER_ROUTE: usize = 16;

/// The service `server`.
pub(super) fn service_yaml(http1: u16, http2: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: {NAMESPACE}}}\n\
         spec:\n  clusterIP: {SERVICE_IP}\n  selector: {{app: server}}\n  ports:\n  \
         - {{name: http1, port: {http1}, targetPort: {http1}, appProtocol: http}}\n  \
         - {{name: http2, port: {http2}, targetPort: {http2}, appProtocol: kubernetes.io/h2c}}\n"
    )
}

/// HTTPRoutes for a port of the service: requests stay on that port.
pub(super) fn routes_yaml(port: u16, rules: Rules) -> String {
    let mut text = String::new();
    for (number, prefixes) in rules.prefixes().chunks(RULES_PER_ROUTE).enumerate() {
        // Writing to memory cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: server-{port}-{number}, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs:\n  - {{group: \"\", kind: Service, name: server, port: {port}}}\n  rules:\n"
        );
        for prefix in prefixes {
            // Without the slash: PathPrefix compares whole segments by itself.
            let value = if prefix == "/" { prefix } else { prefix.trim_end_matches('/') };
            let _ = write!(
                text,
                "  - matches: [{{path: {{type: PathPrefix, value: {value}}}}}]\n    \
                 backendRefs: [{{name: server, port: {port}}}]\n"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_in_a_route_that_is_not_too_large() {
        let text = routes_yaml(80, Rules::new(1000));
        let routes: Vec<&str> = text.split("---\n").skip(1).collect();
        let rules = |route: &str| route.matches("- matches").count();
        assert_eq!(routes.iter().map(|route| rules(route)).sum::<usize>(), 1000);
        assert!(routes.iter().all(|route| rules(route) <= RULES_PER_ROUTE));
        assert!(routes_yaml(80, Rules::new(1)).contains("value: /}"));
    }
}
