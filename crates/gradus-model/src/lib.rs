//! Transformers, explicit: layers with forward and backward side by side, no tape.
//!
//! One model covers two families as data: GPT-2's (learned positions, LayerNorm, GELU, biases) and Llama's (rotary
//! positions, RMSNorm, SwiGLU, grouped-query attention, and Qwen2's biases on queries, keys and values). A layer names
//! ranges and asks its device; it knows no communicator, no file and no optimizer. Randomness is counter-based.
//! Dropout is absent: pre-training on data that are seen about once does not use it, and without it a step is a pure
//! function of weights and tokens.

mod block;
mod cache;
mod config;
mod generate;
pub mod hugging_face;
mod initial;
mod liveness;
mod parameters;
mod part;
mod pass;
mod passes;
mod places;
mod prepared;
mod rows;
pub mod sampling;
mod seams;
mod transformer;
mod vocabulary;
mod weights;
mod workspace;

pub use cache::KeyValueCache;
pub use config::{Family, ModelConfig, ModelSettings, PRESETS};
pub use generate::{Ending, Generator, Request};
pub use parameters::{BlockTensors, LinearTensors, NormTensors, Parameters, Unit};
pub use part::{Part, Run};
pub use passes::Backward;
pub use places::Places;
pub use prepared::size_of_prepared;
pub use seams::{Combine, Gradients, Seams};
pub use transformer::{Batch, LossSum, Transformer};
pub use workspace::{StageMemory, Workspace, WorkspaceSize, logits_rows};
