//! Connections that stop being HTTP: WebSocket and other upgrades, and CONNECT. From there on bytes are only moved.
//!
//! Station 12. It ends when both sides have, or when one breaks off, or when policy turns against it.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::report::Report;
use super::upstream::Upstream;
use crate::balance::Open as Counted;
use crate::lifecycle::tasks;
use crate::model::Ending;
use crate::proxy::open::Registered;
use crate::telemetry::CutBy;

/// Buffer per direction. Half of what is usual for files, since thousands of quiet WebSockets are normal.
const BUFFER_BYTES: usize = 8 * 1024;

/// Moves bytes between the two sides once both have changed over, in a task of its own.
pub fn begin(
    from_client: OnUpgrade,
    to_server: OnUpgrade,
    mut report: Report,
    entry: Registered,
    kept: (Upstream, Counted),
) {
    tasks::spawn_local("upgraded connection", async move {
        let _kept = kept;
        let (client, server) = match tokio::join!(from_client, to_server) {
            (Ok(client), Ok(server)) => (client, server),
            (client, server) => {
                tracing::debug!(
                    client = client.is_ok(),
                    server = server.is_ok(),
                    "a side did not change over"
                );
                return report.break_off(0, CutBy::Agent, Ending::ServerReset);
            }
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let moving =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES);
        tokio::select! {
            moved = moving => match moved {
                Ok((sent_bytes, received_bytes)) => {
                    report.request_bytes = sent_bytes;
                    report.close(received_bytes, None);
                }
                Err(_reset) => report.break_off(0, CutBy::Server, Ending::ServerReset),
            },
            ending = entry.close.told() => report.break_off(0, CutBy::Agent, ending),
        }
    });
}
