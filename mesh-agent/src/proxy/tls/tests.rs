//! Handshakes over real sockets, records in place, and everything that must be refused.

use proptest::prelude::*;

use super::record::PLAINTEXT_BYTES_MAX;
use super::*;
use crate::identity::peer_identity;
use crate::proxy::testing::{TestCa, id, tcp_pair};
use crate::proxy::tunnel::ALPN;

fn here() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
}

async fn established() -> (Established, Established) {
    let ca = TestCa::new();
    let (near, far) = tcp_pair().await;
    let (client, _) = ca.issue(&id("client"));
    let (_, server) = ca.issue(&id("server"));
    let (near, far) = tokio::join!(
        async {
            let established = connect(&near, client, here(), ALPN).await.unwrap();
            near.try_write(&established.unsent).unwrap();
            established
        },
        accept(&far, server, ALPN)
    );
    (near, far.unwrap())
}

/// Seals with one side, opens with the other, and returns the plaintext.
fn pass(from: &mut Tls, to: &mut Tls, plaintext: &[u8]) -> Vec<u8> {
    let (mut wire, mut reply) = (Vec::new(), Vec::new());
    from.seal_copy(plaintext, &mut wire).unwrap();
    assert_eq!(Tls::record_bytes(&wire).unwrap(), Some(wire.len()));
    let opened = to.open(&mut wire, &mut reply).unwrap();
    assert!(reply.is_empty());
    let Opened::Data(opened) = opened else { panic!("{opened:?}") };
    opened.to_vec()
}

#[tokio::test]
async fn both_ends_learn_each_other_and_talk() {
    let (mut near, mut far) = established().await;
    assert_eq!(peer_identity(&near.peer_certificates).unwrap(), id("server"));
    assert_eq!(peer_identity(&far.peer_certificates).unwrap(), id("client"));
    for plaintext in [&b"x"[..], &[0; 100], &vec![7; PLAINTEXT_BYTES_MAX]] {
        assert_eq!(pass(&mut near.tls, &mut far.tls, plaintext), plaintext);
        assert_eq!(pass(&mut far.tls, &mut near.tls, plaintext), plaintext);
    }
}

#[tokio::test]
async fn keys_are_updated_in_both_directions() {
    let (mut near, mut far) = established().await;
    let (mut wire, mut reply) = (Vec::new(), Vec::new());
    near.tls.put(&[message::KEY_UPDATE, 0, 0, 1, 1], Content::Handshake, &mut wire).unwrap();
    let (sequence, secrets) = near.tls.schedule.next_tx().unwrap();
    near.tls.tx = Key::new(sequence, &secrets).unwrap();
    assert!(matches!(far.tls.open(&mut wire, &mut reply), Ok(Opened::Nothing)));
    assert!(!reply.is_empty(), "an update was requested");
    assert!(matches!(near.tls.open(&mut reply, &mut Vec::new()), Ok(Opened::Nothing)));
    assert_eq!(pass(&mut near.tls, &mut far.tls, b"after"), b"after");
    assert_eq!(pass(&mut far.tls, &mut near.tls, b"after"), b"after");
}

#[tokio::test]
async fn a_key_is_updated_before_its_limit() {
    let (mut near, mut far) = established().await;
    let mut wire = Vec::new();
    near.tls.update_key_if_due(&mut wire).unwrap();
    assert!(wire.is_empty());
    // Both ends count the same 2^24 records.
    near.tls.tx.skip_to(record::RECORDS_PER_KEY_MAX);
    far.tls.rx.skip_to(record::RECORDS_PER_KEY_MAX);
    near.tls.update_key_if_due(&mut wire).unwrap();
    assert!(matches!(far.tls.open(&mut wire, &mut Vec::new()), Ok(Opened::Nothing)));
    assert_eq!(near.tls.tx.records(), 0);
    assert_eq!(pass(&mut near.tls, &mut far.tls, b"after"), b"after");
}

#[tokio::test]
async fn close_notify_and_alerts_are_told_apart() {
    let (mut near, mut far) = established().await;
    let (mut wire, mut reply) = (Vec::new(), Vec::new());
    near.tls.seal_close_notify(&mut wire).unwrap();
    assert!(matches!(far.tls.open(&mut wire, &mut reply), Ok(Opened::Closed)));
    wire.clear();
    near.tls.put(&[2, 40], Content::Alert, &mut wire).unwrap();
    assert!(matches!(far.tls.open(&mut wire, &mut reply), Err(Error::Alert(40))));
}

#[tokio::test]
async fn a_changed_replayed_or_reordered_record_is_refused() {
    let (mut near, mut far) = established().await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    near.tls.seal_copy(b"one", &mut first).unwrap();
    near.tls.seal_copy(b"two", &mut second).unwrap();
    assert!(matches!(far.tls.open(&mut second.clone(), &mut Vec::new()), Err(Error::BadRecord)));
    let mut far = established().await.1;
    first[7] ^= 1;
    assert!(matches!(far.tls.open(&mut first, &mut Vec::new()), Err(Error::BadRecord)));
}

#[tokio::test]
async fn plain_text_is_recognised() {
    let (near, far) = tcp_pair().await;
    let (_, server) = TestCa::new().issue(&id("server"));
    near.try_write(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(accept(&far, server, ALPN).await, Err(Error::NotTls)));
}

#[tokio::test]
async fn strangers_are_refused_by_both_ends() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    for (client_ca, server_ca) in [(&ours, &theirs), (&theirs, &ours)] {
        let (near, far) = tcp_pair().await;
        let (client, _) = client_ca.issue(&id("client"));
        let (_, server) = server_ca.issue(&id("server"));
        let (near, far) = tokio::join!(connect(&near, client, here(), ALPN), accept(&far, server, ALPN));
        assert!(matches!(near, Err(Error::Handshake(_))), "{near:?}");
        // The server hears why: the alert reached it.
        assert!(matches!(far, Err(Error::Handshake(rustls::Error::AlertReceived(_)))), "{far:?}");
    }
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let ca = TestCa::new();
    let (near, far) = tcp_pair().await;
    let (client, _) = ca.issue(&id("client"));
    let (_, server) = ca.issue(&id("server"));
    let mut client = (*client).clone();
    client.alpn_protocols = Vec::new();
    let (near, far) = tokio::join!(
        async {
            let result = connect(&near, client.into(), here(), ALPN).await;
            near.try_write(&[]).unwrap();
            drop(near);
            result
        },
        accept(&far, server, ALPN)
    );
    assert!(matches!(near, Err(Error::Protocol)), "{near:?}");
    assert!(far.is_err());
}

proptest! {
    #[test]
    fn garbage_is_no_record(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Some(length)) = Tls::record_bytes(&bytes) {
            prop_assert!(length <= record::RECORD_BYTES_MAX && bytes[0] == 23);
        }
        bytes.truncate(4);
        prop_assert!(matches!(Tls::record_bytes(&bytes), Ok(None)));
    }
}
