//! The model against PyTorch's numbers, finite differences, and itself.

mod golden;
mod model;
