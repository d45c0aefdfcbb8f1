//! All tell all, at once: one hop.

use super::act::Program;

/// The program of `rank`.
pub fn flat_barrier(rank: usize, world_size: usize) -> Program {
    let mut program = Program::default();
    program.meet((0..world_size).filter(|peer| *peer != rank));
    program
}
