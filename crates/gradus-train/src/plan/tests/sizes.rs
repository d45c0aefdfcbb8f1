//! Large models on many ranks: what `docs/plan-train.md` shows.

use super::*;

/// The best mesh of 80 GB each, from the outermost axis, with its degree of sharding; what it needs, and how long a step takes.
fn best(work: &Work, world_size: usize) -> ([usize; 5], u64, StepTime) {
    let gradients = GradientFormat::Bf16;
    let (parallel, machine) = (&ParallelSettings { gradients, ..ParallelSettings::default() }, &h100());
    let (memory, prepared) = (80_000_000_000, &prepared_in_pairs);
    let found = search(&Search { work, parallel, world_size, machine, memory, prepared, most: 1 });
    let Choice { split, memory, step } = &found[0];
    let ParallelSettings { pp, dp, fsdp, tp, zero, .. } = split.parallel;
    ([pp, dp, fsdp, tp, zero.into()], *memory, *step)
}

#[test]
fn zeros_arithmetic_is_that_of_its_paper() {
    // Rajbhandari et al. 2020, section 3.1: 16 bytes per parameter, of which what is sharded is divided by the ranks.
    let work = llama([32, 4096, 32, 32, 11_008], 64);
    let parameters = work.model.parameter_count() as f64;
    let per_parameter = |zero: u8, fsdp: usize| {
        let settings = parallel([1, 64 / fsdp, fsdp, 1], zero, Kind::default());
        let split = Split::new(&work, &settings, 64).unwrap();
        let memory = Sizes::new(&work, &prepared_in_pairs).holdings(&split)[0].memory;
        (memory.weights + memory.gradients + memory.moments) as f64 / parameters
    };
    for (zero, fsdp, expected) in
        [(3, 1, 16.0), (1, 64, 8.0 + 8.0 / 64.0), (2, 64, 4.0 + 12.0 / 64.0), (3, 64, 16.0 / 64.0)]
    {
        let found = per_parameter(zero, fsdp);
        assert!((found - expected).abs() < 1e-3 * expected, "zero {zero} of {fsdp}: {found}");
    }
}

#[test]
fn large_models_are_planned_as_the_page_shows() {
    let seven = llama([32, 4096, 32, 32, 11_008], 1024);
    let mut seventy = llama([80, 8192, 64, 8, 28_672], 2048);
    seventy.train.recompute = true;
    for (work, world_size, mesh, gigabytes, seconds) in [
        (&seven, 64, [1, 8, 8, 1, 3], 32.5, 5.68),
        (&seven, 1024, [1, 128, 8, 1, 3], 32.5, 0.355),
        (&seventy, 1024, [1, 32, 16, 2, 3], 70.0, 10.2),
    ] {
        let (found, memory, step) = best(work, world_size);
        let near = |found: f64, shown: f64| (found / shown - 1.0).abs() < 5e-3;
        assert_eq!(found, mesh, "{memory}, {step:?}");
        assert!(near(memory as f64 / 1e9, gigabytes) && near(step.total, seconds), "{memory}, {step:?}");
    }
}
