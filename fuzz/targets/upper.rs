#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fuzz::upper::run(data));
