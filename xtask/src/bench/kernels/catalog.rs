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

/// How a tensor's elements are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
}

impl Format {
    /// How a step keeps what its products read.
    fn of_products(precision: &str) -> Self {
        if precision == "bf16" { Self::Bf16 } else { Self::F32 }
    }

    /// The workers' word.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Of so many elements.
    fn bytes(self, elements: usize) -> f64 {
        elements as f64 * if self == Self::F32 { 4.0 } else { 2.0 }
    }
}

/// Bytes of so many f32.
fn single(elements: usize) -> f64 {
    Format::F32.bytes(elements)
}

/// An operation at its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// As the table calls it.
    pub name: String,
    /// How often a training step runs it; not whole where its last piece is smaller; 0 for what a step does in other
    /// pieces.
    pub calls: f64,
    /// How often in one of the peer's, which keeps for the backward pass what ours makes again.
    pub peer_calls: f64,
    /// What bounds it.
    pub bound: Bound,
    /// Bytes of all its tensors: those that it touches again when it runs again.
    pub touched: f64,
    /// As the workers take it.
    pub op: Value,
}

/// What a block's linear layer is in a step.
struct Layer {
    name: &'static str,
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// It ends a branch: it adds the residual stream, which is f32, as is the gradient that comes back.
    residual: bool,
    /// What its output goes on through in the same call: name, elements that then leave a row as a tensor of their own,
    /// and how the workers take it.
    epilogue: (&'static str, usize, Value),
    /// What the gradient of its input goes back through: name, and elements of a row that had gone in.
    through: (&'static str, usize),
}

/// Every operation of a step of `shape` in `precision`; logits are made of `logits_rows` rows at once.
pub fn items(shape: Shape, precision: &str, logits_rows: usize) -> Vec<Item> {
    let (sizes, gpt, kept) = (shape.sizes(), shape == Shape::Gpt, Format::of_products(precision));
    let mut items = Vec::new();
    for layer in layers(sizes, gpt, kept) {
        items.extend(linear(&layer, sizes, kept));
    }
    let pieces = sizes.rows() as f64 / logits_rows as f64;
    items.extend(head_products(sizes, logits_rows, pieces, kept));
    items.push(cross_entropy(sizes, logits_rows, pieces));
    items.push(head(sizes, kept));
    items.extend(attention(sizes, kept));
    if !gpt {
        items.push(rope(sizes, kept));
    }
    items.extend(norms(sizes, gpt, kept));
    items.push(if gpt { gelu(sizes, kept) } else { swiglu(sizes, kept) });
    items.extend(tables(sizes, gpt));
    items.extend(parameters(shape.parameters()));
    items
}

fn layers(s: Sizes, gpt: bool, kept: Format) -> [Layer; 4] {
    let queries = s.heads * s.head_size;
    let (up, activation) = if gpt { (s.feed_forward, "gelu") } else { (2 * s.feed_forward, "swiglu") };
    let none = || ("", 0, json!("none"));
    let turn = if gpt { none() } else { ("rope", 0, json!({ "rope": heads(s, kept) })) };
    let layer = |name, inputs, outputs, residual, epilogue, through| Layer {
        name,
        inputs,
        outputs,
        bias: gpt,
        residual,
        epilogue,
        through,
    };
    let up_name = if gpt { "up" } else { "gate and up" };
    let activate = (activation, s.feed_forward, json!(activation));
    [
        layer("qkv", s.width, queries + 2 * s.kv_heads * s.head_size, false, turn, ("", 0)),
        layer("attention out", queries, s.width, true, none(), ("", 0)),
        layer(up_name, s.width, up, false, activate, ("", 0)),
        layer("down", s.feed_forward, s.width, true, none(), (activation, up)),
    ]
}

/// The three products of a layer, one of each in every block.
fn linear(layer: &Layer, s: Sizes, kept: Format) -> [Item; 3] {
    let Layer { name, inputs, outputs, bias, residual, .. } = *layer;
    let (rows, calls) = (s.rows(), s.layers as f64);
    let (epilogue, activated, after) = &layer.epilogue;
    let (through, entered) = layer.through;
    let out = if residual { Format::F32 } else { kept };
    let d_x_width = if entered > 0 { entered } else { inputs };
    let (x, y, weight) = (kept.bytes(rows * inputs), out.bytes(rows * outputs), single(inputs * outputs));
    let added = if residual { y } else { 0.0 };
    let product = Product { name, rows, inputs, outputs, calls };
    [
        product.item(
            &passing("forward", epilogue),
            x + weight + added + y + kept.bytes(rows * activated),
            json!({ "kind": "linear_forward", "bias": bias, "residual": residual, "epilogue": after,
                    "x": kept.name(), "out": out.name() }),
        ),
        product.item(
            &passing("d_x", through),
            y + weight + kept.bytes(rows * (d_x_width + entered)),
            json!({ "kind": "linear_input", "through": if entered > 0 { through } else { "none" },
                    "d_out": out.name(), "d_x": kept.name() }),
        ),
        product.item(
            "d_weight",
            y + x + weight,
            json!({ "kind": "linear_weight", "bias": bias, "d_out": out.name(), "x": kept.name() }),
        ),
    ]
}

/// What a product is called that goes on through `function` in the same call.
fn passing(way: &str, function: &str) -> String {
    if function.is_empty() { way.to_owned() } else { format!("{way} through {function}") }
}

/// A linear layer's sizes, which all of its three products share.
struct Product {
    name: &'static str,
    rows: usize,
    inputs: usize,
    outputs: usize,
    calls: f64,
}

impl Product {
    fn item(&self, way: &str, touched: f64, mut op: Value) -> Item {
        let Self { name, rows, inputs, outputs, calls } = *self;
        for (key, size) in [("rows", rows), ("inputs", inputs), ("outputs", outputs)] {
            op[key] = size.into();
        }
        Item {
            name: format!("linear {name} {inputs} -> {outputs}, {rows} rows, {way}"),
            calls,
            peer_calls: calls,
            bound: Bound::Products(2.0 * rows as f64 * inputs as f64 * outputs as f64),
            touched,
            op,
        }
    }
}

/// The head's products over one piece: logits and the gradient of what the final norm puts out are f32.
fn head_products(s: Sizes, rows: usize, calls: f64, kept: Format) -> [Item; 3] {
    let (inputs, outputs) = (s.width, s.vocabulary);
    let (logits, weight) = (single(rows * outputs), single(inputs * outputs));
    let product = Product { name: "head", rows, inputs, outputs, calls };
    let x = kept.bytes(rows * inputs);
    [
        product.item(
            "forward",
            x + weight + logits,
            json!({ "kind": "linear_forward", "bias": false, "residual": false, "epilogue": "none",
                    "x": kept.name(), "out": "f32" }),
        ),
        product.item(
            "d_x",
            logits + weight + single(rows * inputs),
            json!({ "kind": "linear_input", "through": "none", "d_out": "f32", "d_x": "f32" }),
        ),
        product.item(
            "d_weight",
            logits + x + weight,
            json!({ "kind": "linear_weight", "bias": false, "d_out": "f32", "x": kept.name() }),
        ),
    ]
}

/// `moved` and `touched` are bytes: those that one run reads and writes, and those of the tensors.
fn stream(name: &str, calls: f64, (moved, stream, touched): (f64, &'static str, f64), op: Value) -> Item {
    Item { name: name.to_owned(), calls, peer_calls: calls, bound: Bound::Stream(moved, stream), touched, op }
}

fn cross_entropy(s: Sizes, rows: usize, calls: f64) -> Item {
    let logits = single(rows * s.vocabulary);
    let op = json!({ "kind": "cross_entropy", "rows": rows, "vocabulary": s.vocabulary });
    stream(&format!("cross entropy and gradient, {rows} rows"), calls, (2.0 * logits, "update", logits), op)
}

/// Three products; a model makes them in pieces, with the loss between.
fn head(s: Sizes, kept: Format) -> Item {
    let (rows, width, vocabulary) = (s.rows(), s.width, s.vocabulary);
    Item {
        name: format!("head and loss, forth and back, {rows} rows"),
        calls: 0.0,
        peer_calls: 0.0,
        bound: Bound::Products(6.0 * rows as f64 * (width * vocabulary) as f64),
        touched: kept.bytes(rows * width) + single(rows * width + 2 * width * vocabulary),
        op: json!({ "kind": "head", "rows": rows, "width": width, "vocabulary": vocabulary, "x": kept.name() }),
    }
}

fn heads(s: Sizes, kept: Format) -> Value {
    json!({ "batch": s.batch, "sequence": s.sequence, "heads": s.heads, "kv_heads": s.kv_heads,
            "head_size": s.head_size, "kept": kept.name() })
}

fn of_heads(kind: &str, s: Sizes, kept: Format) -> Value {
    let mut op = heads(s, kept);
    op["kind"] = kind.into();
    op
}

/// Two products of T x T x D for each head forward, five backward (the scores are made anew), of which causality needs
/// half.
fn attention(s: Sizes, kept: Format) -> [Item; 2] {
    let product = (s.rows() * s.sequence * s.heads * s.head_size) as f64;
    let (queries, keys) = (s.rows() * s.heads * s.head_size, s.rows() * s.kv_heads * s.head_size);
    let item = |name: &str, products: f64, touched: usize, op| Item {
        name: name.to_owned(),
        calls: s.layers as f64,
        peer_calls: s.layers as f64,
        bound: Bound::Products(products * product),
        touched: kept.bytes(touched),
        op,
    };
    [
        item("attention forward", 2.0, 2 * (queries + keys), of_heads("attention_forward", s, kept)),
        item("attention backward", 5.0, 4 * (queries + keys), of_heads("attention_backward", s, kept)),
    ]
}

/// Forward it is part of a linear layer's call.
fn rope(s: Sizes, kept: Format) -> Item {
    let turned = kept.bytes(s.rows() * (s.heads + s.kv_heads) * s.head_size);
    let op = of_heads("rope_backward", s, kept);
    stream("rope backward", s.layers as f64, (2.0 * turned, "update", turned), op)
}

/// Those of the blocks run forward again for the backward pass; the last one's gradient comes from the head in f32, and
/// nothing goes round it.
fn norms(s: Sizes, gpt: bool, kept: Format) -> [Item; 3] {
    let (rows, width) = (s.rows(), s.width);
    let (stream_x, normal) = (single(rows * width), kept.bytes(rows * width));
    let name = if gpt { "layer norm" } else { "rms norm" };
    let op = |kind: &str| json!({ "kind": kind, "rows": rows, "width": width, "layer": gpt });
    let back = |residual: bool, d_out: Format| {
        let mut op = op("norm_backward");
        (op["residual"], op["d_out"]) = (residual.into(), d_out.name().into());
        op
    };
    let mut forward = op("norm_forward");
    forward["out"] = kept.name().into();
    let (blocks, forth, inner, last) =
        (2.0 * s.layers as f64, stream_x + normal, 3.0 * stream_x + normal, 3.0 * stream_x);
    [
        Item {
            calls: 2.0 * blocks + 1.0,
            ..stream(&format!("{name} forward"), blocks + 1.0, (forth, "copy", forth), forward)
        },
        stream(&format!("{name} backward"), blocks, (inner, "triad", inner), back(true, kept)),
        stream(&format!("final {name} backward"), 1.0, (last, "triad", last), back(false, Format::F32)),
    ]
}

/// What only ours makes, for the backward pass: forward it is part of a linear layer's call.
fn again(item: Item) -> Item {
    Item { peer_calls: 0.0, ..item }
}

fn gelu(s: Sizes, kept: Format) -> Item {
    let elements = s.rows() * s.feed_forward;
    let (bytes, op) = (
        kept.bytes(2 * elements),
        json!({ "kind": "gelu_forward", "elements": elements, "kept": kept.name() }),
    );
    again(stream("gelu forward, again", s.layers as f64, (bytes, "copy", bytes), op))
}

fn swiglu(s: Sizes, kept: Format) -> Item {
    let (rows, width) = (s.rows(), s.feed_forward);
    let (bytes, op) = (
        kept.bytes(3 * rows * width),
        json!({ "kind": "swiglu_forward", "rows": rows, "width": width, "kept": kept.name() }),
    );
    again(stream("swiglu forward, again", s.layers as f64, (bytes, "triad", bytes), op))
}

/// Rows of the table are read where tokens are; backward they are read and written.
fn tables(s: Sizes, positions: bool) -> [Item; 2] {
    let op = |kind: &str| {
        json!({ "kind": kind, "batch": s.batch, "sequence": s.sequence, "vocabulary": s.vocabulary, "width": s.width,
                "positions": positions })
    };
    let e = single(s.rows() * s.width);
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
    let (e, op) = (single(elements), |kind: &str| json!({ "kind": kind, "elements": elements }));
    [
        stream("gradients to zero", 1.0, (e, "write", e), op("fill")),
        stream("norm of the gradients", 1.0, (e, "read", e), op("sum_of_squares")),
        stream("AdamW", 1.0, (7.0 * e, "update", 4.0 * e), op("adamw")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRECISIONS: [&str; 2] = ["f32", "bf16"];

    #[test]
    fn products_of_a_step_add_up_to_the_arithmetic_of_the_model() {
        for (shape, precision) in Shape::ALL.iter().flat_map(|shape| PRECISIONS.map(|name| (*shape, name))) {
            let s = shape.sizes();
            let items = items(shape, precision, 512);
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
            let mut names: Vec<_> = items(shape, "f32", 42).into_iter().map(|item| item.name).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

    fn item(shape: Shape, precision: &str, name: &str) -> Item {
        let mut items = items(shape, precision, 512).into_iter();
        items.find(|item| item.name.contains(name)).unwrap_or_else(|| panic!("no {name} in {shape}"))
    }

    #[test]
    fn what_products_read_is_bf16_and_the_residual_stream_f32() {
        let (rows, width, up) = (2048.0, 384.0, 1536.0);
        let forward = item(Shape::Gpt, "bf16", "layer norm forward");
        assert_eq!(forward.bound, Bound::Stream(6.0 * rows * width, "copy"));
        let backward = item(Shape::Gpt, "bf16", "layer norm backward");
        assert_eq!(backward.bound, Bound::Stream(14.0 * rows * width, "triad"));
        let up_forward = item(Shape::Gpt, "bf16", "linear up 384 -> 1536, 2048 rows, forward through gelu");
        assert_eq!(up_forward.touched, rows * (2.0 * width + 4.0 * up) + 4.0 * width * up);
        let single = item(Shape::Gpt, "f32", "linear up 384 -> 1536, 2048 rows, forward through gelu");
        assert_eq!(single.touched, rows * (4.0 * width + 8.0 * up) + 4.0 * width * up);
        let d_x = item(Shape::Gpt, "bf16", "linear down 1536 -> 384, 2048 rows, d_x through gelu");
        assert_eq!(d_x.touched, rows * (4.0 * width + 4.0 * up) + 4.0 * width * up);
        assert_eq!((&d_x.op["d_out"], &d_x.op["d_x"]), (&json!("f32"), &json!("bf16")));
    }

    #[test]
    fn ours_makes_norms_and_activations_again_and_the_peer_keeps_them() {
        let calls = |shape, name: &str| {
            let item = item(shape, "bf16", name);
            (item.calls, item.peer_calls)
        };
        assert_eq!(calls(Shape::Gpt, "layer norm forward"), (25.0, 13.0));
        assert_eq!(calls(Shape::Gpt, "layer norm backward"), (12.0, 12.0));
        assert_eq!(calls(Shape::Gpt, "final layer norm backward"), (1.0, 1.0));
        assert_eq!(calls(Shape::Gpt, "gelu forward, again"), (6.0, 0.0));
        assert_eq!(calls(Shape::Smollm2, "swiglu forward, again"), (30.0, 0.0));
        assert_eq!(calls(Shape::Smollm2, "rope backward"), (30.0, 30.0));
        assert_eq!(calls(Shape::Smollm2, "forward through rope"), (30.0, 30.0));
    }
}
