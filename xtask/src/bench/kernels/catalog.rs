//! Which operations a step of a model is made of: sizes, how often, and what bounds each.

use crate::bench::shape::{Shape, Sizes};
use serde_json::{Value, json};

/// What an operation cannot be faster than.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// The unit that multiplies: so many multiplications and additions.
    Products(f64),
    /// Memory or a cache: bytes that the operation reads and writes, and the plain stream that is likest to it.
    Stream(f64, &'static str),
}

/// An operation at its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// As the table calls it.
    pub name: String,
    /// How often a training step runs it; not whole where its last piece is smaller; 0 for what a step does in other
    /// pieces.
    pub calls: f64,
    /// How often in one of the peer\'s, which keeps for the backward pass what ours makes again.
    pub peer_calls: f64,
    /// What bounds it.
    pub bound: Bound,
    /// Bytes of all its tensors, in f32: those that it touches again when it runs again.
    pub touched: f64,
    /// As the workers take it.
    pub op: Value,
}

/// Bytes of an f32.
const F32: f64 = 4.0;

/// A linear layer: name, inputs, outputs, bias, whether it adds the residual stream.
type Layer = (&'static str, usize, usize, bool, bool);

/// Every operation of a step of `shape`; logits are made of `logits_rows` rows at once.
pub fn items(shape: Shape, logits_rows: usize) -> Vec<Item> {
    let (sizes, gpt) = (shape.sizes(), shape == Shape::Gpt);
    let mut items = Vec::new();
    for layer in layers(sizes, gpt) {
        items.extend(linear(layer, sizes.rows(), sizes.layers as f64));
    }
    let pieces = sizes.rows() as f64 / logits_rows as f64;
    items.extend(linear(("head", sizes.width, sizes.vocabulary, false, false), logits_rows, pieces));
    items.push(cross_entropy(sizes, logits_rows, pieces));
    items.push(head(sizes));
    items.extend(attention(sizes));
    if !gpt {
        items.push(rope(sizes));
    }
    items.extend(norms(sizes, gpt));
    items.extend(if gpt { gelu(sizes) } else { swiglu(sizes) });
    items.extend(tables(sizes, gpt));
    items.extend(parameters(shape.parameters()));
    items
}

fn layers(s: Sizes, gpt: bool) -> [Layer; 4] {
    let queries = s.heads * s.head_size;
    let up = if gpt { s.feed_forward } else { 2 * s.feed_forward };
    [
        ("qkv", s.width, queries + 2 * s.kv_heads * s.head_size, gpt, false),
        ("attention out", queries, s.width, gpt, true),
        (if gpt { "up" } else { "gate and up" }, s.width, up, gpt, false),
        ("down", s.feed_forward, s.width, gpt, true),
    ]
}

fn linear((name, inputs, outputs, bias, residual): Layer, rows: usize, calls: f64) -> [Item; 3] {
    let flops = Bound::Products(2.0 * rows as f64 * inputs as f64 * outputs as f64);
    let touched = F32 * (rows * inputs + rows * outputs + inputs * outputs) as f64;
    let item = |way: &str, op: Value| {
        let name = format!("linear {name} {inputs} -> {outputs}, {rows} rows, {way}");
        Item { name, calls, peer_calls: calls, bound: flops, touched, op }
    };
    let sizes = |kind: &str| json!({ "kind": kind, "rows": rows, "inputs": inputs, "outputs": outputs });
    let with = |mut op: Value, key: &str, value: bool| {
        op[key] = value.into();
        op
    };
    [
        item("forward", with(with(sizes("linear_forward"), "bias", bias), "residual", residual)),
        item("d_x", sizes("linear_input")),
        item("d_weight", with(sizes("linear_weight"), "bias", bias)),
    ]
}

fn stream(name: &str, calls: f64, (moved, stream, touched): (f64, &'static str, f64), op: Value) -> Item {
    let bound = Bound::Stream(F32 * moved, stream);
    Item { name: name.to_owned(), calls, peer_calls: calls, bound, touched: F32 * touched, op }
}

fn cross_entropy(s: Sizes, rows: usize, calls: f64) -> Item {
    let logits = (rows * s.vocabulary) as f64;
    let op = json!({ "kind": "cross_entropy", "rows": rows, "vocabulary": s.vocabulary });
    stream(&format!("cross entropy and gradient, {rows} rows"), calls, (2.0 * logits, "update", logits), op)
}

/// Three products; a model makes them in pieces, with the loss between.
fn head(s: Sizes) -> Item {
    let (rows, width, vocabulary) = (s.rows(), s.width, s.vocabulary);
    Item {
        name: format!("head and loss, forth and back, {rows} rows"),
        calls: 0.0,
        peer_calls: 0.0,
        bound: Bound::Products(6.0 * rows as f64 * (width * vocabulary) as f64),
        touched: F32 * (2 * rows * width + 2 * width * vocabulary) as f64,
        op: json!({ "kind": "head", "rows": rows, "width": width, "vocabulary": vocabulary }),
    }
}

fn heads(kind: &str, s: Sizes) -> Value {
    json!({ "kind": kind, "batch": s.batch, "sequence": s.sequence, "heads": s.heads, "kv_heads": s.kv_heads,
            "head_size": s.head_size })
}

/// Two products of T x T x D for each head forward, five backward (the scores are made anew), of which causality needs
/// half.
fn attention(s: Sizes) -> [Item; 2] {
    let product = (s.rows() * s.sequence * s.heads * s.head_size) as f64;
    let (queries, keys) = (s.rows() * s.heads * s.head_size, s.rows() * s.kv_heads * s.head_size);
    let item = |name: &str, products: f64, touched: usize, op| Item {
        name: name.to_owned(),
        calls: s.layers as f64,
        peer_calls: s.layers as f64,
        bound: Bound::Products(products * product),
        touched: F32 * touched as f64,
        op,
    };
    [
        item("attention forward", 2.0, 2 * (queries + keys), heads("attention_forward", s)),
        item("attention backward", 5.0, 4 * (queries + keys), heads("attention_backward", s)),
    ]
}

fn rope(s: Sizes) -> Item {
    let turned = (s.rows() * (s.heads + s.kv_heads) * s.head_size) as f64;
    stream("rope", 2.0 * s.layers as f64, (2.0 * turned, "update", turned), heads("rope", s))
}

fn norms(s: Sizes, gpt: bool) -> [Item; 2] {
    let (rows, width) = (s.rows(), s.width);
    let elements = (rows * width) as f64;
    let op = |kind: &str| json!({ "kind": kind, "rows": rows, "width": width, "layer": gpt });
    let calls = (2 * s.layers + 1) as f64;
    let name = if gpt { "layer norm" } else { "rms norm" };
    let (forth, back) = ((2.0 * elements, "copy", 2.0 * elements), (4.0 * elements, "triad", 4.0 * elements));
    [
        // Those of the blocks are made again.
        Item {
            calls: calls + 2.0 * s.layers as f64,
            ..stream(&format!("{name} forward"), calls, forth, op("norm_forward"))
        },
        stream(&format!("{name} backward"), calls, back, op("norm_backward")),
    ]
}

/// What ours carries out once more for the backward pass.
fn again(item: Item) -> Item {
    Item { calls: 2.0 * item.peer_calls, ..item }
}

fn gelu(s: Sizes) -> [Item; 2] {
    let (elements, calls) = (s.rows() * s.feed_forward, s.layers as f64);
    let (e, op) = (elements as f64, |kind: &str| json!({ "kind": kind, "elements": elements }));
    [
        again(stream("gelu forward", calls, (2.0 * e, "copy", 2.0 * e), op("gelu_forward"))),
        stream("gelu backward", calls, (3.0 * e, "triad", 3.0 * e), op("gelu_backward")),
    ]
}

fn swiglu(s: Sizes) -> [Item; 2] {
    let (rows, width, calls) = (s.rows(), s.feed_forward, s.layers as f64);
    let (e, op) = ((rows * width) as f64, |kind: &str| json!({ "kind": kind, "rows": rows, "width": width }));
    [
        again(stream("swiglu forward", calls, (3.0 * e, "triad", 3.0 * e), op("swiglu_forward"))),
        stream("swiglu backward", calls, (5.0 * e, "triad", 5.0 * e), op("swiglu_backward")),
    ]
}

/// Rows of the table are read where tokens are; backward they are read and written.
fn tables(s: Sizes, positions: bool) -> [Item; 2] {
    let op = |kind: &str| {
        json!({ "kind": kind, "batch": s.batch, "sequence": s.sequence, "vocabulary": s.vocabulary, "width": s.width,
                "positions": positions })
    };
    let e = (s.rows() * s.width) as f64;
    let places = if positions { 1.0 } else { 0.0 };
    [
        stream(
            "embedding forward",
            1.0,
            ((2.0 + places) * e, "triad", (2.0 + places) * e),
            op("embedding_forward"),
        ),
        stream(
            "embedding backward",
            1.0,
            ((3.0 + 2.0 * places) * e, "triad", (2.0 + places) * e),
            op("embedding_backward"),
        ),
    ]
}

fn parameters(elements: usize) -> [Item; 3] {
    let (e, op) = (elements as f64, |kind: &str| json!({ "kind": kind, "elements": elements }));
    [
        stream("gradients to zero", 1.0, (e, "write", e), op("fill")),
        stream("norm of the gradients", 1.0, (e, "read", e), op("sum_of_squares")),
        stream("AdamW", 1.0, (7.0 * e, "update", 4.0 * e), op("adamw")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_a_step_add_up_to_the_arithmetic_of_the_model() {
        for shape in Shape::ALL {
            let s = shape.sizes();
            let items = items(shape, 512);
            let products = items.iter().map(|item| match item.bound {
                Bound::Products(flops) => item.calls * flops,
                Bound::Stream(..) => 0.0,
            });
            let qkv = (s.heads + 2 * s.kv_heads) * s.head_size;
            let up = if shape == Shape::Gpt { 1 } else { 2 };
            let block = s.width * (qkv + s.heads * s.head_size + (up + 1) * s.feed_forward);
            let matrices = 6.0 * (s.layers * block + s.vocabulary * s.width) as f64;
            let attention = 7.0 * (s.layers * s.sequence * s.heads * s.head_size) as f64;
            assert_eq!(products.sum::<f64>(), s.rows() as f64 * (matrices + attention), "{shape}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        for shape in Shape::ALL {
            let mut names: Vec<_> = items(shape, 42).into_iter().map(|item| item.name).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
