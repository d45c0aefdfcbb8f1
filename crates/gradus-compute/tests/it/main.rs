//! Every operation of the fast device against the reference, for each family of kernels that this processor has.

mod attention;
mod devices;
mod matmul;
mod rows;
mod stable;
