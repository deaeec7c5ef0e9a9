//! Two SHA-256 states that take the same blocks.
//!
//! The digest of a tar and the digest of a file in it see the same blocks: a file's contents begin at a multiple of 512
//! bytes. They share the message schedule, and the processor works on the rounds of one state while those of the other
//! wait for their result, so that both cost about what one does.
#![allow(unsafe_code)]

use sha2::block_api::compress256;

/// Takes blocks into both states.
pub(super) fn compress_both(one: &mut [u32; 8], other: &mut [u32; 8], blocks: &[[u8; 64]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3") {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { x86::compress_both(one, other, blocks) };
        return;
    }
    compress256(one, blocks);
    compress256(other, blocks);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_cvtsi128_si32, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    /// FIPS 180-4, section 4.2.2.
    const K: [u32; 64] = [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ];

    /// A state as the instructions want it: words A, B, E, F and words C, D, G, H, first ones on top.
    #[derive(Clone, Copy)]
    struct State {
        abef: __m128i,
        cdgh: __m128i,
    }

    impl State {
        #[inline]
        #[target_feature(enable = "sha,sse4.1,ssse3")]
        fn load(state: [u32; 8]) -> State {
            let four = |words: [usize; 4]| {
                let [top, second, third, last] = words.map(|word| state[word] as i32);
                _mm_set_epi32(top, second, third, last)
            };
            State { abef: four([0, 1, 4, 5]), cdgh: four([2, 3, 6, 7]) }
        }

        #[inline]
        #[target_feature(enable = "sha,sse4.1,ssse3")]
        fn store(self) -> [u32; 8] {
            let [abef, cdgh] = [self.abef, self.cdgh].map(|four| {
                let words = [
                    _mm_extract_epi32::<3>(four),
                    _mm_extract_epi32::<2>(four),
                    _mm_extract_epi32::<1>(four),
                    _mm_cvtsi128_si32(four),
                ];
                words.map(|word| word as u32)
            });
            [abef[0], abef[1], cdgh[0], cdgh[1], abef[2], abef[3], cdgh[2], cdgh[3]]
        }

        #[inline]
        #[target_feature(enable = "sha,sse4.1,ssse3")]
        fn add(&mut self, before: State) {
            self.abef = _mm_add_epi32(self.abef, before.abef);
            self.cdgh = _mm_add_epi32(self.cdgh, before.cdgh);
        }
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress_both(one: &mut [u32; 8], other: &mut [u32; 8], blocks: &[[u8; 64]]) {
        let (mut a, mut b) = (State::load(*one), State::load(*other));
        for block in blocks {
            let before = (a, b);
            let mut words = load(block);
            for (four, words) in words.into_iter().enumerate() {
                rounds(&mut a, &mut b, words, four);
            }
            for sixteen in 1..4 {
                // The oldest four words make room for the next.
                for four in 0..4 {
                    let back = |by: usize| words[(four + 4 - by) % 4];
                    words[four] = schedule([back(4), back(3), back(2), back(1)]);
                    rounds(&mut a, &mut b, words[four], 4 * sixteen + four);
                }
            }
            a.add(before.0);
            b.add(before.1);
        }
        (*one, *other) = (a.store(), b.store());
    }

    /// The block's sixteen words, first ones in the lowest lane.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn load(block: &[u8; 64]) -> [__m128i; 4] {
        let big_endian = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
        let (quarters, _) = block.as_chunks::<8>();
        let half = |at: usize| i64::from_le_bytes(quarters[at]);
        [0, 2, 4, 6].map(|at| _mm_shuffle_epi8(_mm_set_epi64x(half(at + 1), half(at)), big_endian))
    }

    /// Four rounds of both states; `four` of these have been done.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds(a: &mut State, b: &mut State, words: __m128i, four: usize) {
        let k = |at: usize| K[4 * four + at] as i32;
        let low = _mm_add_epi32(words, _mm_set_epi32(k(3), k(2), k(1), k(0)));
        let high = _mm_shuffle_epi32::<0x0E>(low);
        a.cdgh = _mm_sha256rnds2_epu32(a.cdgh, a.abef, low);
        b.cdgh = _mm_sha256rnds2_epu32(b.cdgh, b.abef, low);
        a.abef = _mm_sha256rnds2_epu32(a.abef, a.cdgh, high);
        b.abef = _mm_sha256rnds2_epu32(b.abef, b.cdgh, high);
    }

    /// The four words of the schedule that follow the last sixteen.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn schedule([first, second, third, last]: [__m128i; 4]) -> __m128i {
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(first, second), _mm_alignr_epi8::<4>(last, third));
        _mm_sha256msg2_epu32(sum, last)
    }
}
