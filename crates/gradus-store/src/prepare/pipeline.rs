//! Reader, encoders and writer, side by side.
//!
//! Batch `i` goes to encoder `i` modulo their number, through a channel of its own in and out, and the writer takes
//! from the encoders in turn. So the order is that of the corpus whatever the threads do, and what is under way is
//! bounded by the channels. A failure travels the same way: the first in the order of the corpus is the one reported.

use super::corpus::{Corpus, HeldOut};
use super::reader::{Batch, Reader};
use super::settings::PrepareSettings;
use super::shards::SplitWriter;
use crate::manifest::Split;
use crate::tokenizer::Tokenizer;
use gradus_error::{Error, Result};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Batches that wait before and after each encoder.
const WAITING_BATCHES: usize = 2;

/// The tokens of a batch.
struct Encoded {
    tokens: Vec<u32>,
    pieces: Vec<EncodedPiece>,
    input_bytes: u64,
}

struct EncodedPiece {
    split: Split,
    starts_document: bool,
    tokens: usize,
    text_bytes: u64,
}

/// Where tokens go.
pub(crate) struct Writers {
    pub(crate) train: SplitWriter,
    pub(crate) held_out: SplitWriter,
}

/// Encodes a corpus with `threads` encoders. `progress` is told, now and then, how many bytes of the input are done.
pub(crate) fn encode(
    corpus: &Corpus,
    settings: &PrepareSettings,
    tokenizer: &Tokenizer,
    threads: usize,
    writers: &mut Writers,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let held_out = HeldOut::choose(corpus, settings.held_out, settings.seed, &settings.text_field)?;
    thread::scope(|scope| {
        let (mut batches, mut encoded) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (batch_sender, batch_receiver) = sync_channel(WAITING_BATCHES);
            let (encoded_sender, encoded_receiver) = sync_channel(WAITING_BATCHES);
            scope.spawn(move || encode_batches(tokenizer, &batch_receiver, &encoded_sender));
            batches.push(batch_sender);
            encoded.push(encoded_receiver);
        }
        scope.spawn(move || read(corpus, held_out, settings, &batches));
        // The receivers end with this call, early or not; then nobody can send, and all threads end.
        write(encoded, writers, progress)
    })
}

type Batches = SyncSender<Result<Batch>>;

fn read(corpus: &Corpus, held_out: HeldOut, settings: &PrepareSettings, encoders: &[Batches]) {
    let mut turn = encoders.iter().cycle();
    let mut send = |batch| {
        let encoder = turn.next().expect("there is at least one encoder");
        encoder.send(batch).map_err(|_| Error::closed("the writer has stopped"))
    };
    let result =
        Reader::new(held_out, settings.held_out, &settings.text_field, |batch| send(Ok(batch))).read(corpus);
    if let Err(error) = result {
        // Where the writer has stopped, it has an error of its own to report.
        let _ = send(Err(error));
    }
}

fn encode_batches(
    tokenizer: &Tokenizer,
    batches: &Receiver<Result<Batch>>,
    out: &SyncSender<Result<Encoded>>,
) {
    let mut encoder = tokenizer.encoder();
    for batch in batches {
        let encoded = batch.and_then(|batch| {
            let mut encoded =
                Encoded { tokens: Vec::new(), pieces: Vec::new(), input_bytes: batch.input_bytes };
            for piece in batch.pieces {
                let start = encoded.tokens.len();
                encoder.encode(&batch.text[piece.range.clone()], &mut encoded.tokens)?;
                if piece.ends_document {
                    encoded.tokens.push(tokenizer.end_of_text());
                }
                encoded.pieces.push(EncodedPiece {
                    split: piece.split,
                    starts_document: piece.starts_document,
                    tokens: encoded.tokens.len() - start,
                    text_bytes: piece.range.len() as u64,
                });
            }
            Ok(encoded)
        });
        if out.send(encoded).is_err() {
            return;
        }
    }
}

fn write(
    encoders: Vec<Receiver<Result<Encoded>>>,
    writers: &mut Writers,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut done = 0;
    for encoder in encoders.iter().cycle() {
        // The reader hands out batches in turn: the first encoder that has no more is the end.
        let Ok(encoded) = encoder.recv() else { return Ok(()) };
        let encoded = encoded?;
        let mut tokens = encoded.tokens.as_slice();
        for piece in &encoded.pieces {
            let writer = match piece.split {
                Split::Train => &mut writers.train,
                Split::HeldOut => &mut writers.held_out,
            };
            if piece.starts_document {
                writer.begin_document();
            }
            let (now, later) = tokens.split_at(piece.tokens);
            writer.push(now, piece.text_bytes)?;
            tokens = later;
        }
        done += encoded.input_bytes;
        progress(done);
    }
    Ok(())
}
