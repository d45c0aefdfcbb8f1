//! What needs another compilation to be seen: memory touched beyond its end, and orders in which threads can meet.
//!
//! Both take the stable toolchain: it brings the sanitizer's run time, and lets itself be told to use it.

use crate::shell;
use anyhow::Result;

/// The sanitizer takes another copy of what it watches: its own programs, as for another machine.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// The kernels' tests and those of the memory that they, and the cache, work on, under AddressSanitizer (Serebryany et al.
/// 2012).
///
/// # Errors
/// When they do not build, a test fails, or memory is touched that was not handed out.
pub fn address() -> Result<()> {
    let mut test = shell::cargo(&["test", "--target", HOST, "--target-dir"]);
    test.arg(shell::target().join("asan")).args(["-p", "gradus-memory", "-p", "gradus-compute"]);
    // Without the first, a stable compiler knows no sanitizers.
    test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address --cfg gradus_asan");
    shell::run(test)
}

/// The worker pool in all orders in which its threads can meet, within bounds, by loom.
///
/// # Errors
/// When it does not build, or an order is found that breaks it.
pub fn model() -> Result<()> {
    let mut test = shell::cargo(&["test", "-p", "gradus-compute", "--lib", "models", "--target-dir"]);
    test.arg(shell::target().join("loom")).env("RUSTFLAGS", "--cfg loom");
    shell::run(test)
}
