#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fuzz::tar::run(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mica_fuzz::tar_mutator::mutate(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
});
