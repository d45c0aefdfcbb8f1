//! One feed for all ranks of a node: the process that has it hands samples to the others.
//!
//! The keeper listens at a socket without a name in any file system, which ends with it; processes of the same user connect
//! and ask for positions. A question is a position; an answer is the sample's bytes, or what kept them from coming. So what
//! a node reads of a bucket is read once, whatever the number of its ranks, and one walk decides what its cache keeps.
//!
//! Invariant: a length is bounded before it sizes anything, on both sides.

use super::Feed;
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::{Clock, RealClock, random};
use std::collections::VecDeque;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Largest sample that is handed over, and longest reason.
const MOST_BYTES: u64 = 1 << 30;

/// Bytes of the name that a socket has.
const NAME_BYTES: usize = 16;

/// Rest after a failure to let somebody in, which lasts while the process has too many files open.
const REST: Duration = Duration::from_millis(100);

/// What begins an answer.
const HERE: u8 = 0;

/// Answers the other ranks of a node until it is dropped.
pub struct Keeper {
    name: String,
    listener: Arc<UnixListener>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to answer, with a thread for each who asks.
    ///
    /// # Errors
    /// The system's failure to listen, or to start a thread.
    pub fn start(feed: Arc<Feed>) -> Result<Self> {
        let mut drawn = [0; NAME_BYTES];
        random::fill_from_system(&mut drawn);
        let name: String = drawn.iter().map(|byte| format!("{byte:02x}")).collect();
        let describe = || "cannot listen for the other ranks of this node".to_owned();
        let address = address(&name)?;
        let listener = Arc::new(UnixListener::bind_addr(&address).context(describe)?);
        let open = Arc::new(Mutex::new(Vec::new()));
        let (door, streams) = (listener.clone(), open.clone());
        let thread = std::thread::Builder::new()
            .name("feed-keeper".to_owned())
            .spawn(move || welcome(&door, &streams, &feed))
            .context(describe)?;
        Ok(Self { name, listener, open, thread: Some(thread) })
    }

    /// What the others are to be told: by it they find this process.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Whoever waits in `accept`, or for a question, is told that there will be none.
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn address(name: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("gradus-feed-{name}"))
        .context(|| format!("{name:?} is no name of a keeper"))
}

/// Answers everybody who comes, each in a thread, until the listener is shut.
fn welcome(listener: &UnixListener, open: &Mutex<Vec<UnixStream>>, feed: &Arc<Feed>) {
    let mut threads = Vec::new();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // What a listener says that was shut.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => break,
            Err(error) => {
                tracing::warn!("a rank of this node could not be let in: {error}");
                RealClock::new().sleep(REST);
                continue;
            }
        };
        if let Err(error) = check_user(&stream) {
            tracing::warn!("{error}");
            continue;
        }
        let Ok(again) = stream.try_clone() else { continue };
        open.lock().unwrap_or_else(PoisonError::into_inner).push(again);
        let feed = feed.clone();
        threads.push(std::thread::spawn(move || {
            // A rank that ends closes its connection; nothing is owed to it then.
            if let Err(error) = answer(&stream, &feed) {
                tracing::debug!("a rank of this node has gone: {error}");
            }
        }));
    }
    for stream in open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

/// Whether the other end is this process' own user.
fn check_user(stream: &UnixStream) -> Result<()> {
    let ours = rustix::process::geteuid();
    let theirs = rustix::net::sockopt::socket_peercred(stream)
        .map_err(std::io::Error::from)
        .context(|| "cannot tell whose the other end of a socket is".to_owned())?;
    if theirs.uid == ours {
        return Ok(());
    }
    Err(Error::denied(format!("a process of user {:?} asked for samples of user {ours:?}", theirs.uid)))
}

fn answer(stream: &UnixStream, feed: &Feed) -> std::io::Result<()> {
    let mut questions = BufReader::new(stream);
    let mut answers = BufWriter::with_capacity(1 << 16, stream);
    loop {
        // Answers leave together where questions came together.
        if questions.buffer().is_empty() {
            answers.flush()?;
        }
        let position = read_u64(&mut questions)?;
        match feed.sample(position) {
            Ok(sample) => {
                answers.write_all(&[HERE])?;
                answers.write_all(&(sample.len() as u64).to_le_bytes())?;
                sample.parts().try_for_each(|part| answers.write_all(part))?;
            }
            Err(error) => {
                let text = error.to_string();
                answers.write_all(&[code_of(error.kind())])?;
                answers.write_all(&(text.len() as u64).to_le_bytes())?;
                answers.write_all(text.as_bytes())?;
            }
        }
    }
}

fn read_u64(from: &mut impl Read) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Kinds that a feed fails with, by their codes from 1 on.
const KINDS: [Kind; 6] =
    [Kind::Invalid, Kind::Denied, Kind::Unavailable, Kind::Exhausted, Kind::Corrupt, Kind::Internal];

fn code_of(kind: &Kind) -> u8 {
    let index = KINDS.iter().position(|known| known == kind).unwrap_or(KINDS.len() - 1);
    index as u8 + 1
}

/// Asks the keeper of this node.
pub struct Asker {
    questions: UnixStream,
    answers: BufReader<UnixStream>,
    /// Positions that were asked for and not answered.
    asked: VecDeque<u64>,
    patience: Duration,
    /// Whether an answer has failed to come: what comes after may be an answer to anything.
    is_lost: bool,
}

impl Asker {
    /// Connects to the keeper of this name, who may take `patience` for an answer.
    ///
    /// # Errors
    /// `Unavailable` when there is none; the system's failure.
    pub fn connect(name: &str, patience: Duration) -> Result<Self> {
        let describe = || "cannot reach the rank that reads for this node".to_owned();
        let stream = UnixStream::connect_addr(&address(name)?)
            .map_err(|error| Error::unavailable(describe()).with_source(error))?;
        check_user(&stream)?;
        stream.set_read_timeout(Some(patience)).context(describe)?;
        let answers = BufReader::with_capacity(1 << 16, stream.try_clone().context(describe)?);
        Ok(Self { questions: stream, answers, asked: VecDeque::new(), patience, is_lost: false })
    }

    /// Asks for positions that will be read next, in this order.
    ///
    /// # Errors
    /// `Unavailable` when the keeper has gone, or has failed to answer before.
    pub fn ask(&mut self, positions: impl Iterator<Item = u64>) -> Result<()> {
        self.check()?;
        let known = self.asked.len();
        self.asked.extend(positions);
        let questions: Vec<u8> =
            self.asked.iter().skip(known).flat_map(|position| position.to_le_bytes()).collect();
        self.questions.write_all(&questions).map_err(|error| self.gone(error))
    }

    /// The bytes of the sample at `position`, into `bytes`. Blocks until they are there.
    ///
    /// # Errors
    /// What the keeper says; `Unavailable` when it has gone, or does not answer in time.
    pub fn read(&mut self, position: u64, bytes: &mut Vec<u8>) -> Result<()> {
        if self.asked.front() != Some(&position) {
            // Somebody has changed their mind: what was asked for comes first all the same.
            while !self.asked.is_empty() {
                // What is wrong with a sample that nobody wants is nobody's concern.
                let _ = self.receive(bytes);
                self.check()?;
            }
            self.ask(std::iter::once(position))?;
        }
        self.receive(bytes)
    }

    fn check(&self) -> Result<()> {
        if self.is_lost {
            return Err(Error::unavailable("the rank that reads for this node has failed to answer before"));
        }
        Ok(())
    }

    fn receive(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        self.check()?;
        self.asked.pop_front();
        let mut code = [0];
        self.answers.read_exact(&mut code).map_err(|error| self.gone(error))?;
        let len = read_u64(&mut self.answers).map_err(|error| self.gone(error))?;
        if len > MOST_BYTES {
            self.is_lost = true;
            return Err(Error::corrupt(format!("the rank that reads for this node announced {len} bytes")));
        }
        bytes.clear();
        let read = self.answers.by_ref().take(len).read_to_end(bytes).map_err(|error| self.gone(error))?;
        if read as u64 != len {
            return Err(self.gone(std::io::ErrorKind::UnexpectedEof.into()));
        }
        match code[0] {
            HERE => Ok(()),
            code => {
                let kind = KINDS.get(usize::from(code) - 1).cloned().unwrap_or(Kind::Internal);
                Err(Error::new(kind, String::from_utf8_lossy(bytes).into_owned()))
            }
        }
    }

    fn gone(&mut self, error: std::io::Error) -> Error {
        self.is_lost = true;
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        let what = match error.kind() {
            TimedOut | WouldBlock => format!("has not answered for {} s", self.patience.as_secs_f64()),
            _ => "has gone".to_owned(),
        };
        Error::unavailable(format!("the rank that reads for this node {what}")).with_source(error)
    }
}
