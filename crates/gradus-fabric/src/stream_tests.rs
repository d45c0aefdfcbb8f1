use super::*;
use crate::tls::{Identity, TlsSettings};
use gradus_error::Kind;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// A member's certificate, made once.
fn identity() -> &'static Identity {
    static MADE: OnceLock<Identity> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        Identity::read(&member_files(folder.path())).unwrap().unwrap()
    })
}

/// Files of a member's certificate and its authority's, made anew in `folder`.
pub(crate) fn member_files(folder: &std::path::Path) -> TlsSettings {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = root.self_signed(&root_key).unwrap().pem();
    let member = CertificateParams::new(Vec::new()).unwrap();
    let certificate = member.signed_by(&key, &Issuer::new(root, root_key)).unwrap().pem();
    let [certificate, key, authority] = [("c", certificate), ("k", key.serialize_pem()), ("a", authority)]
        .map(|(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.to_str().unwrap().to_owned()
        });
    TlsSettings { certificate, key, authority }
}

/// Two ends of a session that has begun.
fn pair() -> (Stream, Stream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut ours = identity().call(ours.into()).unwrap();
    let mut theirs = identity().answer(theirs.into()).unwrap();
    while ours.binding().is_err() || theirs.binding().is_err() {
        assert_eq!(ours.receive(&mut [0]).unwrap(), Moved::Nothing);
        assert_eq!(theirs.receive(&mut [0]).unwrap(), Moved::Nothing);
    }
    (ours, theirs)
}

#[test]
fn both_ends_of_a_session_have_one_binding_that_no_other_has() {
    let ((ours, theirs), (other, _)) = (pair(), pair());
    assert_eq!(ours.binding().unwrap(), theirs.binding().unwrap());
    assert_ne!(ours.binding().unwrap(), other.binding().unwrap());
    assert!(identity().call(UnixStream::pair().unwrap().0.into()).unwrap().binding().is_err());
}

#[test]
fn what_finds_no_room_is_held_and_arrives_when_there_is() {
    let (mut ours, mut theirs) = pair();
    let bytes: Vec<u8> = (0..4_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let (mut sent, mut received) = (0, Vec::new());
    let mut space = vec![0; 100_000];
    let mut held = false;
    while received.len() < bytes.len() {
        while sent < bytes.len()
            && let Moved::Bytes(count) = ours.send(&bytes[sent..]).unwrap()
        {
            assert!(count <= ENCRYPTED_BYTES);
            sent += count;
        }
        held |= ours.is_holding() && ours.news(PollFlags::IN) == PollFlags::IN | PollFlags::OUT;
        while let Moved::Bytes(count) = theirs.receive(&mut space).unwrap() {
            received.extend_from_slice(&space[..count]);
        }
        ours.flush().unwrap();
    }
    assert!(held && received == bytes && ours.flush().unwrap());
    drop(ours);
    assert_eq!(theirs.receive(&mut space).unwrap(), Moved::Ended);
}

#[test]
fn a_session_that_is_cut_short_has_ended() {
    for tls in [true, false] {
        let (mut ours, mut theirs) = match tls {
            true => pair(),
            false => UnixStream::pair()
                .map(|(a, b)| [a, b].map(|end| Stream::plain(end.into()).unwrap()))
                .map(|[a, b]| (a, b))
                .unwrap(),
        };
        rustix::net::shutdown(&ours, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(theirs.receive(&mut [0; 10]).unwrap(), Moved::Ended);
        assert!(matches!(ours.send(b"x").unwrap(), Moved::Ended | Moved::Bytes(1)));
        assert_eq!(ours.receive(&mut [0; 10]).unwrap(), Moved::Ended);
    }
}

#[test]
fn an_altered_record_is_refused_with_a_typed_error() {
    let (mut ours, theirs) = pair();
    let Stream::Tls(mut session) = theirs else { panic!("the session is under TLS") };
    ours.send(b"to be altered").unwrap();
    let mut record = [0; 200];
    let count = Socket(&session.socket).read(&mut record).unwrap();
    record[count - 1] ^= 1;
    session.connection.read_tls(&mut &record[..count]).unwrap();
    let error = session.connection.process_new_packets().map_err(|error| tls::refusal(&error)).err().unwrap();
    assert_eq!(*error.kind(), Kind::Denied, "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic_and_begin_no_session(
        // What begins as a handshake's record does goes further.
        record: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let (mut stranger, ours) = UnixStream::pair().unwrap();
        let begun: &[u8] = if record { &[22, 3, 1, 0, 100, 1, 0, 0, 96, 3, 3] } else { &[] };
        stranger.write_all(&[begun, &bytes].concat()).unwrap();
        drop(stranger);
        for side in [Identity::answer, Identity::call] {
            let mut stream = side(identity(), ours.try_clone().unwrap().into()).unwrap();
            while let Ok(moved) = stream.receive(&mut [0; 100]) {
                prop_assert!(matches!(moved, Moved::Nothing | Moved::Ended));
                if moved == Moved::Ended { break }
            }
            prop_assert!(stream.binding().is_err());
        }
    }
}
