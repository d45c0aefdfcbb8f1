//! Bodies of answers: files read in large pieces, and what faults make of a body.

use crate::faults::{Faults, Ticket};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Bytes of a file that are read at once: past 256 KiB a read costs what its bytes cost.
const CHUNK_BYTES: u64 = 256 << 10;

/// Bytes that pass at once where a bandwidth is set, so that connections share it evenly.
const PACED_BYTES: usize = 32 << 10;

/// Time in which what came before a cut is sent.
const CUT_PAUSE: Duration = Duration::from_millis(1);

/// What an S3 error of any layer is here.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A range of a file. Reading blocks the server's thread, which is the server's own: its files lie in the page cache.
pub(crate) struct FileBody {
    file: File,
    left: Range<u64>,
}

impl FileBody {
    pub(crate) fn new(file: File, range: Range<u64>) -> Self {
        Self { file, left: range }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let bytes = CHUNK_BYTES.min(self.left.end - self.left.start);
        if bytes == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; bytes as usize];
        let read = self.file.read_exact_at(&mut chunk, self.left.start);
        self.left.start += bytes;
        Poll::Ready(Some(read.map(|()| Frame::data(chunk.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

/// How a body is to end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It does not.
    Whole,
    /// The connection is cut when so many bytes have passed.
    Cut(u64),
    /// It ends in good order after so many bytes, fewer than its range has.
    Short(u64),
}

/// A body that is counted, paced, and perhaps ended early.
pub(crate) struct FaultyBody<B> {
    inner: Pin<Box<B>>,
    faults: Faults,
    ticket: Option<Ticket>,
    ending: Ending,
    passed: u64,
    /// What was read and has not passed.
    held: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
    /// When the connection is cut.
    cut_at: Option<Pin<Box<Sleep>>>,
}

impl<B: Body<Data = Bytes>> FaultyBody<B> {
    pub(crate) fn new(inner: B, faults: Faults, ticket: Ticket, ending: Ending) -> Self {
        let mut body = Self {
            inner: Box::pin(inner),
            faults,
            ticket: Some(ticket),
            ending,
            passed: 0,
            held: Bytes::new(),
            pause: None,
            cut_at: None,
        };
        if body.left() == Some(0) {
            body.ticket = None;
        }
        body
    }

    /// Bytes that may still pass before the body ends early.
    fn room(&self) -> u64 {
        match self.ending {
            Ending::Whole => u64::MAX,
            Ending::Cut(at) | Ending::Short(at) => at.saturating_sub(self.passed),
        }
    }

    fn left(&self) -> Option<u64> {
        let inner = self.inner.size_hint().exact()?;
        Some((inner + self.held.len() as u64).min(match self.ending {
            Ending::Short(_) => self.room(),
            _ => u64::MAX,
        }))
    }

    /// Takes from what is held as much as may pass at once.
    fn pass(&mut self) -> Bytes {
        let paced = if self.faults.bandwidth().is_some() { PACED_BYTES } else { usize::MAX };
        let count = (self.held.len().min(paced) as u64).min(self.room()) as usize;
        let chunk = self.held.split_to(count);
        self.passed += count as u64;
        if let Some(ticket) = &self.ticket {
            ticket.passed(count as u64);
        }
        if self.left() == Some(0) {
            // Nothing is in flight once the client can have its last byte.
            self.ticket = None;
        }
        chunk
    }
}

impl<B> Body for FaultyBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
                return Poll::Ready(Some(Ok(Frame::data(this.pass()))));
            }
            if this.room() == 0 {
                if matches!(this.ending, Ending::Cut(_)) && this.cut_at.is_none() {
                    // What has passed is sent while the body has nothing new; an error at once would hold it back.
                    this.cut_at = Some(Box::pin(tokio::time::sleep(CUT_PAUSE)));
                }
                if let Some(pause) = &mut this.cut_at {
                    ready!(pause.as_mut().poll(context));
                }
                this.ticket = None;
                return Poll::Ready(match this.ending {
                    Ending::Cut(_) => Some(Err("the connection is cut".into())),
                    _ => None,
                });
            }
            if !this.held.is_empty() {
                let Some(until) = this.faults.pace(this.held.len().min(PACED_BYTES) as u64) else {
                    return Poll::Ready(Some(Ok(Frame::data(this.pass()))));
                };
                this.pause = Some(Box::pin(tokio::time::sleep_until(until)));
                continue;
            }
            match ready!(this.inner.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    this.ticket = None;
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left() == Some(0) && !matches!(self.ending, Ending::Cut(_))
    }

    fn size_hint(&self) -> SizeHint {
        self.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
