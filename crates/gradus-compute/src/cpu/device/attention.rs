//! Attention.

use super::sized;
use crate::cpu::CpuDevice;
use crate::cpu::attention::{self, HeadRows, Item};
use crate::cpu::memory::{Columns, resolve_rows};
use crate::cpu::pool::part;
use crate::device::{Attention, Format, Matrix, Rows};
use gradus_memory::Span;

/// A whole span as one row.
fn as_row(span: Span) -> Columns {
    Columns { rows: Rows { span, stride: span.len.max(1), format: Format::F32 }, width: span.len }
}

/// The format that all tensors of an operation share.
fn shared_format<const N: usize>(formats: [Format; N]) -> Format {
    assert!(
        formats.iter().all(|format| *format == formats[0]),
        "attention wants all of its tensors in one format, not {formats:?}"
    );
    formats[0]
}

impl CpuDevice {
    /// The columns of attention's queries, keys and values.
    fn heads(shape: Attention, q: Rows, k: Rows, v: Rows) -> [Columns; 3] {
        assert!(
            shape.heads.is_multiple_of(shape.kv_heads),
            "query heads must be a multiple of key-value heads"
        );
        assert!(
            shape.query_len <= shape.key_len && shape.key_len <= shape.key_rows,
            "keys are missing: {shape:?}"
        );
        let keys = (shape.batch * shape.key_rows).saturating_sub(shape.key_rows - shape.key_len);
        let kv_width = shape.kv_heads * shape.head_size;
        if let Some(documents) = shape.documents {
            assert_eq!(documents.len(), shape.batch * shape.query_len, "documents have the wrong number");
            assert_eq!(shape.query_len, shape.key_len, "documents require as many queries as keys");
        }
        [
            Columns::new(q, shape.batch * shape.query_len, shape.heads * shape.head_size),
            Columns::new(k, keys, kv_width),
            Columns::new(v, keys, kv_width),
        ]
    }

    /// [`Device::attention_forward`](crate::Device::attention_forward).
    pub(super) fn run_attention_forward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        out: Matrix,
        log_sum_exp: Span,
    ) {
        let format = shared_format([q.format, k.format, v.format, out.format]);
        let width = shape.heads * shape.head_size;
        sized("out", out.span, format.places(shape.batch * shape.query_len * width));
        sized("log_sum_exp", log_sum_exp, shape.batch * shape.query_len * shape.heads);
        let (read, written) = (Self::heads(shape, q, k, v), [as_row(out.span), as_row(log_sum_exp)]);
        let ([out, log_sum_exp], [from_q, from_k, from_v]) = resolve_rows(&self.arena, written, read);
        let rows = |elements, stride| HeadRows { elements, stride, format };
        let [q, k, v] = [rows(from_q, q.stride), rows(from_k, k.stride), rows(from_v, v.stride)];
        let engine = &mut self.working().engine;
        let (family, dots) = (engine.family, engine.dots());
        let items = shape.batch * shape.kv_heads;
        let work = shape.batch * shape.heads * shape.head_size * shape.query_len * shape.key_len;
        let parts = engine.worth(work);
        if shape.query_len <= attention::FEW_QUERIES && format == Format::F32 {
            let len = attention::decode_scratch(shape);
            return engine.parts(parts, |index, scratch| {
                for item in part(items, 1, parts, index) {
                    let item = Item::new(shape, item);
                    let scratch = scratch.at_least(len);
                    family.run(attention::Decode { item, q, k, v, out, log_sum_exp, scratch });
                }
            });
        }
        let out = rows(out, width);
        // Where there are fewer items than threads, an item's queries are shared out too.
        let blocks = attention::Forward::blocks(shape);
        let pieces = parts.div_ceil(items.max(1)).min(blocks);
        let len = attention::forward_scratch(shape);
        engine.parts(parts, |index, scratch| {
            for piece in part(items * pieces, 1, parts, index) {
                let item = Item::new(shape, piece / pieces);
                let blocks = part(blocks, 1, pieces, piece % pieces);
                let scratch = scratch.at_least(len);
                dots.run(attention::Forward { item, q, k, v, out, log_sum_exp, blocks, scratch });
            }
        });
    }

    /// [`Device::attention_backward`](crate::Device::attention_backward).
    #[allow(clippy::too_many_arguments, reason = "the operation's own")]
    pub(super) fn run_attention_backward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        out: Matrix,
        log_sum_exp: Span,
        d_out: Matrix,
        d_q: Rows,
        d_k: Rows,
        d_v: Rows,
    ) {
        assert!(
            shape.query_len == shape.key_len && shape.key_len == shape.key_rows,
            "{shape:?} is for decoding"
        );
        let format = shared_format([
            q.format,
            k.format,
            v.format,
            out.format,
            d_out.format,
            d_q.format,
            d_k.format,
            d_v.format,
        ]);
        let (out, d_out, width) = (out.span, d_out.span, shape.heads * shape.head_size);
        sized("out", out, format.places(shape.batch * shape.query_len * width));
        sized("d_out", d_out, out.len);
        sized("log_sum_exp", log_sum_exp, shape.batch * shape.query_len * shape.heads);
        let [q_columns, k_columns, v_columns] = Self::heads(shape, q, k, v);
        let whole = [as_row(out), as_row(d_out), as_row(log_sum_exp)];
        let ([to_q, to_k, to_v], [from_q, from_k, from_v, out, d_out, log_sum_exp]) = resolve_rows(
            &self.arena,
            Self::heads(shape, d_q, d_k, d_v),
            [q_columns, k_columns, v_columns, whole[0], whole[1], whole[2]],
        );
        let rows = |elements, stride| HeadRows { elements, stride, format };
        let engine = &mut self.working().engine;
        let dots = engine.dots();
        let items = shape.batch * shape.kv_heads;
        let parts = engine.worth(2 * shape.batch * shape.query_len * width * shape.key_len);
        let len = attention::backward_scratch(shape, dots.turn() || format == Format::Bf16);
        engine.parts(parts, |index, scratch| {
            for item in part(items, 1, parts, index) {
                dots.run(attention::Backward {
                    item: Item::new(shape, item),
                    q: rows(from_q, q.stride),
                    k: rows(from_k, k.stride),
                    v: rows(from_v, v.stride),
                    out: rows(out, width),
                    log_sum_exp,
                    d_out: rows(d_out, width),
                    d_q: rows(to_q, d_q.stride),
                    d_k: rows(to_k, d_k.stride),
                    d_v: rows(to_v, d_v.stride),
                    scratch: scratch.at_least(len),
                });
            }
        });
    }
}
