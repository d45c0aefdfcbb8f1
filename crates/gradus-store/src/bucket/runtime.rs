//! The threads that requests run on.

use gradus_error::{Error, Result};
use std::sync::{Mutex, OnceLock, PoisonError};
use tokio::runtime::{Builder, Runtime};

/// Threads that move bytes: one moves about a gigabyte a second from plain HTTP, and TLS costs as much again.
const WORKERS: usize = 2;

/// Most threads that read files.
const MOST_FILE_READERS: usize = 16;

/// The one runtime of the process. It is not ended: what is under way when the process ends, ends with it.
///
/// # Errors
/// The system's failure to start threads.
pub(super) fn get() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MOST_FILE_READERS)
        .thread_name("bucket")
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start threads for requests", error))?;
    Ok(RUNTIME.get_or_init(|| runtime))
}
