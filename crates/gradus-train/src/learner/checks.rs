//! What of the settings, possible each for itself, is impossible together.

use crate::mesh::Mesh;
use crate::settings::{OptimizerKind, OptimizerSettings};
use gradus_error::{Error, Result};

/// Whether the optimizer can do with what a rank of the mesh has.
///
/// # Errors
/// `Invalid`, naming the keys and what would do.
pub(super) fn check(mesh: &Mesh, optimizer: &OptimizerSettings) -> Result<()> {
    if optimizer.kind == OptimizerKind::Muon && mesh.tp > 1 {
        return Err(Error::invalid(format!(
            "optimizer.kind is \"muon\" and parallel.tp {}: Muon makes the update of a whole matrix orthogonal, and of a \
             matrix that is cut a rank has a slice only: give optimizer.kind \"adamw\", or parallel.tp 1 with a larger \
             parallel.fsdp",
            mesh.tp
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn muon_needs_whole_matrices() {
        let of = |kind, tp| {
            let mesh = Mesh { pp: 1, dp: 1, fsdp: 2, tp };
            check(&mesh, &OptimizerSettings { kind, ..Default::default() })
        };
        of(OptimizerKind::Muon, 1).unwrap();
        of(OptimizerKind::AdamW, 2).unwrap();
        let error = of(OptimizerKind::Muon, 2).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(text.contains("optimizer.kind") && text.contains("parallel.tp"), "{text}");
    }
}
