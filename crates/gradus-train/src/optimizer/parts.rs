//! What an optimizer updates at once, and where its moments lie.

use super::Piece;
use crate::settings::OptimizerKind;
use gradus_error::{Error, Result};
use gradus_memory::{Layout, Span, Tensor};

/// What is updated at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub(super) piece: Piece,
    pub(super) work: Work,
    pub(super) moment1: Span,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Neighbouring tensors that share their decay, by AdamW; and where their second moments lie.
    Elements { decay: bool, moment2: Span },
    /// A matrix of so many rows, by Muon.
    Matrix { rows: usize },
}

impl Part {
    /// Where its second moments lie, if it has any.
    pub(super) fn moment2(&self) -> Option<Span> {
        match self.work {
            Work::Elements { moment2, .. } => Some(moment2),
            Work::Matrix { .. } => None,
        }
    }
}

/// What an optimizer of this kind updates at once in pieces of a layout, moments not yet placed.
///
/// # Errors
/// `Internal` for pieces that are out of order or cut a matrix.
pub(super) fn of_pieces(layout: &Layout, pieces: &[Piece], kind: OptimizerKind) -> Result<Vec<Part>> {
    check_order(layout, pieces)?;
    let whole = of_layout(layout, kind);
    let mut parts = Vec::new();
    for piece in pieces {
        for (span, work) in &whole {
            let inside = span.common(&piece.span);
            if inside.is_empty() {
                continue;
            }
            if matches!(work, Work::Matrix { .. }) && inside != *span {
                return Err(Error::internal(format!("{:?} cuts the matrix at {span:?}", piece.span)));
            }
            parts.push(Part { piece: piece.part(inside), work: *work, moment1: Span::default() });
        }
    }
    Ok(parts)
}

fn check_order(layout: &Layout, pieces: &[Piece]) -> Result<()> {
    let sized = |Piece { span, weights, gradients, .. }: &Piece| {
        weights.span.len == weights.format.places(span.len) && gradients.len == span.len
    };
    let ordered = pieces.windows(2).all(|pair| pair[0].span.end() <= pair[1].span.start);
    let inside = pieces.last().is_none_or(|last| last.span.end() <= layout.len());
    if ordered && inside && pieces.iter().all(sized) {
        return Ok(());
    }
    Err(Error::internal(format!("{pieces:?} are no pieces of a layout of {} elements", layout.len())))
}

/// What is updated at once where a piece is the whole layout.
fn of_layout(layout: &Layout, kind: OptimizerKind) -> Vec<(Span, Work)> {
    let mut parts: Vec<(Span, Work)> = Vec::new();
    for tensor in layout.tensors() {
        if kind == OptimizerKind::Muon && !tensor.matrices.is_empty() {
            parts.extend(tensor.each_matrix().map(|(span, rows)| (span, Work::Matrix { rows })));
        } else {
            append(&mut parts, tensor);
        }
    }
    parts
}

/// Appends a tensor, to the one before if they share their decay; the gaps between tensors hold zeros and stay zero.
fn append(parts: &mut Vec<(Span, Work)>, tensor: &Tensor) {
    match parts.last_mut() {
        Some((span, Work::Elements { decay, .. })) if *decay == tensor.decay => {
            span.len = tensor.span().end() - span.start;
        }
        _ => parts.push((tensor.span(), Work::Elements { decay: tensor.decay, moment2: Span::default() })),
    }
}

/// How far second moments lie from those before: as far as tensors do, so that AdamW alone takes as much as the layout.
fn second_stride(part: &Part) -> usize {
    part.moment2().map_or(0, |_| part.piece.span.len.next_multiple_of(Layout::ALIGNMENT))
}

/// Elements of all first moments.
pub(super) fn first_moments(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.span.len.next_multiple_of(Layout::ALIGNMENT)).sum()
}

/// Elements of all second moments.
pub(super) fn second_moments(parts: &[Part]) -> usize {
    parts.iter().map(second_stride).sum()
}

/// Gives every part its moments: the first ones as its piece has its elements, piece after piece; the second ones one after
/// another.
pub(super) fn place(parts: &mut [Part], pieces: &[Piece], moment1: Span, moment2: Span) {
    let (mut first, mut second) = (0, 0);
    let mut parts = parts.iter_mut().peekable();
    for piece in pieces {
        while let Some(part) = parts.next_if(|part| part.piece.span.end() <= piece.span.end()) {
            let (stride, len) = (second_stride(part), part.piece.span.len);
            part.moment1 = moment1.part(first + part.piece.span.start - piece.span.start, len);
            if let Work::Elements { moment2: place, .. } = &mut part.work {
                *place = moment2.part(second, len);
            }
            second += stride;
        }
        first += piece.span.len.next_multiple_of(Layout::ALIGNMENT);
    }
}
