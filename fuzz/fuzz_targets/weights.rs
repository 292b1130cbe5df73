#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| elektron_fuzz::feed("weights", data));
