//! The device and its kernels.
//!
//! A [`Device`] owns memory and carries out coarse operations on ranges of it; layers name ranges and never touch
//! memory themselves. `reference` is plain loops, obviously right, the oracle of every test; `cpu` is fast.
//!
//! Shapes, everywhere: `B` batch, `T` sequence length, `C` model width, `H` query heads, `K` key-value heads, `D` head
//! size, `F` feed-forward width, `V` vocabulary; `M` rows, `N` outputs and `K` inputs of a matrix product. Elements
//! in memory are f32, row-major; a [`Matrix`] that products read may be bf16 ([`Format`]). With [`Precision::Bf16`] a
//! device rounds the operands of matrix products to bf16, where they are not kept so, and accumulates in f32.

pub mod cpu;
mod device;
mod loss;
mod muon;
pub mod reduce;
mod reference;
mod rounding;

pub use cpu::CpuDevice;
pub use device::{
    AdamW, Attention, CrossEntropy, Device, Embedding, Epilogue, Format, IGNORED, Linear, Matrix, Norm,
    NormKind, Precision, Rope, Rows, Through, Use, Weight,
};
pub use loss::CrossEntropyPart;
pub use muon::{Muon, NewtonSchulz};
pub use reference::Reference;
pub use rounding::Rounding;
