//! Names of Services, as cluster DNS answers them: an address of the Service, or those of its ready pods where it has none.
//!
//! Questions for IPv6 addresses of a name that exists get an empty answer; everything outside the cluster does not exist.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::UdpSocket;

use crate::follow::Objects;

/// Below which all names of Services lie.
const ZONE: [&str; 3] = ["svc", "cluster", "local"];

/// A question is one datagram of at most so many bytes (RFC 1035 section 4.2.1).
const DATAGRAM_LEN_MAX: usize = 512;

/// Length of a message's head (RFC 1035 section 4.1.1).
const HEAD_LEN: usize = 12;

/// How long resolvers may believe an answer, in seconds. Tests move Services quickly.
const TTL_S: u32 = 1;

/// Answers questions.
pub struct Server {
    socket: UdpSocket,
    services: Objects,
    endpoints: Objects,
}

impl Server {
    /// Listens.
    pub async fn bind(address: SocketAddr, services: Objects, endpoints: Objects) -> Result<Self> {
        Ok(Self { socket: UdpSocket::bind(address).await?, services, endpoints })
    }

    /// Answers for ever.
    pub async fn run(&self) -> Result<()> {
        let mut datagram = [0; DATAGRAM_LEN_MAX];
        loop {
            let (length, client) = self.socket.recv_from(&mut datagram).await.context("cannot receive")?;
            let Some(question) = Question::read(&datagram[..length]) else { continue };
            let answer = question.answer(self.addresses(&question.name));
            // A client that is gone asks no more.
            let _ = self.socket.send_to(&answer, client).await;
        }
    }

    /// The addresses of a name; `None` when there is no such name.
    fn addresses(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let labels: Vec<&str> = name.split('.').collect();
        let (hostname, service, namespace) = match labels
            .split_at_checked(labels.len().checked_sub(ZONE.len())?)?
        {
            ([service, namespace], zone) if zone == ZONE => (None, service, namespace),
            ([hostname, service, namespace], zone) if zone == ZONE => (Some(*hostname), service, namespace),
            _ => return None,
        };
        let key = format!("{namespace}/{service}");
        let cluster_ip = {
            let services = self.services.lock();
            let ip = services.get(&key)?.data["spec"]["clusterIP"].as_str()?.to_owned();
            ip.parse().ok()
        };
        match (cluster_ip, hostname) {
            (Some(ip), None) => Some(vec![ip]),
            (Some(_), Some(_)) => None,
            (None, hostname) => {
                let found = self.pods(&key, hostname);
                if hostname.is_some() && found.is_empty() { None } else { Some(found) }
            }
        }
    }

    fn pods(&self, key: &str, hostname: Option<&str>) -> Vec<Ipv4Addr> {
        let endpoints = self.endpoints.lock();
        let groups = endpoints.get(key).and_then(|object| object.data["subsets"].as_array());
        let addresses =
            groups.into_iter().flatten().filter_map(|group| group["addresses"].as_array()).flatten();
        let is_meant = |address: &&Value| hostname.is_none_or(|name| address["hostname"] == name);
        addresses.filter(is_meant).filter_map(|address| address["ip"].as_str()?.parse().ok()).collect()
    }
}

/// A question (RFC 1035 section 4.1.2).
struct Question {
    id: [u8; 2],
    name: String,
    /// The question as it was written, which an answer repeats.
    written: Vec<u8>,
    for_ipv4: bool,
}

impl Question {
    fn read(datagram: &[u8]) -> Option<Self> {
        let id = datagram.get(..2)?.try_into().ok()?;
        let mut at = HEAD_LEN;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*datagram.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(datagram.get(at..at + length)?).to_lowercase());
            at += length;
        }
        let kind = datagram.get(at..at + 2)?;
        let written = datagram.get(HEAD_LEN..at + 4)?.to_vec();
        Some(Self { id, name: labels.join("."), written, for_ipv4: kind == [0, 1] })
    }

    fn answer(&self, addresses: Option<Vec<Ipv4Addr>>) -> Vec<u8> {
        // An authoritative answer, recursion desired and available; "no such name" is 3.
        let flags: u16 = 0x8580 | if addresses.is_none() { 3 } else { 0 };
        let addresses = addresses.filter(|_| self.for_ipv4).unwrap_or_default();
        let count = u16::try_from(addresses.len().min(24)).unwrap_or_default();
        let mut answer = self.id.to_vec();
        for number in [flags, 1, count, 0, 0] {
            answer.extend(number.to_be_bytes());
        }
        answer.extend(&self.written);
        for ip in addresses.iter().take(usize::from(count)) {
            // The name is that of the question; type A, class IN.
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1]);
            answer.extend(TTL_S.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(ip.octets());
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `a.b`, as a resolver writes it.
    fn question(kind: u8) -> Vec<u8> {
        let mut datagram = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        datagram.extend([1, b'A', 1, b'b', 0, 0, kind, 0, 1]);
        datagram
    }

    #[test]
    fn a_name_is_answered_with_its_addresses() {
        let read = Question::read(&question(1)).unwrap();
        assert_eq!(read.name, "a.b");
        let answer = read.answer(Some(vec![Ipv4Addr::new(10, 0, 0, 1)]));
        assert_eq!(answer[..8], [7, 9, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(answer[answer.len() - 4..], [10, 0, 0, 1]);
    }

    #[test]
    fn other_types_of_a_name_that_exists_are_empty_and_unknown_names_do_not_exist() {
        let ipv6 = Question::read(&question(28)).unwrap().answer(Some(vec![Ipv4Addr::LOCALHOST]));
        assert_eq!(ipv6[2..8], [0x85, 0x80, 0, 1, 0, 0]);
        let unknown = Question::read(&question(1)).unwrap().answer(None);
        assert_eq!(unknown[2..8], [0x85, 0x83, 0, 1, 0, 0]);
    }

    #[test]
    fn cut_questions_are_not_answered() {
        let whole = question(1);
        assert!((0..whole.len()).all(|length| Question::read(&whole[..length]).is_none()));
    }
}
