//! Asks policy about a request to an application of this node.
//!
//! Station 10 for requests. The request is entered among the open ones before the question, so that no change of policies
//! is missed while it is under way.

use std::rc::Rc;

use http::HeaderMap;

use super::connection::{Connection, Side};
use super::head::Head;
use super::upstream::Way;
use crate::model::{EndpointAddr, PathFault, RequestPath};
use crate::policy::{Facts, Permit, Refusal, Request};
use crate::proxy::endpoint::Target;
use crate::proxy::inbound::note_audits;
use crate::proxy::open::{Judged, JudgedRequest, Registered};
use crate::proxy::worker::Served;

/// Why a request may not pass.
#[derive(Debug)]
pub enum Refused {
    /// Its path, as filters made it, has no normal form.
    Path(PathFault),
    /// Policy.
    Policy(Refusal),
}

/// How an endpoint is reached; where that is an application of this node, policy is asked first.
///
/// # Errors
/// The request may not pass.
pub fn way(connection: &Connection, target: &Target, head: &Head) -> Result<Way, Refused> {
    let pod = match &connection.side {
        Side::Inbound { .. } => connection.served.clone(),
        Side::Outbound { .. } => {
            let source = connection.served.pod.workload();
            let Some(destination) = target.tunnelled(&source) else { return Ok(Way::Plain) };
            match connection.local.served(&destination.uid) {
                Some(pod) => pod,
                None => return Ok(Way::Tunnel(destination.clone())),
            }
        }
    };
    let (permit, entry) = judge(connection, &pod, target.address, head)?;
    Ok(Way::Application { pod, permit, address: target.address, entry })
}

/// Judges a request as its application will see it.
fn judge(
    connection: &Connection,
    pod: &Rc<Served>,
    address: EndpointAddr,
    head: &Head,
) -> Result<(Permit, Registered), Refused> {
    let local = &connection.local;
    let workload = pod.pod.workload();
    let policies = local.handles.policies.current();
    let client = connection.client.ip();
    // Where no rule speaks about requests, headers are not kept; should one come, it is judged without them, and a rule that
    // asks for a header then closes what it cannot see.
    let headers = if policies.needs_requests(&workload, address.port()) {
        head.headers.clone()
    } else {
        HeaderMap::new()
    };
    let request = Some(Box::new(JudgedRequest {
        method: head.method.clone(),
        path: head.path().to_owned(),
        host: head.host().map(str::to_owned),
        headers,
    }));
    let node_probe = connection.node_probe;
    let judged =
        Judged { identity: connection.proven.clone(), client, port: address.port(), node_probe, request };
    let entry = local.open.enter(pod.pod.clone(), Some(judged));
    let path = RequestPath::parse(head.path()).map_err(Refused::Path)?;
    let facts = Facts {
        identity: connection.proven.as_ref(),
        client,
        destination: &workload,
        port: address.port(),
        node_probe,
        request: Some(Request {
            method: &head.method,
            path: &path,
            headers: &head.headers,
            host: head.host(),
        }),
    };
    // Asked of the newest set: the entry is there already, so a change from here on reaches it.
    let permit = local.handles.policies.current().evaluate(&facts).map_err(Refused::Policy)?;
    note_audits(&permit, connection.client, address);
    Ok((permit, entry))
}
