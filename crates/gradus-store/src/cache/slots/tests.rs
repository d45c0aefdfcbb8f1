//! Slots on a disk that is killed, altered, cut and full.

use super::*;
use gradus_error::Kind;

pub(super) const BLOCK: u64 = 4096;

fn key(number: u64) -> BlockKey {
    BlockKey { object: [7; 16], number }
}

fn content(number: u64) -> Vec<u8> {
    (0..BLOCK).map(|place| (place * 7 + number) as u8).collect()
}

fn write(slots: &Arc<Slots>, number: u64) -> Slot {
    let bytes = content(number);
    slots.take().unwrap().write(key(number), &bytes, crc32c(&bytes)).unwrap()
}

fn read(slot: &Slot) -> Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK as usize];
    slot.read(&mut bytes).map(|()| bytes)
}

fn numbers(opened: &Opened) -> Vec<u64> {
    let mut numbers: Vec<u64> = opened.found.iter().map(|(key, _)| key.number).collect();
    numbers.sort_unstable();
    numbers
}

/// A folder with blocks 0 to 4, in the slots of those numbers.
pub(super) fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let opened = Slots::open(folder.path(), BLOCK, 5).unwrap();
    let slots: Vec<Slot> = (0..5).map(|number| write(&opened.slots, number)).collect();
    slots.iter().zip(0..).for_each(|(slot, number)| assert_eq!(read(slot).unwrap(), content(number)));
    folder
}

#[test]
fn blocks_are_found_again_and_empty_slots_taken_first() {
    let folder = filled();
    let mut opened = Slots::open(folder.path(), BLOCK, 7).unwrap();
    assert_eq!(numbers(&opened), [0, 1, 2, 3, 4]);
    opened.found.retain(|(key, _)| key.number != 3);
    let fresh: Vec<Slot> = (5..8).map(|number| write(&opened.slots, number)).collect();
    assert_eq!(fresh.iter().map(Slot::index).collect::<Vec<_>>(), [5, 6, 3]);
    for (key, slot) in &opened.found {
        assert_eq!(read(slot).unwrap(), content(key.number));
    }
}

#[test]
fn a_smaller_budget_cuts_the_files_and_another_size_begins_anew() {
    let folder = filled();
    assert_eq!(numbers(&Slots::open(folder.path(), BLOCK, 3).unwrap()), [0, 1, 2]);
    assert_eq!(fs::metadata(folder.path().join(DATA)).unwrap().len(), 3 * BLOCK);
    assert_eq!(numbers(&Slots::open(folder.path(), BLOCK, 5).unwrap()), [0, 1, 2]);
    assert_eq!(numbers(&Slots::open(folder.path(), 2 * BLOCK, 5).unwrap()), [0u64; 0]);
    assert_eq!(fs::metadata(folder.path().join(DATA)).unwrap().len(), 0);
}

#[test]
fn what_was_altered_or_torn_is_told_by_its_checksum() {
    let folder = filled();
    let data = File::options().write(true).open(folder.path().join(DATA)).unwrap();
    let records = File::options().write(true).open(folder.path().join(RECORDS)).unwrap();
    data.write_all_at(&[0xaa], BLOCK + 100).unwrap();
    records.write_all_at(&[0xaa], Record::offset(2) + 20).unwrap();
    data.set_len(4 * BLOCK + 17).unwrap();
    let opened = Slots::open(folder.path(), BLOCK, 5).unwrap();
    assert_eq!(numbers(&opened), [0, 1, 3]);
    for (key, slot) in &opened.found {
        match key.number {
            1 => assert_eq!(*read(slot).unwrap_err().kind(), Kind::Corrupt),
            number => assert_eq!(read(slot).unwrap(), content(number)),
        }
    }
    records.write_all_at(b"x", 3).unwrap();
    drop(opened);
    assert_eq!(numbers(&Slots::open(folder.path(), BLOCK, 5).unwrap()), [0u64; 0]);
}

#[test]
fn a_full_disk_is_said_and_the_slot_then_holds_nothing() {
    let folder = filled();
    let mut opened = Slots::open(folder.path(), BLOCK, 5).unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    opened.found.clear();
    Arc::get_mut(&mut opened.slots).unwrap().data = full;
    let bytes = content(9);
    let written = opened.slots.take().unwrap().write(key(9), &bytes, crc32c(&bytes));
    assert_eq!(*written.err().unwrap().kind(), Kind::Exhausted);
    drop(opened);
    assert_eq!(numbers(&Slots::open(folder.path(), BLOCK, 5).unwrap()), [0, 1, 2, 3]);
}

#[test]
fn who_waits_for_a_slot_gets_the_next_one_or_none_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let slots = Slots::open(folder.path(), BLOCK, 1).unwrap().slots;
    let slot = write(&slots, 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| slots.take().map(|place| place.index));
        drop(slot);
        assert_eq!(waits.join().unwrap(), Some(0));
    });
    let _slot = write(&slots, 2);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| slots.take().is_none());
        slots.close();
        assert!(waits.join().unwrap());
    });
}

#[test]
fn a_folder_has_one_keeper() {
    let folder = tempfile::tempdir().unwrap();
    let first = Slots::open(folder.path(), BLOCK, 1).unwrap();
    let error = Slots::open(folder.path(), BLOCK, 1).err().unwrap();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    Slots::open(folder.path(), BLOCK, 1).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(*Slots::open(&file, BLOCK, 1).err().unwrap().kind(), Kind::Invalid);
}

#[test]
fn a_folder_is_free_when_its_slots_are_gone_whoever_still_has_the_locks_file() {
    let folder = tempfile::tempdir().unwrap();
    let opened = Slots::open(folder.path(), BLOCK, 5).unwrap();
    // As a program has it that another thread is starting, until it runs.
    let inherited = opened.slots._lock.0.try_clone().unwrap();
    assert_eq!(*Slots::open(folder.path(), BLOCK, 5).err().unwrap().kind(), Kind::Unavailable);
    drop(opened);
    Slots::open(folder.path(), BLOCK, 5).unwrap();
    drop(inherited);
}
