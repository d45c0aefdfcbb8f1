//! `smoke`: runs fuzz targets on stable, for a bounded time. See [`gradus_fuzz::runner`].

use gradus_fuzz::runner::{Asked, Counting};
use std::process::ExitCode;

#[global_allocator]
static MEMORY: Counting = Counting::new();

fn main() -> ExitCode {
    let asked = Asked::parse(std::env::args().skip(1));
    match asked.and_then(|asked| asked.run(&MEMORY)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("smoke: {error}");
            ExitCode::FAILURE
        }
    }
}
