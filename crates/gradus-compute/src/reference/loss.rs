//! The loss and the optimizer.

use crate::device::{AdamW, CrossEntropy, IGNORED};

/// Losses of the rows; `logits` become the gradient of their sum.
pub(super) fn cross_entropy(shape: CrossEntropy, logits: &mut [f32]) -> Vec<f32> {
    let rows = logits.chunks_exact_mut(shape.width).zip(shape.targets);
    rows.map(|(row, target)| {
        let (real, padding) = row.split_at_mut(shape.vocabulary);
        padding.fill(0.0);
        if *target == IGNORED {
            real.fill(0.0);
            return 0.0;
        }
        row_loss(real, *target as usize)
    })
    .collect()
}

fn row_loss(logits: &mut [f32], target: usize) -> f32 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - highest).exp()).sum();
    let loss = highest + sum.ln() - f64::from(logits[target]);
    for x in logits.iter_mut() {
        *x = ((f64::from(*x) - highest).exp() / sum) as f32;
    }
    logits[target] -= 1.0;
    loss as f32
}

/// One parameter's update.
pub(super) fn adamw(update: AdamW, parameter: &mut f32, gradient: f32, moment1: &mut f32, moment2: &mut f32) {
    let gradient = gradient * update.gradient_scale;
    let exponent = update.update as i32;
    let correction1 = 1.0 - f64::from(update.beta1).powi(exponent);
    let correction2 = 1.0 - f64::from(update.beta2).powi(exponent);
    *parameter *= 1.0 - update.learning_rate * update.weight_decay;
    *moment1 = update.beta1 * *moment1 + (1.0 - update.beta1) * gradient;
    *moment2 = update.beta2 * *moment2 + (1.0 - update.beta2) * gradient * gradient;
    let denominator = f64::from(*moment2).sqrt() / correction2.sqrt() + f64::from(update.epsilon);
    let step = f64::from(update.learning_rate) / correction1;
    *parameter -= (step * f64::from(*moment1) / denominator) as f32;
}
