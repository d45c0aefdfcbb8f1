//! Inputs from inputs: small damage of the kinds that parsers trip over, all of it from a seed.

use gradus_host::random::Stream;

/// The longest input that is made.
const LONGEST: usize = 48 << 10;

/// The most that is done to one input at once.
const MOST_CHANGES: u64 = 4;

/// Numbers at the edges of what types hold, as text.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e400",
    "0.5",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "null",
];

/// The same as bytes, little endian.
const WORDS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// An input made from some of a corpus.
pub fn mutate(corpus: &[Vec<u8>], chance: &mut Stream) -> Vec<u8> {
    let mut data = pick(corpus, chance).cloned().unwrap_or_default();
    for _ in 0..1 + chance.next_below(MOST_CHANGES) {
        change(&mut data, corpus, chance);
    }
    data.truncate(LONGEST);
    data
}

fn pick<'a, T>(from: &'a [T], chance: &mut Stream) -> Option<&'a T> {
    from.get(chance.next_below(from.len() as u64) as usize)
}

/// A place in the data, or behind them.
fn place(data: &[u8], chance: &mut Stream) -> usize {
    chance.next_below(data.len() as u64 + 1) as usize
}

/// A part of the data, mostly a short one.
fn part(data: &[u8], chance: &mut Stream) -> std::ops::Range<usize> {
    let start = place(data, chance);
    let longest = if chance.next_below(3) == 0 { data.len() as u64 } else { 16 };
    start..data.len().min(start + chance.next_below(longest + 1) as usize)
}

fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Stream) {
    match chance.next_below(10) {
        0 | 1 => {
            let at = place(data, chance);
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << chance.next_below(8);
            }
        }
        2 => {
            let at = place(data, chance);
            if let Some(byte) = data.get_mut(at) {
                *byte = chance.next_u64() as u8;
            }
        }
        3 => {
            let part = part(data, chance);
            data.drain(part);
        }
        4 => {
            let (at, part) = (place(data, chance), part(data, chance));
            let copy = data[part].to_vec();
            data.splice(at..at, copy);
        }
        5 => {
            let end = place(data, chance);
            data.truncate(end);
        }
        6 => {
            let at = place(data, chance);
            let bytes: Vec<u8> = (0..chance.next_below(8)).map(|_| chance.next_u64() as u8).collect();
            data.splice(at..at, bytes);
        }
        7 => splice(data, corpus, chance),
        8 => overwrite_word(data, chance),
        _ => replace_number(data, chance),
    }
}

/// Goes on as another input does.
fn splice(data: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Stream) {
    let Some(other) = pick(corpus, chance) else { return };
    let (end, start) = (place(data, chance), place(other, chance));
    data.truncate(end);
    data.extend_from_slice(&other[start..]);
}

fn overwrite_word(data: &mut [u8], chance: &mut Stream) {
    let word = WORDS[chance.next_below(WORDS.len() as u64) as usize].to_le_bytes();
    let width = 1 << chance.next_below(4);
    let at = place(data, chance);
    if let Some(place) = data.get_mut(at..at + width) {
        place.copy_from_slice(&word[..width]);
    }
}

/// Puts a number in the place of another that is written out.
fn replace_number(data: &mut Vec<u8>, chance: &mut Stream) {
    let from = place(data, chance);
    let Some(start) = data[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
    let end =
        data[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(data.len(), |at| start + at);
    let number = NUMBERS[chance.next_below(NUMBERS.len() as u64) as usize];
    data.splice(start..end, number.bytes());
}
