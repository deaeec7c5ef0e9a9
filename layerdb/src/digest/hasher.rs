//! SHA-256 of bytes that arrive piece by piece (FIPS 180-4).
//!
//! `sha2` does the work on blocks. The state is kept here, so that two digests of the same bytes share their reading:
//! see [`Hasher::update_both`].

use sha2::block_api::compress256;

use super::Digest;
use super::pair::compress_both;

const BLOCK: usize = 64;

/// FIPS 180-4, section 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// SHA-256 of bytes that arrive piece by piece.
#[derive(Clone, Debug)]
pub struct Hasher {
    state: [u32; 8],
    /// Bytes taken.
    bytes: u64,
    /// Begins with those that don't make a block yet.
    waiting: [u8; BLOCK],
}

impl Default for Hasher {
    fn default() -> Self {
        Self { state: INITIAL, bytes: 0, waiting: [0; BLOCK] }
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(self.missing().min(bytes.len()));
        self.gather(head);
        let (blocks, tail) = rest.as_chunks();
        self.bytes += (blocks.len() * BLOCK) as u64;
        compress256(&mut self.state, blocks);
        self.gather(tail);
    }

    /// Takes the next bytes of two streams that are the same here, which costs little more than one. That holds as long
    /// as both have taken the same number of bytes, or differ by whole blocks of 64; otherwise it is as slow as two.
    pub fn update_both(&mut self, other: &mut Hasher, bytes: &[u8]) {
        if self.missing() != other.missing() {
            self.update(bytes);
            other.update(bytes);
            return;
        }
        let (head, rest) = bytes.split_at(self.missing().min(bytes.len()));
        let (blocks, tail) = rest.as_chunks();
        for hasher in [&mut *self, &mut *other] {
            hasher.gather(head);
            hasher.bytes += (blocks.len() * BLOCK) as u64;
        }
        compress_both(&mut self.state, &mut other.state, blocks);
        self.gather(tail);
        other.gather(tail);
    }

    /// Takes so many zeros.
    pub fn update_zeros(&mut self, mut bytes: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while bytes > 0 {
            let now = bytes.min(ZEROS.len() as u64);
            self.update(&ZEROS[..now as usize]);
            bytes -= now;
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(mut self) -> Digest {
        let bits = self.bytes.wrapping_mul(8);
        self.gather(&[0x80]);
        let end = BLOCK - size_of::<u64>();
        let zeros = (end + BLOCK - self.filled()) % BLOCK;
        self.update(&[0; BLOCK][..zeros]);
        self.gather(&bits.to_be_bytes());
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Digest::from_bytes(digest)
    }

    /// Bytes that wait for their block to be whole.
    fn filled(&self) -> usize {
        (self.bytes % BLOCK as u64) as usize
    }

    /// Bytes that the block that waits still lacks; none if no block waits.
    fn missing(&self) -> usize {
        (BLOCK - self.filled()) % BLOCK
    }

    /// Puts bytes to those that wait: not more than fit in the block.
    fn gather(&mut self, bytes: &[u8]) {
        let filled = self.filled();
        self.waiting[filled..][..bytes.len()].copy_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        if filled + bytes.len() == BLOCK {
            compress256(&mut self.state, &[self.waiting]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn reference(bytes: &[u8]) -> Digest {
        Digest::from_bytes(Sha256::digest(bytes).into())
    }

    #[test]
    fn digests_of_published_messages() {
        let digest = |bytes: &[u8]| {
            let mut hasher = Hasher::new();
            hasher.update(bytes);
            hasher.finish().hex()
        };
        // FIPS 180-2, appendix B.
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(
            digest(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        );
        assert_eq!(digest(&vec![b'a'; 1_000_000]), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn padding_is_right_for_every_length_of_a_tail() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..=bytes.len() {
            let mut hasher = Hasher::new();
            hasher.update(&bytes[..length]);
            assert_eq!(hasher.finish(), reference(&bytes[..length]), "{length}");
        }
    }

    #[test]
    fn zeros_are_hashed_as_bytes_are() {
        for zeros in [0, 1, 63, 64, 65_535, 65_536, 200_001] {
            let mut hasher = Hasher::new();
            hasher.update(b"before");
            hasher.update_zeros(zeros);
            let bytes = [b"before".as_slice(), &vec![0; zeros as usize]].concat();
            assert_eq!(hasher.finish(), reference(&bytes), "{zeros}");
        }
    }

    proptest! {
        #[test]
        fn hasher_agrees_with_the_library_however_the_bytes_arrive(
            before in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..8),
            aligned in any::<bool>(),
        ) {
            // One has seen something before: whole blocks or not.
            let before = if aligned { &before[..before.len() / BLOCK * BLOCK] } else { &before[..] };
            let (mut all, mut part) = (Hasher::new(), Hasher::new());
            all.update(before);
            let mut bytes = before.to_vec();
            for piece in &pieces {
                all.update_both(&mut part, piece);
                bytes.extend_from_slice(piece);
            }
            prop_assert_eq!(all.finish(), reference(&bytes));
            prop_assert_eq!(part.finish(), reference(&bytes[before.len()..]));
        }
    }
}
