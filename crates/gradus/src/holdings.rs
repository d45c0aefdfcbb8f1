//! What the nodes of a run have on disk already, told to each other.

use gradus_collective::Communicator;
use gradus_error::Result;
use gradus_store::peers::Holdings;

/// Bytes in which a node tells what it holds; none where it holds nothing.
pub fn bytes_of(holdings: &Holdings) -> Vec<u8> {
    let bytes = holdings.as_bytes();
    if bytes.iter().all(|byte| *byte == 0) { Vec::new() } else { bytes.to_vec() }
}

/// What each rank tells, whose `lengths` all know; one after another, so that of many ranks only those who hold something cost
/// memory. All ranks call it together.
///
/// # Errors
/// The collective's.
pub fn exchange(communicator: &mut Communicator, own: &[u8], lengths: &[usize]) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::with_capacity(lengths.len());
    for (rank, length) in lengths.iter().enumerate() {
        let mut told = if rank == communicator.rank() { own.to_vec() } else { vec![0; *length] };
        if !told.is_empty() {
            communicator.broadcast(rank, &mut told)?;
        }
        all.push(told);
    }
    Ok(all)
}

/// As a node told it, of a dataset of `blocks` blocks.
///
/// # Errors
/// `Corrupt` when it is of another number of blocks.
pub fn understood(told: Vec<u8>, blocks: u64) -> Result<Holdings> {
    if told.is_empty() { Ok(Holdings::none(blocks)) } else { Holdings::from_bytes(told, blocks) }
}
