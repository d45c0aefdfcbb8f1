//! What of the settings, possible each for itself, is impossible together.

use crate::mesh::Mesh;
use crate::settings::{GradientFormat, OptimizerKind, OptimizerSettings, ParallelSettings};
use gradus_compute::Format;
use gradus_error::{Error, Result};
use gradus_model::ModelConfig;

/// Whether model, optimizer and mesh go together.
///
/// # Errors
/// `Invalid`, naming the keys and what would do.
pub(crate) fn check(
    config: &ModelConfig,
    mesh: &Mesh,
    optimizer: &OptimizerSettings,
    parallel: &ParallelSettings,
) -> Result<()> {
    mesh.check_optimizer(optimizer)?;
    if optimizer.masters == Format::Bf16 {
        check_pairs(config, mesh, "optimizer.masters \"bf16\"")?;
    }
    let is_cut_by_matrices = mesh.fsdp > 1 && optimizer.kind == OptimizerKind::Muon;
    if parallel.gradients == GradientFormat::Bf16 && is_cut_by_matrices {
        check_pairs(
            config,
            mesh,
            "parallel.gradients \"bf16\" with shards of whole matrices (optimizer.kind \"muon\")",
        )?;
    }
    Ok(())
}

/// Whether every matrix of a rank begins with an even element, as what is kept in bf16 has to: two lie in one place.
fn check_pairs(config: &ModelConfig, mesh: &Mesh, what: &str) -> Result<()> {
    let widths = [
        ("model.width", config.width),
        ("model.heads x model.head_size", config.query_width() / mesh.tp),
        ("model.feed_forward", config.feed_forward / mesh.tp),
    ];
    let Some((key, _)) = widths.into_iter().find(|(_, width)| !width.is_multiple_of(2)) else {
        return Ok(());
    };
    let of_each = if mesh.tp > 1 { " on each rank of parallel.tp" } else { "" };
    Err(Error::invalid(format!(
        "{key} is odd{of_each}, and {what} needs matrices of even width: give an even one, or \"f32\""
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use gradus_model::PRESETS;

    fn muon() -> OptimizerSettings {
        OptimizerSettings { kind: OptimizerKind::Muon, ..Default::default() }
    }

    #[track_caller]
    fn assert_invalid(result: Result<()>, keys: [&str; 2]) {
        let error = result.unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(keys.iter().all(|key| text.contains(key)), "{text}");
    }

    #[test]
    fn cut_matrices_are_updated_in_f32_only() {
        let of =
            |optimizer: OptimizerSettings, tp| Mesh { pp: 1, dp: 1, fsdp: 2, tp }.check_optimizer(&optimizer);
        let halves = |optimizer| OptimizerSettings { masters: Format::Bf16, ..optimizer };
        of(muon(), 2).unwrap();
        of(halves(muon()), 1).unwrap();
        of(halves(OptimizerSettings::default()), 2).unwrap();
        assert_invalid(of(halves(muon()), 2), ["optimizer.masters", "parallel.tp"]);
    }

    #[test]
    fn what_lies_in_pairs_has_even_widths() {
        let (_, preset) = &PRESETS[0];
        let odd = ModelConfig { feed_forward: 49, ..preset.clone() };
        let mesh = Mesh { pp: 1, dp: 1, fsdp: 2, tp: 1 };
        let halves = ParallelSettings { gradients: GradientFormat::Bf16, ..Default::default() };
        check(preset, &mesh, &muon(), &halves).unwrap();
        check(&odd, &mesh, &muon(), &ParallelSettings::default()).unwrap();
        check(&odd, &mesh, &OptimizerSettings::default(), &halves).unwrap();
        assert_invalid(check(&odd, &mesh, &muon(), &halves), ["model.feed_forward", "parallel.gradients"]);
        let masters = OptimizerSettings { masters: Format::Bf16, ..Default::default() };
        let plain = ParallelSettings::default();
        check(preset, &mesh, &masters, &plain).unwrap();
        assert_invalid(check(&odd, &mesh, &masters, &plain), ["model.feed_forward", "optimizer.masters"]);
    }
}
