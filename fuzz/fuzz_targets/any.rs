//! libFuzzer's way to the target that `GRADUS_FUZZ_TARGET` names.
#![no_main]

use gradus_fuzz::{Target, find};
use std::sync::OnceLock;

static CHOSEN: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("GRADUS_FUZZ_TARGET").unwrap_or_default();
        find(&name).unwrap_or_else(|| panic!("GRADUS_FUZZ_TARGET names no target: {name:?}"))
    });
    let _ = (chosen.1)(data);
});
