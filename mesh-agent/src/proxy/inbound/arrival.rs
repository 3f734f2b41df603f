//! Station 11, may it: a connection that asks to come in, however it came, and what policy says to it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::reads_requests;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, SpiffeId, Workload};
use crate::policy::{Facts, Permit, Refusal};
use crate::proxy::dial::{self, Application};
use crate::proxy::http;
use crate::proxy::http::connection::{Connection, Side};
use crate::proxy::http::io::Io;
use crate::proxy::http::sniff::Sniffed;
use crate::proxy::open::{Judged, Registered};
use crate::proxy::protocol::Spoken;
use crate::proxy::report::Report;
use crate::proxy::tunnel::{self, ResetReason};
use crate::proxy::worker::{Local, Served};

/// A connection that asks to come in.
pub(super) struct Arrival<'a> {
    pub(super) local: &'a Rc<Local>,
    pub(super) served: &'a Rc<Served>,
    pub(super) identity: Option<&'a SpiffeId>,
    pub(super) client: ClientAddr,
    pub(super) destination: EndpointAddr,
    /// See [`Facts::node_probe`].
    pub(super) node_probe: bool,
}

/// Why it may not.
pub(super) enum NotAdmitted {
    Policy(Refusal),
    Address(Ending),
}

impl Arrival<'_> {
    /// Whether this connection's requests are read, if it turns out to carry any.
    pub(super) fn reads_requests(&self) -> bool {
        let workload = self.served.pod.workload();
        let policies = self.local.handles.policies.current();
        self.has_address(&workload) && reads_requests(&policies, &workload, self.destination.port())
    }

    /// How long the client's first bytes are waited for. Where only requests may pass there is nothing to lose by waiting;
    /// where bytes may pass too, a server that speaks first must get its turn.
    pub(super) fn patience(&self) -> Option<Duration> {
        let workload = self.served.pod.workload();
        if workload.forward_client_cert {
            return None;
        }
        let admits_bytes = self.local.handles.policies.current().evaluate(&self.facts(&workload)).is_ok();
        let mesh = self.local.handles.registry.snapshot();
        admits_bytes.then_some(mesh.config.protocol_detection_timeout)
    }

    /// How the connection is carried. Bytes never pass to a pod that believes what `x-forwarded-client-cert` says, since
    /// they could be requests with a forged one.
    pub(super) fn spoken(&self, sniffed: Sniffed) -> Result<Spoken, Ending> {
        match Spoken::of(sniffed) {
            Some(http) => Ok(http),
            None if self.served.pod.workload().forward_client_cert => Err(Ending::NotHttp),
            None => Ok(Spoken::Bytes),
        }
    }

    fn has_address(&self, workload: &Workload) -> bool {
        let own =
            self.destination.port() == tunnel::PORT || self.served.ports.contains(&self.destination.port());
        !own && (workload.addresses.contains(&self.destination.ip()) || self.is_plain())
    }

    /// As a connection of bytes.
    fn facts<'w>(&'w self, workload: &'w Workload) -> Facts<'w> {
        Facts {
            identity: self.identity,
            client: self.client.ip(),
            destination: workload,
            port: self.destination.port(),
            node_probe: self.node_probe,
            request: None,
        }
    }

    /// Puts down who and where.
    pub(super) fn note(&self, report: &mut Report, dialled: OriginalDst) {
        let mesh = self.local.handles.registry.snapshot();
        report.source = mesh.workload_by_ip(self.client.ip()).cloned();
        report.destination = Some(self.served.pod.workload());
        report.dialled = Some(dialled);
        report.endpoint = Some(self.destination);
        if let crate::registry::Destination::Service(service, _) = mesh.resolve(dialled) {
            report.service = Some(service.name.clone());
        }
    }

    /// Serves the requests of a connection; each is judged by itself.
    pub(super) async fn serve_requests(
        &self,
        io: Io,
        first: Vec<u8>,
        is_h2: bool,
        entry: Registered,
        dialled: OriginalDst,
        mut report: Report,
    ) {
        report.opened();
        let connection = Connection {
            local: self.local.clone(),
            served: self.served.clone(),
            client: self.client,
            source: report.source.clone(),
            proven: self.identity.cloned(),
            node_probe: self.node_probe,
            side: Side::Inbound {
                address: self.destination,
                dialled,
                service: report.service.clone(),
                path: report.path,
                key_exchange: report.key_exchange,
            },
            close: entry.close.clone(),
            // Of its own, so that the application sees one connection per client connection, with its address.
            upstreams: Rc::default(),
            seen: None,
        };
        let ended = http::entry::serve(connection, io, first, is_h2).await;
        report.bytes.to_app = ended.seen.received_bytes();
        report.bytes.from_app = ended.seen.sent_bytes();
        report.reason = ended.reason.map(Into::into);
        report.close(ended.ending);
    }

    /// Asks policy. The connection is in the table of open ones before the question, so that no change is missed.
    pub(super) fn judge(
        &self,
        report: &mut Report,
        dialled: OriginalDst,
    ) -> Result<(Permit, Registered), NotAdmitted> {
        let pod = &self.served.pod;
        let workload = pod.workload();
        self.note(report, dialled);
        if !workload.addresses.contains(&self.destination.ip()) && !self.is_plain() {
            return Err(NotAdmitted::Address(Ending::Unreachable));
        }
        if self.destination.port() == tunnel::PORT || self.served.ports.contains(&self.destination.port()) {
            return Err(NotAdmitted::Address(Ending::Loop));
        }
        let judged = Judged {
            identity: self.identity.cloned(),
            client: self.client.ip(),
            port: self.destination.port(),
            node_probe: self.node_probe,
            request: None,
        };
        let entry = self.local.open.enter(pod.clone(), Some(judged));
        let policies = self.local.handles.policies.current();
        let permit = policies.evaluate(&self.facts(&workload)).map_err(NotAdmitted::Policy)?;
        report.reason = permit.reason();
        note_audits(&permit, self.client, self.destination);
        Ok((permit, entry))
    }

    /// Plaintext: the kernel vouches for the address, it is the socket's own.
    fn is_plain(&self) -> bool {
        self.identity.is_none()
    }

    pub(super) async fn dial(&self, permit: &Permit) -> Result<Application, Ending> {
        dial::application(
            permit,
            &self.served.pod,
            &self.local.handles.origins,
            self.destination,
            self.client,
            self.local.settings.connect_timeout,
        )
        .await
    }
}

pub(in crate::proxy) fn note_audits(permit: &Permit, client: ClientAddr, destination: EndpointAddr) {
    for policy in permit.audits() {
        tracing::info!(%policy, %client, %destination, "an AUDIT policy matched");
    }
    if permit.recorded_by_default() {
        tracing::info!(%client, %destination, "admitted without identity under the default Audit");
    }
}

impl NotAdmitted {
    pub(super) fn reset(&self) -> ResetReason {
        match self {
            Self::Policy(_) => ResetReason::PolicyDenied,
            Self::Address(_) => ResetReason::NotHere,
        }
    }

    pub(super) fn tell(self, report: Report) {
        match self {
            Self::Policy(refusal) => {
                tracing::info!(%refusal, "policy refused");
                report.deny(reason_of(&refusal));
            }
            Self::Address(ending) => report.close(ending),
        }
    }
}

/// The policy to put it down to, or the label of the default that refused: what the kernel's refusals say, too.
pub(in crate::proxy) fn reason_of(refusal: &Refusal) -> Arc<str> {
    refusal.policy().map_or_else(|| refusal.label().into(), |policy| policy.to_string().into())
}
