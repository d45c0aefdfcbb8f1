//! What holds for the repository as a whole: who may depend on whom, and how files look.

mod layering;
mod style;
