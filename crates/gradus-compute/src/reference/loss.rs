//! The loss and the optimizer.

use crate::device::{AdamW, CrossEntropy, IGNORED};
use crate::loss::CrossEntropyPart;

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

/// The largest of each row's logits here.
pub(super) fn part_maxima(shape: CrossEntropyPart, logits: &[f32]) -> Vec<f32> {
    shape.check();
    let largest = |(row, target): (usize, &u32)| match *target {
        IGNORED => 0.0,
        _ => {
            let real = &logits[row * shape.width..][..shape.tokens];
            real.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        }
    };
    shape.targets.iter().enumerate().map(largest).collect()
}

/// Sums of exponentials, then targets' logits; logits become the exponentials.
pub(super) fn part_sums(shape: CrossEntropyPart, logits: &mut [f32], maxima: &[f32]) -> Vec<f32> {
    let rows = shape.targets.len();
    let mut sums = vec![0.0; 2 * rows];
    for (row, target) in shape.targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
        let real = &mut logits[row * shape.width..][..shape.tokens];
        sums[rows + row] = shape.column(*target).map_or(0.0, |column| real[column]);
        let exponentials = real.iter().map(|x| (f64::from(*x) - f64::from(maxima[row])).exp());
        let exponentials: Vec<f64> = exponentials.collect();
        sums[row] = exponentials.iter().sum::<f64>() as f32;
        real.iter_mut().zip(exponentials).for_each(|(x, exponential)| *x = exponential as f32);
    }
    sums
}

/// Exponentials become the gradient.
pub(super) fn part_gradient(shape: CrossEntropyPart, logits: &mut [f32], sums: &[f32]) {
    for (row, target) in shape.targets.iter().enumerate() {
        let (real, padding) = logits[row * shape.width..][..shape.width].split_at_mut(shape.tokens);
        padding.fill(0.0);
        if *target == IGNORED {
            real.fill(0.0);
            continue;
        }
        real.iter_mut().for_each(|x| *x = (f64::from(*x) / f64::from(sums[row])) as f32);
        if let Some(column) = shape.column(*target) {
            real[column] -= 1.0;
        }
    }
}

/// The rows' losses.
pub(super) fn part_losses(shape: CrossEntropyPart, maxima: &[f32], sums: &[f32]) -> Vec<f32> {
    let (totals, right) = sums.split_at(shape.targets.len());
    let loss = |(row, target): (usize, &u32)| match *target {
        IGNORED => 0.0,
        _ => (f64::from(maxima[row]) + f64::from(totals[row]).ln() - f64::from(right[row])) as f32,
    };
    shape.targets.iter().enumerate().map(loss).collect()
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
