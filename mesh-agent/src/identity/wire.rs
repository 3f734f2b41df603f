//! The messages of the Istio certificate service, as far as this mesh speaks it.
//!
//! Source: `security/v1alpha1/ca.proto` of istio/api (package `istio.v1.auth`) and protobuf's
//! `google/protobuf/struct.proto`. Written by hand: two messages do not justify a protobuf compiler in the build. Fields
//! that are not named here are skipped on reading, as protobuf demands.

use std::collections::HashMap;

/// Path of the one call.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Metadata key under which a node asks for the identity of one of its pods.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Asks for a certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS #10 request, PEM. The CA takes the public key from it and nothing else.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted lifetime, seconds; 0: the CA's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Further facts about the caller.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// Answers with one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// PEM: the leaf first, the root last. An element may hold several certificates.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Struct {
    /// By name.
    #[prost(map = "string, message", tag = "1")]
    pub fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`, of which only strings are of interest; other kinds read as `None`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Value {
    /// A member of the `kind` oneof, which on the wire is an ordinary field with presence.
    #[prost(string, optional, tag = "3")]
    pub string_value: Option<String>,
}

impl CertificateRequest {
    /// A request for the identity of a pod.
    pub fn impersonating(id: &str, csr: String, validity_seconds: i64) -> Self {
        let value = Value { string_value: Some(id.to_owned()) };
        let fields = HashMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
        Self { csr, validity_duration: validity_seconds, metadata: Some(Struct { fields }) }
    }

    /// The identity that is asked for.
    pub fn impersonated_identity(&self) -> Option<&str> {
        self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.string_value.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn request_is_encoded_as_the_proto_file_says() {
        let request = CertificateRequest::impersonating("x", "c".to_owned(), 5);
        let expected = [
            &[0x0a, 1, b'c', 0x18, 5, 0x22, 27 + 2][..], // csr = 1, validity_duration = 3, metadata = 4
            &[0x0a, 27],                                 // fields = 1: one entry
            &[0x0a, 20],                                 // key = 1
            b"ImpersonatedIdentity",
            &[0x12, 3, 0x1a, 1, b'x'], // value = 2 { string_value = 3 }
        ]
        .concat();
        assert_eq!(request.encode_to_vec(), expected);
        let read = CertificateRequest::decode(&expected[..]).expect("decodes");
        assert_eq!(read.impersonated_identity(), Some("x"));
    }

    #[test]
    fn metadata_of_other_kinds_is_skipped() {
        // { "ImpersonatedIdentity": true }: bool_value = 4.
        let bytes =
            [&[0x22, 28, 0x0a, 26, 0x0a, 20][..], b"ImpersonatedIdentity", &[0x12, 2, 0x20, 1]].concat();
        let read = CertificateRequest::decode(&bytes[..]).expect("decodes");
        assert_eq!(read.impersonated_identity(), None);
    }
}
