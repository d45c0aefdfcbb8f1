//! Targets that do harm on purpose, by which the runner itself is tested. They are run only when they are named.

use crate::Target;

/// All of them.
pub const TARGETS: [Target; 2] =
    [("planted", harm, || vec![b"nothing".to_vec()]), ("planted-abort", harm, || vec![b"abort".to_vec()])];

/// Does what its input says.
fn harm(data: &[u8]) {
    match data {
        b"abort" => std::process::abort(),
        b"panic" => panic!("as asked"),
        b"hang" => loop {
            std::thread::park();
        },
        b"memory" => drop(std::hint::black_box(vec![1u8; 80 << 20])),
        _ => {}
    }
}
