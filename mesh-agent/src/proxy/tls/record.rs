//! TLS 1.3 record protection (RFC 8446 section 5) in place, in the caller's buffer.
//!
//! rustls does the handshake and owns the key schedule; its own record layer allocates and copies once per record in each
//! direction. Here a record is sealed where it was read and opened where it arrived, with the traffic keys that rustls
//! hands out (`rustls::kernel`). No I/O.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::Error;

/// Bytes before the ciphertext: type, version and length (RFC 8446 section 5.2).
pub const HEADER_BYTES: usize = 5;
/// Bytes after the plaintext: the inner content type and the AEAD tag (16 bytes for every TLS 1.3 suite that is used).
pub const TRAILER_BYTES: usize = 1 + TAG_BYTES;
/// Most plaintext bytes of a record (RFC 8446 section 5.1).
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 14;
/// Most bytes of a whole record on the wire.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAINTEXT_BYTES_MAX + 256;

const TAG_BYTES: usize = 16;
/// Records sealed under one key before it is updated: below the 2^24.5 of AES-GCM (RFC 8446 section 5.5).
pub(super) const RECORDS_PER_KEY_MAX: u64 = 1 << 24;

/// Inner content types (RFC 8446 appendix B.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// Alert.
    Alert = 21,
    /// Post-handshake message.
    Handshake = 22,
    /// Application data.
    Data = 23,
}

/// The traffic key of one direction.
pub(super) struct Key {
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Key {
    pub(super) fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, Error> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::Suite),
        };
        let aead = UnboundKey::new(algorithm, key.as_ref()).map_err(|_unspecified| Error::Suite)?;
        let iv = iv.as_ref().try_into().map_err(|_length| Error::Suite)?;
        Ok(Self { aead: LessSafeKey::new(aead), iv, sequence })
    }

    pub(super) fn records(&self) -> u64 {
        self.sequence
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// The per-record nonce (RFC 8446 section 5.3); counts up.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `record`, which holds the plaintext at [`HEADER_BYTES`] and room for [`TRAILER_BYTES`] behind it.
    pub(super) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), Error> {
        let body_bytes = record.len() - HEADER_BYTES;
        debug_assert!(body_bytes <= PLAINTEXT_BYTES_MAX + TRAILER_BYTES);
        let header = [23, 3, 3, (body_bytes >> 8) as u8, body_bytes as u8];
        let (head, body) = record.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(&header);
        let (inner, tag_place) = body.split_at_mut(body_bytes - TAG_BYTES);
        if let Some(last) = inner.last_mut() {
            *last = content as u8;
        }
        let nonce = self.nonce();
        let tag = self
            .aead
            .seal_in_place_separate_tag(nonce, Aad::from(header), inner)
            .map_err(|_unspecified| Error::Seal)?;
        tag_place.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a whole record and returns its content type and plaintext.
    pub(super) fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<(Content, &'r mut [u8]), Error> {
        let (head, body) = record.split_at_mut(HEADER_BYTES);
        let header: [u8; HEADER_BYTES] = (&*head).try_into().map_err(|_length| Error::BadRecord)?;
        let nonce = self.nonce();
        let inner = self
            .aead
            .open_in_place(nonce, Aad::from(header), body)
            .map_err(|_unspecified| Error::BadRecord)?;
        // Padding is zeroes behind the content type (RFC 8446 section 5.4); a record of zeroes alone is malformed.
        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(Error::BadRecord)?;
        let content = match inner[end] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(Error::BadRecord),
        };
        if end > PLAINTEXT_BYTES_MAX {
            return Err(Error::BadRecord);
        }
        Ok((content, &mut inner[..end]))
    }
}

/// Length of the record that `bytes` begin with, header included; `None`: the header is not complete.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some([kind, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    // After the handshake every record has the outer type application_data (RFC 8446 section 5.2).
    if *kind != 23 || body < TRAILER_BYTES || HEADER_BYTES + body > RECORD_BYTES_MAX {
        return Err(Error::BadRecord);
    }
    Ok(Some(HEADER_BYTES + body))
}
