//! The thread that writes blocks to disk, so that no reader waits for it.

use super::pages::{Page, Waker};
use super::slots::Slot;
use super::state::{State, Whereabouts};
use super::tier0::Shared;
use gradus_error::{IoContext, Result};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

/// What it is given to do, in this order.
pub(super) enum Chore {
    /// Write a block.
    Write(Arc<Page>),
    /// Say that everything before is done.
    Tell(Waker),
}

/// Starts it; it ends when nobody can give it chores any longer.
pub(super) fn start(shared: Arc<Shared>, chores: Receiver<Chore>) -> Result<JoinHandle<()>> {
    let work = move |chore| match chore {
        Chore::Write(page) => write(&shared, &page),
        Chore::Tell(waker) => waker(),
    };
    std::thread::Builder::new()
        .name("gradus-cache".into())
        .spawn(move || chores.iter().for_each(work))
        .context(|| "cannot start the thread that writes the cache".to_owned())
}

/// Writes a block, unless the disk is no longer to have it.
fn write(shared: &Shared, page: &Page) {
    let block = page.about().block;
    let is_wanted = |state: &State| state.disk.as_ref().is_some_and(|disk| disk.is_queued(block));
    let state = shared.lock();
    let wanted = is_wanted(&state);
    let slots = state.disk.as_ref().filter(|_| wanted).map(|disk| disk.slots.clone());
    drop(state);
    let (Some(slots), Some(bytes)) = (slots, page.bytes()) else { return };
    let checksum = page.about().checksum(bytes);
    let written = slots.take().map(|place| place.write(shared.map.key_of(block), bytes, checksum));
    let mut state = shared.lock();
    if let Some(Ok(_)) = &written {
        state.counters.disk_writes += 1;
        state.counters.disk_written_bytes += bytes.len() as u64;
    }
    if is_wanted(&state) || matches!(written, Some(Err(_))) {
        note(&mut state, page, written);
    }
}

fn note(state: &mut State, page: &Page, written: Option<Result<Slot>>) {
    let State { disk: Some(disk), counters, .. } = state else { return };
    match written {
        Some(Ok(slot)) => {
            disk.whereabouts.insert(page.about().block, Whereabouts::Written(Arc::new(slot)));
        }
        None => {
            counters.skipped_writes += 1;
            disk.forget(page.about().block);
        }
        Some(Err(error)) => {
            tracing::warn!(
                "{error}: the cache in {} takes in no more blocks; lower cache.disk_bytes, or make room",
                disk.slots.folder().display()
            );
            counters.disk_full = true;
            disk.give_up_writing();
        }
    }
}
