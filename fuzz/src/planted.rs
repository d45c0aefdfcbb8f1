//! Targets that do harm on purpose, by which the runner itself is tested. They are run only when they are named.

use crate::Target;

/// All of them.
pub const TARGETS: [Target; 3] = [
    ("planted", harm, || vec![b"nothing".to_vec()]),
    ("planted-abort", harm, || vec![b"do harm: abort".to_vec()]),
    ("planted-refusal", harm, || vec![b"nothing".to_vec(), b"what is not taken".to_vec()]),
];

/// Does what its input says, in words that chance does not find; takes few.
fn harm(data: &[u8]) -> bool {
    match data {
        b"do harm: abort" => std::process::abort(),
        b"do harm: panic" => panic!("as asked"),
        b"do harm: hang" => loop {
            std::thread::park();
        },
        b"do harm: memory" => drop(std::hint::black_box(vec![1u8; 80 << 20])),
        _ => {}
    }
    data == b"nothing"
}
