//! The bytes of a stream: a function of seed and offset, so that each end can tell what must stand where.

/// Fills a buffer with the bytes of stream `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut index = offset / 8;
    let mut rest = buffer;
    if skip != 0 {
        let head = rest.len().min(8 - skip);
        rest[..head].copy_from_slice(&word(seed, index)[skip..skip + head]);
        rest = &mut rest[head..];
        index += 1;
    }
    let mut words = rest.chunks_exact_mut(8);
    for slot in &mut words {
        slot.copy_from_slice(&word(seed, index));
        index += 1;
    }
    let tail = words.into_remainder();
    let length = tail.len();
    tail.copy_from_slice(&word(seed, index)[..length]);
}

/// The offset of the first byte that is not as it should be.
pub fn first_mismatch(seed: u64, offset: u64, got: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
    scratch.resize(got.len(), 0);
    fill(seed, offset, scratch);
    if got == scratch.as_slice() {
        return None;
    }
    let at = got.iter().zip(scratch.iter()).position(|(got, wanted)| got != wanted)?;
    Some(offset + at as u64)
}

/// Eight bytes; the mixing is SplitMix64's.
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut mixed =
        seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_depend_on_how_the_stream_is_cut() {
        let mut whole = vec![0; 1000];
        fill(7, 0, &mut whole);
        for start in 0..40 {
            for length in 0..40 {
                let mut part = vec![0; length];
                fill(7, start as u64, &mut part);
                assert_eq!(part, whole[start..start + length], "from {start}, {length} bytes");
            }
        }
    }

    #[test]
    fn every_fault_is_found_at_its_offset() {
        let mut bytes = vec![0; 4096];
        fill(3, 100, &mut bytes);
        let mut scratch = Vec::new();
        assert_eq!(first_mismatch(3, 100, &bytes, &mut scratch), None);
        assert_eq!(first_mismatch(4, 100, &bytes, &mut scratch).map(|at| at < 116), Some(true));
        bytes[2000] ^= 1;
        assert_eq!(first_mismatch(3, 100, &bytes, &mut scratch), Some(2100));
        bytes[2000] ^= 1;
        bytes.remove(50);
        let found = first_mismatch(3, 100, &bytes, &mut scratch).expect("a byte is missing");
        assert!((150..160).contains(&found), "{found}");
    }
}
