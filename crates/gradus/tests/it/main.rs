//! The program itself, as a person or a launcher runs it: real processes, real files.

mod bad_input;
mod corpus;
mod program;
mod ranks;
mod resume;
