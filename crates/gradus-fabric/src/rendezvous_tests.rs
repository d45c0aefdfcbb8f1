//! Guests that prove themselves and then say what no rank of this version says.

use super::*;
use crate::handshake::Purpose;
use crate::secret::Secret;
use gradus_host::RealClock;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

const PATIENCE: Duration = Duration::from_secs(60);

fn terms<'a>(launch: &'a Launch, timeout: Duration, clock: &'a RealClock) -> Terms<'a> {
    let trust =
        Trust { secret: Secret::default(), tls: None, purpose: Purpose::Rendezvous, rank: launch.rank };
    Terms {
        launch,
        occasion: Occasion::default(),
        entrance: None,
        trust,
        wish: None,
        transport: TransportKind::Auto,
        node: "",
        fingerprint: "",
        levels: 1,
        timeout,
        timeouts: Timeouts::from(Duration::from_secs(10)).unwrap(),
        clock,
    }
}

/// What rank 0 comes to when rank 1 says this and no more, and what it answers.
fn rank_0_hears(timeout: Duration, said: &[u8]) -> (Error, Option<Answer>) {
    let (clock, door) = (RealClock::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = door.local_addr().unwrap();
    let mut host = Launch::local(0, 2, address.port());
    host.rendezvous_fd = Some(door.as_raw_fd());
    let guest = Launch::local(1, 2, address.port());
    std::thread::scope(|scope| {
        let meeting = scope.spawn(|| meet(&terms(&host, timeout, &clock)).err().expect("nobody can meet"));
        let socket = TcpStream::connect(address).unwrap();
        let trust = terms(&guest, timeout, &clock).trust;
        let mut stream = trust.call(socket.into(), "rank 0", &clock, clock.now() + PATIENCE).unwrap();
        dial::send_all(&mut stream, said, &clock).unwrap();
        let answer = frame_until(&mut stream, &mut Reader::default(), &clock, clock.now() + PATIENCE);
        let answer = answer.unwrap_or(None).map(|body| frame::decode(&body).unwrap());
        (meeting.join().unwrap(), answer)
    })
}

fn hello() -> Hello {
    let member = Member {
        address: "127.0.0.1:1".parse().unwrap(),
        name: String::new(),
        host: String::new(),
        node: String::new(),
        processors: String::new(),
        socket: String::new(),
    };
    Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        occasion: Occasion::default(),
        rank: 1,
        world_size: 2,
        fingerprint: String::new(),
        transport: TransportKind::Auto,
        priority_levels: 1,
        member,
    }
}

#[test]
fn a_rank_of_another_version_is_named_to_both_sides() {
    let other = Hello { version: "0.0.1-other".to_owned(), ..hello() };
    let (error, answer) = rank_0_hears(PATIENCE, &frame::encode(&other).unwrap());
    assert_eq!(*error.kind(), Kind::Invalid);
    let named = ["rank 1", "0.0.1-other", env!("CARGO_PKG_VERSION")];
    assert!(named.iter().all(|word| error.to_string().contains(word)), "{error}");
    let Some(Answer::Refusal { mend: true, message, .. }) = answer else { panic!("{answer:?}") };
    assert!(named.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn a_frame_that_is_cut_or_altered_is_no_rank_and_holds_nobody_up_for_long() {
    let whole = frame::encode(&hello()).unwrap();
    let altered = |at: usize, byte: u8| {
        let mut frame = whole.clone();
        frame[at] = byte;
        frame
    };
    // Cut in the length and in the body; a length beyond the limit; JSON that is none; a rank that is not the one proven.
    let foreign =
        [whole[..2].to_vec(), whole[..whole.len() - 1].to_vec(), altered(3, 9), altered(5, b'['), {
            let other = Hello { rank: 0, ..hello() };
            frame::encode(&other).unwrap()
        }];
    std::thread::scope(|scope| {
        for said in &foreign {
            scope.spawn(move || {
                let (error, answer) = rank_0_hears(Duration::from_secs(1), said);
                assert_eq!(*error.kind(), Kind::Unavailable, "{error}");
                assert!(error.to_string().contains("rank 1") && answer.is_none(), "{error}");
            });
        }
    });
}
