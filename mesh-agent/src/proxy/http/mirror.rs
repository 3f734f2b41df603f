//! Copies of requests for another backend (GEP-3171): fire and forget.
//!
//! Beside station 12. A copy never delays its original, has no say in its outcome and is not counted as a request of the
//! client's. The server sees the same request; what it answers is read and dropped.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;

use super::admission::{self, Refused};
use super::body::{RequestBody, Source};
use super::connection::{Connection, speaks_h2};
use super::head::Head;
use super::request::destination_of;
use super::upstream::Key;
use crate::capture::Origin;
use crate::lifecycle::tasks;
use crate::model::{BackendTarget, Filter};
use crate::proxy::endpoint;
use crate::proxy::worker::Local;
use crate::registry::Snapshot;
use crate::route::filters;
use crate::telemetry::Mirrored;

/// How long a copy may take. It holds a connection, and nobody waits for it.
const MIRROR_MAX: Duration = Duration::from_secs(30);

/// Where copies of this request go.
pub fn drawn(of_rule: &[Filter], of_backend: &[Filter], local: &Local) -> Vec<BackendTarget> {
    let mut drawn = Vec::new();
    for filter in of_rule.iter().chain(of_backend) {
        if let Filter::Mirror(mirror) = filter
            && filters::is_mirrored(mirror, &mut local.rng.borrow_mut())
        {
            drawn.push(mirror.backend.clone());
        }
    }
    drawn
}

/// Sends a copy, in a task of its own.
pub fn send(
    connection: &Rc<Connection>,
    mesh: &Arc<Snapshot>,
    target: BackendTarget,
    head: &Head,
    source: Option<&Rc<RefCell<Source>>>,
    client_speaks_h2: bool,
) {
    let body = match source {
        Some(source) => RequestBody::mirrored(source.borrow_mut().mirror()),
        None => RequestBody::empty(),
    };
    let (connection, mesh, mut head) = (connection.clone(), mesh.clone(), head.clone());
    head.upgrade = None;
    tasks::spawn_local("mirrored request", async move {
        let copying = copy(&connection, &mesh, &target, head, body, client_speaks_h2);
        let result = match tokio::time::timeout(MIRROR_MAX, copying).await {
            Ok(Ok(())) => Mirrored::Answered,
            Ok(Err(label)) => {
                tracing::debug!(label, "a mirrored request failed");
                Mirrored::Failed
            }
            Err(_elapsed) => Mirrored::Dropped,
        };
        connection.local.handles.telemetry.http_mirrored(result);
    });
}

async fn copy(
    connection: &Connection,
    mesh: &Snapshot,
    target: &BackendTarget,
    mut head: Head,
    body: RequestBody,
    client_speaks_h2: bool,
) -> Result<(), &'static str> {
    let local = &connection.local;
    let source = connection.served.pod.workload();
    let destination = destination_of(mesh, target).map_err(|_invalid| "no_backend")?;
    let origin = Origin { dialled: connection.dialled(), drawn: None };
    let picked = {
        let mut rng = local.rng.borrow_mut();
        endpoint::pick(mesh, &destination, origin, &source, &[], &local.connections, &mut rng)
    };
    let picked = picked.ok_or("no_endpoint")?;
    // A copy needs the same admission as its original.
    let way = admission::way(connection, &picked, &head).map_err(|refused| match refused {
        Refused::Path(fault) => fault.label(),
        Refused::Policy(_) => "policy_denied",
    })?;
    let is_h2 =
        speaks_h2(destination.service_port().and_then(crate::model::ServicePort::protocol), client_speaks_h2);
    let key = Key { source: Some(source.uid.clone()), endpoint: picked.address.addr(), is_h2 };
    let mut upstream = connection
        .caller(&source)
        .connection(&key, &way)
        .await
        .map_err(|unreached| unreached.ending.label())?;
    let request = head.request(body, is_h2);
    let mut response = upstream.send(request).await.map_err(|unanswered| unanswered.ending.label())?;
    while let Some(frame) = response.body_mut().frame().await {
        frame.map_err(|_broken| "server_reset")?;
    }
    connection.upstreams.give_back(key, upstream, local.settings.http.idle_upstreams_max);
    Ok(())
}
