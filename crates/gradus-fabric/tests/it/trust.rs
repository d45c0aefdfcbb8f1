//! Who is believed: the same secret, the same authority; everybody else is told, in bounded time, on both ends.

use crate::certificates::{Authority, Member};
use crate::world::{Start, WAYS, Way, on, pattern, receive, run, send_all};
use gradus_error::{Error, Kind};
use gradus_fabric::{Launch, NetworkSettings, SECRET, Secret, TlsSettings, TransportKind, connect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;

fn secret(letter: &str) -> Secret {
    Secret::from_environment(&|name| (name == SECRET).then(|| letter.repeat(32))).unwrap()
}

/// Two ranks that do not believe each other; what each says.
fn quarrel(change: impl Fn(usize, &mut Start) + Sync) -> [Error; 2] {
    let change = |rank: usize, start: &mut Start| {
        start.settings.rendezvous_timeout_s = 5;
        change(rank, start);
    };
    let errors = run(2, change, |_, transport| transport.err().expect("these ranks cannot meet"));
    errors.try_into().unwrap()
}

/// Runs `body` for all cases at once: each waits until its time is up.
fn side_by_side<T: Send>(cases: impl IntoIterator<Item = T>, body: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let body = &body;
            scope.spawn(move || body(case));
        }
    });
}

#[test]
fn a_shared_secret_opens_every_way() {
    for way in WAYS {
        let on_way = on(way);
        let with_secret = |rank: usize, start: &mut Start| {
            on_way(rank, start);
            start.launch.secret = secret("a");
        };
        run(3, with_secret, |rank, transport| {
            let mut transport = transport.unwrap();
            assert!(transport.address().unwrap().ip().is_loopback());
            send_all(&mut *transport, (rank + 1) % 3, &pattern(rank, 0, 500_000)).unwrap();
            let before = (rank + 2) % 3;
            assert_eq!(receive(&mut *transport, before, 500_000).unwrap(), pattern(before, 0, 500_000));
        });
    }
}

#[test]
fn another_secret_or_none_is_denied_on_both_ends() {
    let cases = [
        (secret("a"), secret("b"), Way::Tcp),
        (secret("a"), Secret::default(), Way::Tcp),
        (Secret::default(), secret("b"), Way::SharedMemory),
        (secret("a"), secret("b"), Way::Tls),
    ];
    side_by_side(cases, |(of_rank_0, of_rank_1, way)| {
        let on_way = on(way);
        let errors = quarrel(|rank, start| {
            on_way(rank, start);
            start.launch.secret = [&of_rank_0, &of_rank_1][rank].clone();
        });
        for error in &errors {
            assert_eq!(*error.kind(), Kind::Denied, "{error}");
            assert!(!error.to_string().contains("aaaa") && !error.to_string().contains("bbbb"), "{error}");
        }
        assert!(errors[0].to_string().contains("rank 1") && errors[0].to_string().contains("127.0.0.1:"));
        assert!(errors[1].to_string().contains("rank 0") && errors[1].to_string().contains(SECRET));
    });
}

#[test]
fn who_comes_without_the_secret_does_not_keep_ranks_from_meeting() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = NetworkSettings { rendezvous_timeout_s: 60, ..NetworkSettings::default() };
    std::thread::scope(|scope| {
        let rank = |rank: usize, letter: &str| {
            let launch = Launch {
                secret: secret(letter),
                rendezvous_fd: (rank == 0).then(|| listener.as_raw_fd()),
                ..Launch::local(rank, 2, port)
            };
            let settings = &settings;
            scope.spawn(move || connect(&launch, TransportKind::Auto, settings, "").map(|found| found.name()))
        };
        let zero = rank(0, "a");
        let thief = rank(1, "b").join().unwrap();
        assert_eq!(*thief.unwrap_err().kind(), Kind::Denied);
        assert_eq!(rank(1, "a").join().unwrap().unwrap(), "shared memory");
        assert_eq!(zero.join().unwrap().unwrap(), "shared memory");
    });
}

#[test]
fn without_a_secret_nobody_leaves_loopback() {
    let settings = NetworkSettings { rendezvous_timeout_s: 1, ..NetworkSettings::default() };
    for address in ["192.0.2.1", "0.0.0.0", "::"] {
        for rank in [0, 1] {
            let launch =
                Launch { master_address: address.into(), local_world_size: 1, ..Launch::local(rank, 2, 9) };
            let error = connect(&launch, TransportKind::Tcp, &settings, "").err().unwrap();
            assert_eq!(*error.kind(), Kind::Denied, "{error}");
            assert!(
                error.to_string().contains(SECRET) && error.to_string().contains("MASTER_ADDR"),
                "{error}"
            );
        }
    }
}

#[test]
fn an_inherited_door_to_everybody_wants_a_secret() {
    let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let launch = Launch { rendezvous_fd: Some(open.as_raw_fd()), ..Launch::local(0, 2, 9) };
    let error = connect(&launch, TransportKind::Tcp, &NetworkSettings::default(), "").err().unwrap();
    assert_eq!(*error.kind(), Kind::Denied, "{error}");
}

#[test]
fn ranks_of_one_host_meet_on_loopback_whatever_the_host_is_called() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let addresses = std::thread::scope(|scope| {
        let rank = |rank: usize| {
            let launch = Launch { master_address: "192.0.2.1".into(), ..Launch::local(rank, 2, port) };
            scope.spawn(move || {
                let transport =
                    connect(&launch, TransportKind::Tcp, &NetworkSettings::default(), "").unwrap();
                transport.address().unwrap()
            })
        };
        [rank(0), rank(1)].map(|rank| rank.join().unwrap())
    });
    assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
}

#[test]
fn interfaces_are_chosen_by_name() {
    let loopback = gradus_fabric::interface_of("127.0.0.1".parse().unwrap());
    let exactly = |_: usize, start: &mut Start| start.settings.interface = format!("={loopback}");
    run(2, exactly, |_, transport| transport.map(|_| ()).unwrap());
    let errors = quarrel(|_, start| start.settings.interface = "no-such-interface".into());
    for error in errors {
        assert_eq!(*error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains("network.interface"), "{error}");
    }
}

fn with_files(start: &mut Start, files: Option<&Member>) {
    start.kind = TransportKind::Tcp;
    start.settings.tls = files.map_or_else(TlsSettings::default, |files| files.settings.clone());
}

#[test]
fn another_authority_or_an_expired_certificate_is_denied_on_both_ends() {
    let ours = Authority::new();
    let (good, expired, foreign) = (ours.member(), ours.member_until(2000), Authority::new().member());
    let pairs = [[&good, &expired], [&expired, &good], [&good, &foreign], [&foreign, &good]];
    side_by_side(pairs, |pair| {
        for error in quarrel(|rank, start| with_files(start, Some(pair[rank]))) {
            assert_eq!(*error.kind(), Kind::Denied, "{error}");
            assert!(error.to_string().contains("network.tls"), "{error}");
        }
    });
}

#[test]
fn who_speaks_no_tls_and_who_does_find_out_about_each_other() {
    let member = Authority::new().member();
    let [plain, under_tls] = quarrel(|rank, start| with_files(start, (rank == 1).then_some(&member)));
    assert_eq!((plain.kind(), under_tls.kind()), (&Kind::Denied, &Kind::PeerLost { rank: 0 }));
    assert!(
        plain.to_string().contains("speaks TLS") && under_tls.to_string().contains("expect TLS"),
        "{plain} {under_tls}"
    );
    let [under_tls, plain] = quarrel(|rank, start| with_files(start, (rank == 0).then_some(&member)));
    assert_eq!((under_tls.kind(), plain.kind()), (&Kind::Denied, &Kind::Invalid));
    assert!(under_tls.to_string().contains("network.tls") && plain.to_string().contains("network.tls"));
}

/// Calls a rank as one that trusts its authority and has no certificate of its own; whether it was answered.
fn call_without_certificate(member: &Member, port: u16) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&member.settings.authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "somewhere.invalid".try_into().unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    let _ = stream.write_all(&[0; 48]);
    matches!(stream.read(&mut [0]), Ok(1))
}

#[test]
fn who_shows_no_certificate_is_refused_and_named() {
    let member = Authority::new().member();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let launch = Launch { rendezvous_fd: Some(listener.as_raw_fd()), ..Launch::local(0, 2, port) };
    let settings = NetworkSettings {
        rendezvous_timeout_s: 3,
        tls: member.settings.clone(),
        ..NetworkSettings::default()
    };
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| connect(&launch, TransportKind::Tcp, &settings, "").err().unwrap());
        assert!(!call_without_certificate(&member, port));
        let error = zero.join().unwrap();
        assert_eq!(*error.kind(), Kind::Denied);
        assert!(
            error.to_string().contains("127.0.0.1:") && error.to_string().contains("certificate"),
            "{error}"
        );
    });
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let member = Authority::new().member();
    let good = &member.settings;
    let other = Authority::new().member();
    let nowhere = || "nowhere.pem".to_owned();
    let wrong = [
        ("network.tls.certificate", TlsSettings { certificate: nowhere(), ..good.clone() }),
        ("network.tls.certificate", TlsSettings { certificate: good.key.clone(), ..good.clone() }),
        ("network.tls.key", TlsSettings { key: nowhere(), ..good.clone() }),
        ("network.tls.key", TlsSettings { key: good.certificate.clone(), ..good.clone() }),
        ("network.tls.key", TlsSettings { key: other.settings.key.clone(), ..good.clone() }),
        ("network.tls.authority", TlsSettings { authority: good.key.clone(), ..good.clone() }),
        ("network.tls.authority", TlsSettings { authority: String::new(), ..good.clone() }),
    ];
    for (key, tls) in wrong {
        let settings = NetworkSettings { tls, rendezvous_timeout_s: 1, ..NetworkSettings::default() };
        let error = connect(&Launch::local(0, 2, 9), TransportKind::Tcp, &settings, "").err().unwrap();
        assert_eq!(*error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}
