//! The model against PyTorch's numbers, finite differences, and itself.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod golden;
mod model;
mod parts;
mod tensor;
