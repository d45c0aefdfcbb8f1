//! Large models on many ranks: what `docs/plan-train.md` shows.

use super::*;

fn best(work: &Work, world_size: usize) -> (String, u64, StepTime) {
    let parallel =
        ParallelSettings { gradients: crate::settings::GradientFormat::Bf16, ..ParallelSettings::default() };
    let machine = h100();
    let space = Search {
        work,
        parallel: &parallel,
        world_size,
        machine: &machine,
        memory: 80_000_000_000,
        prepared: &prepared_in_pairs,
        most: 1,
    };
    let found = search(&space);
    let Choice { split, memory, step } = &found[0];
    let ParallelSettings { zero, schedule, .. } = &split.parallel;
    (format!("{:?}, zero {zero}, {}", split.mesh, schedule.name()), *memory, *step)
}

#[test]
fn zeros_arithmetic_is_that_of_its_paper() {
    // Rajbhandari et al. 2020, section 3.1: 16 bytes per parameter, of which what is sharded is divided by the ranks.
    let work = Work { ..llama([32, 4096, 32, 32, 11_008], 64) };
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
fn large_models_are_planned_in_no_time() {
    let seven = |batch| llama([32, 4096, 32, 32, 11_008], batch);
    let mut seventy = llama([80, 8192, 64, 8, 28_672], 2048);
    seventy.train.recompute = true;
    for (work, world_size, parameters, mfu) in
        [(seven(1024), 64, 6.74e9, 0.45), (seven(1024), 1024, 6.74e9, 0.4), (seventy, 1024, 68.98e9, 0.3)]
    {
        assert!((work.model.parameter_count() as f64 / parameters - 1.0).abs() < 1e-3);
        let (split, memory, step) = best(&work, world_size);
        assert!(memory <= 80_000_000_000 && memory > 10_000_000_000, "{split}: {memory}");
        assert!(step.mfu > mfu && step.mfu <= 0.5 + 1e-9, "{split}: {step:?}");
    }
}
