//! Members of a group as threads of this process, from world to world.

use crate::beside;
use crate::world::{pattern, receive, send_all};
use gradus_error::{Error, Kind, Result};
use gradus_fabric::membership::{CoordinatorAddress, Engine, Epoch, GroupSettings};
use gradus_fabric::{
    Direction, Interest, Lane, NetworkSettings, Order, Secret, Session, SessionSettings, TlsSettings,
    Transport, TransportKind, World,
};
use std::sync::Barrier;
use std::time::Duration;

/// Long enough that no busy machine makes the living look dead.
const FAILURE_DETECTION: Duration = Duration::from_secs(6);

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(120);

fn settings(coordinator: &str, number: usize) -> SessionSettings {
    SessionSettings {
        coordinator: CoordinatorAddress::At(coordinator.into()),
        group: "g".into(),
        size: GroupSettings::fixed(2),
        name: format!("member-{number}"),
        order: Order::ByName,
        secret: Secret::default(),
        coordinator_tls: TlsSettings::default(),
        transport: TransportKind::Auto,
        network: NetworkSettings { failure_detection: FAILURE_DETECTION, ..NetworkSettings::default() },
        interfaces: String::new(),
        fingerprint: "same".into(),
    }
}

/// Runs `body` beside a coordinator that keeps no state.
fn beside_a_coordinator<T>(body: impl FnOnce(&str) -> T) -> T {
    beside::beside_a_coordinator(Engine::Nothing, FAILURE_DETECTION, body)
}

/// Runs `body` as each of two members.
fn two<T: Send>(
    change: impl Fn(usize, &mut SessionSettings) + Sync,
    body: impl Fn(usize, Session) -> T + Sync,
) -> Vec<T> {
    together(2, change, body)
}

/// Runs `body` as each of so many members.
fn together<T: Send>(
    members: usize,
    change: impl Fn(usize, &mut SessionSettings) + Sync,
    body: impl Fn(usize, Session) -> T + Sync,
) -> Vec<T> {
    beside_a_coordinator(|coordinator| {
        let (change, body) = (&change, &body);
        std::thread::scope(|scope| {
            let member = |number: usize| {
                let mut settings = settings(coordinator, number);
                settings.size = GroupSettings::fixed(members as u32);
                change(number, &mut settings);
                scope.spawn(move || body(number, Session::join(settings).unwrap()))
            };
            // The last number comes first: ranks follow names, not arrivals.
            let members: Vec<_> = (0..members).rev().map(member).collect();
            members.into_iter().map(|member| member.join().unwrap()).rev().collect()
        })
    })
}

/// Waits for a byte from the other rank, which sends none.
fn wait(transport: &mut dyn Transport) -> Error {
    let interest = [Interest { lane: Lane::lowest(1 - transport.rank()), direction: Direction::Receive }];
    loop {
        let waited = transport.wait(&interest, LIMIT);
        let taken = waited.and_then(|()| transport.try_receive(interest[0].lane, &mut |_, len| len));
        match taken {
            Ok(count) => assert_eq!(count, 0, "nothing was sent"),
            Err(error) => return error,
        }
    }
}

#[test]
fn ranks_follow_names_where_members_are_numbered() {
    // Who has returned has left, and the epoch is over: so both have been asked before either returns, or fails.
    let asked = Barrier::new(2);
    let places = two(
        |_, _| {},
        |number, mut session| {
            let (world, may_act) = (session.next_world(LIMIT), session.may_act());
            asked.wait();
            let world = world.unwrap();
            assert_eq!((world.rank, world.transport.rank(), world.members.len()), (number, number, 2));
            assert_eq!(may_act, Some(world.epoch));
            world.members.iter().map(|member| member.name.clone()).collect::<Vec<_>>()
        },
    );
    assert_eq!(places, [["member-0", "member-1"], ["member-0", "member-1"]]);
}

#[test]
fn an_epoch_that_one_gives_up_ends_for_all_and_another_follows() {
    let epochs = two(
        |_, _| {},
        |number, mut session| {
            let World { epoch: first, mut transport, .. } = session.next_world(LIMIT).unwrap();
            if number == 1 {
                let error = wait(&mut *transport);
                // Its peer has let go of its transport, and then of the epoch: whichever is seen first.
                assert!(matches!(error.kind(), Kind::PeerLost { rank: 0 } | Kind::Closed), "{error}");
            }
            let held = session.next_world(LIMIT).err().unwrap();
            assert!(*held.kind() == Kind::Invalid && held.to_string().contains("still held"), "{held}");
            drop(transport);
            let second = session.next_world(LIMIT).unwrap();
            assert!(second.epoch > first && session.is_outdated(first));
            second.epoch
        },
    );
    assert_eq!(epochs[0], epochs[1]);
}

#[test]
fn epochs_follow_each_other_on_several_nodes() {
    // Members 0 and 2 lie on one node, 1 and 3 on the other: ranks are dealt by node, whatever members are called.
    let on_nodes = |number: usize, settings: &mut SessionSettings| {
        settings.network.node_id = format!("node-{}", number % 2);
        settings.order = Order::Dealt;
    };
    let seen = together(4, on_nodes, |number, mut session| {
        let first = session.next_world(LIMIT).unwrap();
        let hosts: Vec<&str> = first.members.iter().map(|member| member.host.as_str()).collect();
        assert!(hosts[0] == hosts[1] && hosts[2] == hosts[3] && hosts[0] != hosts[3], "{hosts:?}");
        assert_eq!(hosts[first.rank], format!("node-{}", number % 2));
        assert_eq!(first.transport.name(), "shared memory and TCP");
        let (epoch, mut transport) = (first.epoch, first.transport);
        if number != 0 {
            // Nobody sends: the one that leaves is missed, or what it leads to.
            let peer = (first.rank + 1) % 4;
            let awaited = Interest { lane: Lane::lowest(peer), direction: Direction::Receive };
            while transport.wait(&[awaited], LIMIT).is_ok()
                && transport.try_receive(awaited.lane, &mut |_, len| len).is_ok()
            {}
        }
        drop(transport);
        let second = session.next_world(LIMIT).unwrap();
        assert!(second.epoch > epoch);
        exchange(second.transport);
        second.epoch
    });
    assert!(seen.iter().all(|epoch| *epoch == seen[0]), "{seen:?}");
}

/// Every rank says a word to every other.
fn exchange(mut transport: Box<dyn Transport>) {
    let own = transport.rank();
    let peers = (0..transport.world_size()).filter(|peer| *peer != own);
    for peer in peers.clone() {
        send_all(&mut *transport, peer, &pattern(own, peer, 100)).unwrap();
    }
    for peer in peers {
        assert_eq!(receive(&mut *transport, peer, 100).unwrap(), pattern(peer, own, 100));
    }
}

#[test]
fn members_on_other_terms_form_no_world() {
    let change =
        |number: usize, settings: &mut SessionSettings| settings.fingerprint = format!("like {number}");
    let worlds: Vec<Result<Epoch>> =
        two(change, |_, mut session| session.next_world(LIMIT).map(|world| world.epoch));
    for error in worlds.into_iter().map(|world| world.unwrap_err()) {
        assert!(*error.kind() == Kind::Invalid && error.to_string().contains("like 1"), "{error}");
    }
}

#[test]
fn who_waits_in_vain_may_wait_again() {
    beside_a_coordinator(|coordinator| {
        let mut first = Session::join(settings(coordinator, 0)).unwrap();
        let error = first.next_world(Duration::from_millis(1)).err().unwrap();
        assert!(*error.kind() == Kind::Unavailable && error.to_string().contains("group g"), "{error}");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let mut second = Session::join(settings(coordinator, 1)).unwrap();
                second.next_world(LIMIT).unwrap().rank
            });
            assert_eq!(first.next_world(LIMIT).unwrap().rank, 0);
            assert_eq!(second.join().unwrap(), 1);
        });
    });
}

#[test]
fn another_life_of_a_name_fences_the_one_before() {
    beside_a_coordinator(|coordinator| {
        let alone = || SessionSettings { size: GroupSettings::fixed(1), ..settings(coordinator, 0) };
        let mut first = Session::join(alone()).unwrap();
        let before = first.next_world(LIMIT).unwrap().epoch;
        let mut second = Session::join(alone()).unwrap();
        assert!(second.next_world(LIMIT).unwrap().epoch > before);
        for _ in 0..2 {
            assert_eq!(*first.next_world(LIMIT).err().unwrap().kind(), Kind::Fenced);
        }
        assert!(first.may_act().is_none() && first.is_outdated(before));
    });
}

#[test]
fn who_waits_as_long_as_can_be_gets_its_world() {
    let ranks = two(|_, _| {}, |_, mut session| session.next_world(Duration::MAX).unwrap().rank);
    assert_eq!(ranks, [0, 1]);
}
