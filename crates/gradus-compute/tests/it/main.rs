//! Every operation of the fast device against the reference, for each family of kernels that this processor has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so by panicking")]

mod attention;
mod convert;
mod devices;
mod differences;
mod epilogues;
mod matmul;
mod muon;
mod rounding;
mod rows;
mod stable;
mod vocabulary;
