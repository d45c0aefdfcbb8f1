use super::*;
use gradus_collective::run_as_threads;
use gradus_error::Kind;
use gradus_model::PRESETS;
use std::collections::BTreeSet;
use std::time::Duration;

/// All meshes of so many ranks.
fn meshes(world_size: usize) -> impl Iterator<Item = Mesh> {
    let divisors = |number: usize| (1..=number).filter(move |divisor| number.is_multiple_of(*divisor));
    divisors(world_size).flat_map(move |pp| {
        divisors(world_size / pp).flat_map(move |dp| {
            let left = world_size / pp / dp;
            divisors(left).map(move |fsdp| Mesh { pp, dp, fsdp, tp: left / fsdp })
        })
    })
}

fn settings([pp, dp, fsdp, tp]: [usize; 4]) -> ParallelSettings {
    ParallelSettings { dp, fsdp, pp, tp, ..ParallelSettings::default() }
}

fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn every_rank_has_a_place_and_every_place_a_rank() {
    for mesh in (1..=64).flat_map(meshes) {
        let places: BTreeSet<[usize; 4]> = (0..mesh.world_size())
            .map(|rank| {
                let place = mesh.coordinates(rank);
                assert_eq!(mesh.rank_at(place), rank, "{mesh:?}");
                assert!(place.to_array().iter().zip(mesh.sizes()).all(|(place, size)| *place < size));
                place.to_array()
            })
            .collect();
        assert_eq!(places.len(), mesh.world_size(), "{mesh:?}");
        let settings = settings(mesh.sizes());
        assert_eq!(Mesh::from_settings(&settings, mesh.world_size()).unwrap(), mesh);
        let open = ParallelSettings { dp: 0, ..settings };
        assert_eq!(Mesh::from_settings(&open, mesh.world_size()).unwrap(), mesh);
    }
}

#[test]
fn the_innermost_axis_counts_first() {
    let mesh = Mesh { pp: 2, dp: 3, fsdp: 4, tp: 5 };
    assert_eq!(mesh.coordinates(1), Coordinates { pp: 0, dp: 0, fsdp: 0, tp: 1 });
    assert_eq!(mesh.coordinates(5), Coordinates { pp: 0, dp: 0, fsdp: 1, tp: 0 });
    assert_eq!(mesh.coordinates(20), Coordinates { pp: 0, dp: 1, fsdp: 0, tp: 0 });
    assert_eq!(mesh.coordinates(60), Coordinates { pp: 1, dp: 0, fsdp: 0, tp: 0 });
    assert_eq!((mesh.data_ranks(), mesh.data_rank(26), mesh.data_rank(86)), (12, 5, 5));
}

#[test]
fn groups_are_those_that_differ_along_their_axes_only() {
    let groups: [&[Axis]; 6] = [
        &[Axis::Pp],
        &[Axis::Dp],
        &[Axis::Fsdp],
        &[Axis::Tp],
        &[Axis::Dp, Axis::Fsdp],
        &[Axis::Pp, Axis::Tp],
    ];
    for mesh in [8, 12, 24].into_iter().flat_map(meshes) {
        for axes in groups {
            for rank in 0..mesh.world_size() {
                let group = mesh.ranks_along(rank, axes);
                let size: usize = axes.iter().map(|axis| mesh.sizes()[*axis as usize]).product();
                assert!(group.len() == size && group.contains(&rank) && group.is_sorted());
                // Each of its ranks says the same of it, so that groups part the world.
                assert!(group.iter().all(|other| mesh.ranks_along(*other, axes) == group));
            }
        }
        for rank in 0..mesh.world_size() {
            let data = mesh.ranks_along(rank, &[Axis::Dp, Axis::Fsdp]);
            assert!(data.iter().map(|other| mesh.data_rank(*other)).eq(0..mesh.data_ranks()));
            let model = mesh.ranks_along(rank, &[Axis::Pp, Axis::Tp]);
            assert!(model.iter().all(|other| mesh.data_rank(*other) == mesh.data_rank(rank)));
        }
    }
}

#[test]
fn impossible_meshes_are_told_with_what_would_do() {
    let of = |sizes, world_size| Mesh::from_settings(&settings(sizes), world_size);
    refused(
        of([2, 0, 3, 1], 8),
        &[
            "parallel.pp 2 x parallel.fsdp 3 = 6 does not divide 8 ranks",
            "parallel.fsdp 2, or 6 or 12 ranks would do",
        ],
    );
    refused(
        of([2, 2, 1, 1], 8),
        &["= 4 is not the number of 8 ranks", "parallel.dp 4 (or 0", "parallel.pp 4", "4 ranks"],
    );
    refused(of([1, 3, 1, 1], 8), &["parallel.dp 3 is not the number of 8 ranks", "parallel.dp 8"]);
    refused(of([16, 0, 1, 1], 8), &["parallel.pp 16 does not divide 8 ranks", "parallel.pp 8", "16 ranks"]);
    refused(of([1, 1, 1, 1], 8), &["parallel.dp 1 is not the number of 8 ranks"]);
    refused(of([1, 0, 1, 1], 0), &["at least one rank"]);
    refused(of([1, 0, 0, 1], 8), &["parallel.fsdp is 0"]);
    refused(of([1 << 15, 1 << 15, 1 << 15, 1 << 15], 8), &["ranks"]);
}

#[test]
fn models_are_cut_where_they_can_be() {
    let model = |name: &str| PRESETS.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let mesh = |pp, tp| Mesh { pp, dp: 1, fsdp: 1, tp };
    let (gpt2, smollm2) = (model("gpt2"), model("smollm2-135m"));
    mesh(12, 4).check_model(&gpt2, 1).unwrap();
    mesh(4, 12).check_model(&gpt2, 3).unwrap();
    mesh(30, 3).check_model(&smollm2, 1).unwrap();
    refused(mesh(1, 2).check_model(&smollm2, 1), &["parallel.tp is 2", "model.heads 9", "1 or 3 ranks"]);
    refused(mesh(1, 9).check_model(&smollm2, 1), &["model.kv_heads 3", "1 or 3 ranks"]);
    refused(mesh(1, 8).check_model(&gpt2, 1), &["model.heads 12", "1, 2, 3, 4, 6 or 12 ranks"]);
    refused(
        mesh(13, 1).check_model(&gpt2, 1),
        &["= 13 stages, but model.layers is 12", "at most parallel.pp 12"],
    );
    refused(mesh(5, 1).check_model(&gpt2, 3), &["= 15 stages", "at most parallel.pp 4"]);
    refused(mesh(2, 1).check_model(&gpt2, 20), &["= 40 stages", "at most parallel.stages_per_rank 6"]);
    mesh(1, 4).check_microbatch(1, 4).unwrap();
    refused(mesh(1, 4).check_microbatch(1, 3), &["= 3 tokens", "at most parallel.tp 3"]);
    assert!(
        mesh(4, 1).warning(3).is_some() && mesh(4, 1).warning(4).is_none() && mesh(1, 1).warning(0).is_none()
    );
}

#[test]
fn communicators_join_the_ranks_of_their_axes() {
    for mesh in [Mesh { pp: 2, dp: 1, fsdp: 2, tp: 1 }, Mesh { pp: 1, dp: 2, fsdp: 1, tp: 2 }] {
        let sums = run_as_threads(mesh.world_size(), Duration::from_secs(60), |world| {
            let rank = world.rank();
            let mut ranks = MeshRanks::new(world, &mesh).unwrap();
            let MeshRanks { world, pp, dp, fsdp, tp, data, model } = &mut ranks;
            [world, pp, dp, fsdp, tp, data, model].map(|communicator| {
                let mut sum = [1i64 << rank];
                communicator.all_reduce(&mut sum).unwrap();
                sum[0]
            })
        });
        for (rank, found) in sums.unwrap().into_iter().enumerate() {
            let mask =
                |axes: &[Axis]| mesh.ranks_along(rank, axes).iter().map(|rank| 1i64 << rank).sum::<i64>();
            let all = [Axis::Pp, Axis::Dp, Axis::Fsdp, Axis::Tp];
            let [pp, dp, fsdp, tp] = all.map(|axis| mask(&[axis]));
            let expected =
                [mask(&all), pp, dp, fsdp, tp, mask(&[Axis::Dp, Axis::Fsdp]), mask(&[Axis::Pp, Axis::Tp])];
            assert_eq!(found, expected, "{mesh:?}, rank {rank}");
        }
    }
    let other = Mesh { pp: 2, dp: 1, fsdp: 1, tp: 1 };
    assert!(MeshRanks::new(Communicator::alone(), &other).is_err());
}
