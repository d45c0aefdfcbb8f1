//! What goes wrong, and that everybody is told.

use crate::world::{ALL, BOTH, Way, run};
use gradus_collective::{Collective, Communicator, Reduction, bf16, f16};
use gradus_error::{Error, Kind};
use gradus_fabric::{NetworkSettings, TransportKind, connect};
use gradus_memory::RawRange;
use std::time::Duration;

fn fail_everywhere(world_size: usize, body: impl Fn(&mut Communicator) -> Error + Sync) -> Vec<Error> {
    let settings = NetworkSettings::default();
    let errors = ALL.into_iter().flat_map(|kind| {
        run(world_size, kind, &settings, |mut communicator| {
            let error = body(&mut communicator);
            let after = communicator.barrier().unwrap_err();
            assert_eq!(after.kind(), error.kind(), "{after}");
            assert_eq!(communicator.progress().unwrap_err().kind(), error.kind());
            error
        })
    });
    errors.collect()
}

#[test]
fn other_lengths_are_an_error_on_all_sides() {
    for world_size in 2..=4 {
        for [short, long] in [[0, 5], [4, 5], [10, 100_000], [500_000, 500_001]] {
            let errors = fail_everywhere(world_size, |communicator| {
                let len = if communicator.rank() == 1 { short } else { long };
                let first = communicator.all_reduce(&mut vec![1.0f32; len]);
                // Ranks far from the odd one may be done before anybody notices.
                first.and_then(|()| communicator.barrier()).and_then(|()| communicator.barrier()).unwrap_err()
            });
            assert!(errors.iter().all(|error| *error.kind() == Kind::Invalid), "{errors:?}");
            let named = |part: String| errors.iter().all(|error| error.to_string().contains(&part));
            assert!(named(format!("of {short} f32")) && named(format!("of {long} f32")), "{errors:?}");
        }
    }
}

#[test]
fn other_operations_are_an_error_on_all_sides() {
    let errors = fail_everywhere(2, |communicator| match communicator.rank() {
        0 => communicator.all_reduce(&mut [1.0f32; 100]).unwrap_err(),
        _ => communicator.barrier().unwrap_err(),
    });
    for error in errors {
        let text = error.to_string();
        assert_eq!(*error.kind(), Kind::Invalid);
        assert!(
            text.contains("barrier number 0") && text.contains("all-reduce number 0 of 100 f32"),
            "{text}"
        );
        assert!(text.contains("rank 0") && text.contains("rank 1"), "{text}");
    }
}

/// What two ranks say differently, by rank, and a word of each that both must hear.
type Disagreement = (&'static str, fn(&mut Communicator) -> Result<(), Error>, [&'static str; 2]);

/// Whether this is the odd one out.
fn odd(communicator: &Communicator) -> bool {
    communicator.rank() == 1
}

fn pick<T>(communicator: &Communicator, odd_one: T, others: T) -> T {
    if odd(communicator) { odd_one } else { others }
}

const DISAGREEMENTS: [Disagreement; 8] = [
    (
        "operation",
        |c| {
            let what = pick(c, Collective::all_gather(), Collective::reduce_scatter(Reduction::Sum));
            c.run_in_place(&what, &mut [0f32; 8])
        },
        ["all-gather number 0", "reduce-scatter number 0"],
    ),
    (
        "reduction",
        |c| {
            let reduction = pick(c, Reduction::Min, Reduction::Max);
            c.run_in_place(&Collective::all_reduce(reduction), &mut [0f32; 8])
        },
        ["(min)", "(max)"],
    ),
    (
        "element",
        |c| match odd(c) {
            true => c.all_reduce(&mut [0i32; 8]),
            false => c.all_reduce(&mut [0f32; 8]),
        },
        ["of 8 i32", "of 8 f32"],
    ),
    (
        "element of the same width as two",
        |c| match odd(c) {
            true => c.all_reduce(&mut [f16::ZERO; 8]),
            false => c.all_reduce(&mut [bf16::ZERO; 8]),
        },
        ["of 8 f16", "of 8 bf16"],
    ),
    (
        "length",
        |c| {
            let len = pick(c, 8, 16);
            c.run_in_place(&Collective::all_gather(), &mut vec![0f32; len])
        },
        ["of 8 f32", "of 16 f32"],
    ),
    (
        "counts",
        |c| {
            let counts = pick(c, vec![3, 5], vec![5, 3]);
            c.run_in_place(&Collective::all_gather().with_counts(counts), &mut [0f32; 8])
        },
        ["with unequal counts", "number 0"],
    ),
    (
        "counts of an exchange",
        |c| {
            let what = match odd(c) {
                true => Collective::all_to_all_counts(vec![2, 0], vec![4, 0]),
                false => Collective::all_to_all_counts(vec![0, 3], vec![0, 2]),
            };
            c.run(&what, &vec![0f32; pick(c, 2, 3)], &mut vec![0f32; pick(c, 4, 2)])
        },
        ["of 12 bytes", "of 16 bytes"],
    ),
    (
        "order of groups",
        |c| {
            let mut groups = [c.group(&[0, 1])?, c.group(&[1, 0])?];
            if odd(c) {
                groups.reverse();
            }
            groups.iter_mut().try_for_each(|group| group.barrier())
        },
        ["barrier number 0 in group", "while rank"],
    ),
];

#[test]
fn whatever_ranks_disagree_on_is_named_on_both_sides() {
    for (what, act, words) in DISAGREEMENTS {
        let errors = fail_everywhere(2, |communicator| {
            let first = act(communicator);
            first.and_then(|()| communicator.barrier()).and_then(|()| communicator.barrier()).unwrap_err()
        });
        for error in errors {
            assert_eq!(*error.kind(), Kind::Invalid, "{what}: {error}");
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{what}: {text}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_before_it_starts() {
    run(2, TransportKind::Tcp, &NetworkSettings::default(), |mut communicator| {
        let c = &mut communicator;
        let refused = [
            c.run_in_place(&Collective::all_reduce(Reduction::Mean), &mut [1i32]),
            c.run_in_place(&Collective::all_gather(), &mut [0f32; 3]),
            c.run(&Collective::all_gather(), &[0f32; 3], &mut [0f32; 5]),
            c.run(&Collective::reduce_scatter(Reduction::Sum), &[0f32; 5], &mut [0f32; 2]),
            c.run(&Collective::all_reduce(Reduction::Sum), &[0f32; 5], &mut [0f32; 4]),
            c.run(&Collective::all_to_all(), &[0f32; 4], &mut [0f32; 6]),
            c.run_in_place(&Collective::all_gather().with_counts(vec![1]), &mut [0f32; 1]),
            c.run_in_place(&Collective::all_gather().with_counts(vec![usize::MAX, 2]), &mut [0f32; 1]),
            c.run_in_place(&Collective::all_reduce(Reduction::Sum).with_counts(vec![1, 1]), &mut [0f32; 2]),
            c.run_in_place(&Collective::all_to_all_counts(vec![1, 2], vec![2, 1]), &mut [0f32; 3]),
            c.run_in_place(&Collective::gather(2), &mut [0f32; 2]),
            c.send(2, &[1u8]),
            c.send(c.rank(), &[1u8]),
            c.group(&[0, 0]).map(drop),
            c.mesh(&[("dp", 3)]).map(drop),
        ];
        for (index, refused) in refused.into_iter().enumerate() {
            assert_eq!(*refused.unwrap_err().kind(), Kind::Invalid, "{index}");
        }
        communicator.barrier().unwrap();
    });
}

#[test]
fn a_cancelled_collective_ends_everywhere_with_a_word() {
    for world_size in [2, 4] {
        // Where messages take their time, the word of who gives up may overtake what it has sent before: the others' barrier.
        for way in [BOTH[0].into(), BOTH[1].into(), Way::Nodes] {
            let errors = run(world_size, way, &NetworkSettings::default(), |mut communicator| {
                let together = communicator.barrier();
                if communicator.rank() != 0 {
                    return together.and_then(|()| communicator.all_reduce(&mut [0f32; 100])).unwrap_err();
                }
                together.unwrap();
                communicator.cancel("the user said so");
                communicator.barrier().unwrap_err()
            });
            for error in errors {
                assert_eq!(*error.kind(), Kind::Closed, "{error}");
                assert!(error.to_string().contains("rank 0 has cancelled"), "{error}");
            }
        }
    }
}

#[test]
fn two_roots_are_an_error_at_the_next_collective_at_the_latest() {
    let errors = fail_everywhere(2, |communicator| {
        let root = communicator.rank();
        let first = communicator.broadcast(root, &mut [0u8; 10]);
        first.and_then(|()| communicator.barrier()).and_then(|()| communicator.barrier()).unwrap_err()
    });
    assert!(errors.iter().all(|error| *error.kind() == Kind::Invalid), "{errors:?}");
}

#[test]
fn a_rank_that_leaves_is_lost_to_those_who_need_it() {
    for kind in ALL {
        let errors = run(3, kind, &NetworkSettings::default(), |mut communicator| {
            communicator.barrier().unwrap();
            (communicator.rank() != 2).then(|| communicator.all_reduce(&mut [0.0f32; 100]).unwrap_err())
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(*error.kind(), Kind::PeerLost { rank: 2 }, "{error}");
        }
    }
}

#[test]
fn a_rank_that_panics_tells_the_others() {
    for kind in ALL {
        let errors = run(2, kind, &NetworkSettings::default(), |mut communicator| {
            if communicator.rank() == 1 {
                let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                    communicator.barrier().unwrap();
                    panic!("on purpose");
                }));
                assert!(panicked.is_err());
                return None;
            }
            communicator.barrier().unwrap();
            Some(communicator.barrier().unwrap_err())
        });
        assert_eq!(*errors[0].as_ref().unwrap().kind(), Kind::Internal);
    }
}

#[test]
fn a_rank_that_lives_but_takes_no_part_is_named() {
    for kind in BOTH {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let launch = |rank: usize| {
            let port = listener.local_addr().unwrap().port();
            let mut launch = gradus_fabric::Launch::local(rank, 2, port);
            launch.rendezvous_fd = (rank == 0).then(|| std::os::fd::AsRawFd::as_raw_fd(&listener));
            launch
        };
        let idle = |rank| connect(&launch(rank), kind, &NetworkSettings::default(), "").unwrap();
        std::thread::scope(|scope| {
            let peer = scope.spawn(|| idle(1));
            let mut communicator = Communicator::new(idle(0), Duration::from_millis(50));
            let peer = peer.join().unwrap();
            let error = communicator.barrier().unwrap_err();
            assert_eq!(*error.kind(), Kind::Unavailable);
            assert!(error.to_string().contains("waits for rank 1"), "{error}");
            drop(peer);
        });
    }
}

#[test]
fn memory_is_free_once_a_communicator_is_gone() {
    for kind in BOTH {
        let both_have_started = std::sync::Barrier::new(2);
        run(2, kind, &NetworkSettings::default(), |mut communicator| {
            let mut data = vec![1.0f32; 3_000_000];
            // SAFETY: the communicator is dropped before the data are touched.
            let handle = unsafe { communicator.start_all_reduce(RawRange::of(&mut data)) }.unwrap();
            assert!(!communicator.is_done(&handle));
            both_have_started.wait();
            drop(communicator);
            data.fill(2.0);
            assert!(data.iter().all(|x| *x == 2.0));
        });
    }
}

#[test]
fn a_root_outside_the_world_is_refused_without_harm() {
    let error = Communicator::alone().broadcast::<u8>(1, &mut []).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    run(2, TransportKind::Tcp, &NetworkSettings::default(), |mut communicator| {
        assert_eq!(*communicator.broadcast(2, &mut [1u8]).unwrap_err().kind(), Kind::Invalid);
        communicator.barrier().unwrap();
    });
}
