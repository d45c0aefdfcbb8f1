//! Which optimizer, and what Muon adds to its settings.

use serde::{Deserialize, Serialize};

/// How gradients become updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Every parameter by its own two moments (Loshchilov and Hutter 2019).
    #[default]
    AdamW,
    /// Matrices of blocks' linear layers by orthogonal updates (Jordan et al. 2024), all else by AdamW.
    Muon,
}

/// By what the learning rate is multiplied for a matrix: the root mean square of an orthogonal matrix depends on its
/// shape. Names and factors are those of `torch.optim.Muon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Adjustment {
    /// `sqrt(max(1, rows / columns))`, as Jordan et al. have it.
    Original,
    /// `0.2 sqrt(max(rows, columns))`: updates of the size that AdamW's usually have, so that both go by one learning
    /// rate and one weight decay (Liu et al. 2025, section 2.2).
    #[default]
    MatchRmsAdamw,
}

impl Adjustment {
    /// The factor for a matrix `[rows, columns]`, that is, `[outputs, inputs]`.
    pub fn factor(self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        match self {
            Self::Original => (rows / columns).max(1.0).sqrt(),
            Self::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
        }
    }
}

/// What counts with [`OptimizerKind::Muon`] only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonSettings {
    /// Decay of the one moment that matrices have.
    pub momentum: f32,
    /// Whether the update looks ahead by one more decay.
    pub nesterov: bool,
    /// Steps of Newton and Schulz's iteration.
    pub iterations: usize,
    /// `original` or `match_rms_adamw`.
    pub adjustment: Adjustment,
}

impl Default for MuonSettings {
    fn default() -> Self {
        Self { momentum: 0.95, nesterov: true, iterations: 5, adjustment: Adjustment::default() }
    }
}

impl MuonSettings {
    /// Key, whether its rule holds, and the rule.
    pub(super) fn rules(&self) -> [(&'static str, bool, &'static str); 2] {
        [
            ("muon.momentum", (0.0..1.0).contains(&self.momentum), "from 0 up to, not including, 1"),
            ("muon.iterations", (1..100).contains(&self.iterations), "from 1 to 99"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_torchs() {
        let found = [(4, 1), (1, 4), (9, 9)].map(|(rows, columns)| {
            [Adjustment::Original, Adjustment::MatchRmsAdamw].map(|by| by.factor(rows, columns))
        });
        assert_eq!(found, [[2.0, 0.4], [1.0, 0.4], [1.0, 0.2 * 3.0]]);
    }
}
