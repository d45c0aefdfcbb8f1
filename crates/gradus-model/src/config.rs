//! Sizes and kinds of a model: as settings, as presets by name, and checked.

use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The vocabulary is padded to a multiple of this: whole tiles and cache lines for every kernel.
const VOCABULARY_MULTIPLE: usize = 64;

/// Beyond every published model's sizes; it keeps all products of two within 64 bits.
const LARGEST_SIZE: usize = 1 << 24;

/// Eight times the layers of the deepest published models, so that names of tensors stay within a few MiB.
const MOST_LAYERS: usize = 1 << 12;
/// 4 TiB as f32, ten times the largest open dense model's: beyond it a size is a slip or an attack.
const MOST_ELEMENTS: f64 = (1u64 << 40) as f64;

/// Which family a model belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Learned positions, LayerNorm, GELU, biases everywhere but in a free head (Radford et al. 2019).
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU, grouped-query attention (Touvron et al. 2023); with `qkv_bias`, Qwen2's.
    #[default]
    Llama,
}

/// The `[model]` section. Zero and the empty string mean "from the preset, or by the family's custom".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// A preset's name, or empty.
    pub preset: String,
    /// `gpt2` or `llama`; empty: the preset's, else `llama`.
    pub family: String,
    /// `C`.
    pub width: usize,
    /// `L`.
    pub layers: usize,
    /// `H`.
    pub heads: usize,
    /// `K`; 0: as many as heads.
    pub kv_heads: usize,
    /// `D`; 0: width over heads.
    pub head_size: usize,
    /// `F`; 0: 4 C for GPT-2, and for Llama 8/3 C rounded up to a multiple of 64.
    pub feed_forward: usize,
    /// Longest sequence, `T`; 0: the preset's, else 256.
    pub context: usize,
    /// Token count; 0: the tokenizer's.
    pub vocabulary: usize,
    /// `true` or `false`: whether head and embedding share their weights; empty: the preset's, else true.
    pub tied: String,
    /// `true` or `false`: biases on queries, keys and values (Llama family); empty: the preset's, else false.
    pub qkv_bias: String,
    /// Base of the rotary frequencies; 0: the preset's, else 10000.
    pub rope_theta: f64,
    /// Added to the variance in norms; 0: the preset's, else 1e-5.
    pub norm_epsilon: f64,
    /// Hugging Face folder whose weights the run begins with; empty: random ones.
    pub from: String,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            preset: String::new(),
            family: String::new(),
            width: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_size: 0,
            feed_forward: 0,
            context: 0,
            vocabulary: 0,
            tied: String::new(),
            qkv_bias: String::new(),
            rope_theta: 0.0,
            norm_epsilon: 0.0,
            from: String::new(),
        }
    }
}

/// A model's kind and sizes, complete and checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which family.
    pub family: Family,
    /// Tokens that exist.
    pub vocabulary: usize,
    /// Longest sequence, `T`.
    pub context: usize,
    /// `C`.
    pub width: usize,
    /// `L`.
    pub layers: usize,
    /// `H`.
    pub heads: usize,
    /// `K`, a divisor of `H`.
    pub kv_heads: usize,
    /// `D`.
    pub head_size: usize,
    /// `F`.
    pub feed_forward: usize,
    /// Whether head and embedding share their weights.
    pub tied: bool,
    /// Biases on queries, keys and values (GPT-2 always has them).
    pub qkv_bias: bool,
    /// Added to the variance in norms.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies (Llama family).
    pub rope_theta: f32,
}

/// Presets by name: the sizes of published models, and small ones for trial.
pub const PRESETS: &[(&str, ModelConfig)] = &[
    ("gpt2", preset(Family::Gpt2, [50257, 1024, 768, 12, 12, 12, 64, 3072], true, true, 1e-5, 10_000.0)),
    (
        "smollm2-135m",
        preset(Family::Llama, [49152, 8192, 576, 30, 9, 3, 64, 1536], true, false, 1e-5, 100_000.0),
    ),
    (
        "qwen2.5-0.5b",
        preset(Family::Llama, [151_936, 32_768, 896, 24, 14, 2, 64, 4864], true, true, 1e-6, 1_000_000.0),
    ),
    ("gpt2-tiny", preset(Family::Gpt2, [2048, 256, 128, 2, 4, 4, 32, 512], true, true, 1e-5, 10_000.0)),
    ("llama-tiny", preset(Family::Llama, [2048, 256, 128, 2, 4, 2, 32, 384], true, false, 1e-5, 10_000.0)),
];

const fn preset(
    family: Family,
    sizes: [usize; 8],
    tied: bool,
    qkv_bias: bool,
    norm_epsilon: f32,
    rope_theta: f32,
) -> ModelConfig {
    let [vocabulary, context, width, layers, heads, kv_heads, head_size, feed_forward] = sizes;
    ModelConfig {
        family,
        vocabulary,
        context,
        width,
        layers,
        heads,
        kv_heads,
        head_size,
        feed_forward,
        tied,
        qkv_bias,
        norm_epsilon,
        rope_theta,
    }
}

impl ModelSettings {
    /// Whether a model that is read from a folder is asked to be another than that folder's.
    ///
    /// # Errors
    /// `Invalid`, naming the keys that `from` leaves no room for.
    pub fn check_from(&self) -> Result<()> {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => unreachable!("plain data has a JSON form"),
        };
        let (given, default) = (fields(self), fields(&Self::default()));
        let others = given.iter().filter(|(key, value)| *key != "from" && default[*key] != **value);
        let names: Vec<String> = others.map(|(key, _)| format!("model.{key}")).collect();
        if self.from.is_empty() || names.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "model.from takes the model from {} as it is: leave out {}",
            self.from,
            names.join(", ")
        )))
    }

    /// The complete configuration; `tokens` is the tokenizer's count, used where no vocabulary is set.
    ///
    /// # Errors
    /// `Invalid`, naming the key, for an unknown preset or family and for sizes that do not go together.
    pub fn complete(&self, tokens: usize) -> Result<ModelConfig> {
        let base = self.base()?;
        let (preset, gpt2) = (!self.preset.is_empty(), base.family == Family::Gpt2);
        let pick = |given: usize, base: usize| if given > 0 { given } else { base };
        let width = pick(self.width, base.width);
        let heads = pick(self.heads, base.heads);
        let resized = width != base.width || heads != base.heads || !preset;
        let kv_heads = pick(self.kv_heads, if resized { heads } else { base.kv_heads });
        let head_size = pick(self.head_size, if resized { width / heads.max(1) } else { base.head_size });
        let feed_forward = pick(
            self.feed_forward,
            if resized { customary_width(base.family, width) } else { base.feed_forward },
        );
        let config = ModelConfig {
            family: base.family,
            vocabulary: pick(self.vocabulary, tokens),
            context: pick(self.context, base.context),
            width,
            layers: pick(self.layers, base.layers),
            heads,
            kv_heads,
            head_size,
            feed_forward,
            tied: choice("model.tied", &self.tied, base.tied)?,
            // GPT-2 has biases everywhere and no rotary positions, whatever the settings say.
            qkv_bias: gpt2 || choice("model.qkv_bias", &self.qkv_bias, base.qkv_bias)?,
            norm_epsilon: if self.norm_epsilon == 0.0 { base.norm_epsilon } else { self.norm_epsilon as f32 },
            rope_theta: if self.rope_theta == 0.0 || gpt2 { base.rope_theta } else { self.rope_theta as f32 },
        };
        if config.vocabulary < tokens {
            return Err(Error::invalid(format!(
                "model.vocabulary is {} but the tokenizer has {tokens} tokens: leave it 0 or make it at least that",
                config.vocabulary
            )));
        }
        config.check()?;
        Ok(config)
    }

    /// The preset, or the family's custom with the sizes of the quickstart.
    fn base(&self) -> Result<ModelConfig> {
        let family = match self.family.as_str() {
            "" => None,
            "gpt2" => Some(Family::Gpt2),
            "llama" => Some(Family::Llama),
            other => {
                return Err(Error::invalid(format!(
                    "model.family is \"{other}\": choose \"gpt2\" or \"llama\""
                )));
            }
        };
        if self.preset.is_empty() {
            let family = family.unwrap_or_default();
            let sizes = [0, 256, 256, 4, 8, 8, 32, customary_width(family, 256)];
            return Ok(preset(family, sizes, true, family == Family::Gpt2, 1e-5, 10_000.0));
        }
        let found = PRESETS.iter().find(|(name, _)| *name == self.preset);
        let (_, config) = found.ok_or_else(|| {
            let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
            Error::invalid(format!(
                "model.preset \"{}\" is unknown: choose of {}",
                self.preset,
                names.join(", ")
            ))
        })?;
        match family {
            Some(family) if family != config.family => Err(Error::invalid(format!(
                "model.family is \"{}\" but the preset \"{}\" is of another family: leave one of them out",
                self.family, self.preset
            ))),
            _ => Ok(config.clone()),
        }
    }
}

/// The customary `F` for a width; for one that is refused anyway, by its own name, any will do.
const fn customary_width(family: Family, width: usize) -> usize {
    let width = if width > LARGEST_SIZE { LARGEST_SIZE } else { width };
    match family {
        Family::Gpt2 => 4 * width,
        Family::Llama => (8 * width / 3).next_multiple_of(64),
    }
}

fn choice(key: &str, text: &str, otherwise: bool) -> Result<bool> {
    match text {
        "" => Ok(otherwise),
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Error::invalid(format!("{key} is \"{other}\": choose \"true\" or \"false\""))),
    }
}

impl ModelConfig {
    /// Whether the sizes go together.
    ///
    /// # Errors
    /// `Invalid`, naming the key and the rule.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_size", self.head_size),
            ("feed_forward", self.feed_forward),
        ];
        for (key, size) in sizes {
            if size == 0 || size > LARGEST_SIZE {
                return Err(Error::invalid(format!(
                    "model.{key} is {size}: it must be from 1 to {LARGEST_SIZE}"
                )));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::invalid(format!(
                "model.heads is {} and model.kv_heads is {}: the first must be a multiple of the second",
                self.heads, self.kv_heads
            )));
        }
        let positive = |number: f32| number.is_finite() && number > 0.0;
        if !positive(self.norm_epsilon) || !positive(self.rope_theta) {
            return Err(Error::invalid(format!(
                "model.norm_epsilon is {} and model.rope_theta is {}: both must be finite and greater than 0",
                self.norm_epsilon, self.rope_theta
            )));
        }
        self.check_total()?;
        self.check_family()
    }

    /// Whether the whole is of a size that exists; each size alone was checked before.
    fn check_total(&self) -> Result<()> {
        let sizes = [
            self.vocabulary,
            self.width,
            self.layers,
            self.query_width(),
            self.kv_width(),
            self.feed_forward,
            self.context,
        ];
        let [vocabulary, width, layers, queries, keys, feed_forward, context] = sizes.map(|size| size as f64);
        let positions = if self.family == Family::Gpt2 { context } else { 0.0 };
        let elements =
            width * (2.0 * vocabulary + positions + layers * (2.0 * (queries + keys) + 3.0 * feed_forward));
        if self.layers > MOST_LAYERS || elements > MOST_ELEMENTS {
            return Err(Error::invalid(format!(
                "{} layers and about {elements:.1e} elements: at most {MOST_LAYERS} and {MOST_ELEMENTS:.1e} are supported",
                self.layers
            )));
        }
        Ok(())
    }

    fn check_family(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        match self.family {
            Family::Llama if !self.head_size.is_multiple_of(2) => invalid(format!(
                "model.head_size is {}: rotary positions need an even one (width {} over {} heads)",
                self.head_size, self.width, self.heads
            )),
            Family::Gpt2 if self.kv_heads != self.heads => invalid(format!(
                "model.kv_heads is {}: GPT-2 has as many as heads ({}); model.family \"llama\" can have fewer",
                self.kv_heads, self.heads
            )),
            Family::Gpt2 if self.heads * self.head_size != self.width => invalid(format!(
                "model.width is {} and model.heads is {}: GPT-2 needs a width that the heads divide",
                self.width, self.heads
            )),
            Family::Llama if !self.width.is_multiple_of(self.heads) => invalid(format!(
                "model.width is {} and model.heads is {}: transformers opens only models whose heads divide the width",
                self.width, self.heads
            )),
            _ => Ok(()),
        }
    }

    /// `V` with the padding that kernels want; rows from [`ModelConfig::vocabulary`] on are padding.
    pub fn padded_vocabulary(&self) -> usize {
        self.vocabulary.next_multiple_of(VOCABULARY_MULTIPLE)
    }

    /// Elements of a row of queries: `H * D`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Elements of a row of keys, or of values: `K * D`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// Elements of a row of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Outputs of the first linear layer of the feed-forward part: `F`, or gate and up together.
    pub fn up_width(&self) -> usize {
        match self.family {
            Family::Gpt2 => self.feed_forward,
            Family::Llama => 2 * self.feed_forward,
        }
    }

    /// Trainable elements, padding not counted.
    pub fn parameter_count(&self) -> usize {
        let biased = self.family == Family::Gpt2;
        let linear =
            |inputs: usize, outputs: usize, bias: bool| inputs * outputs + if bias { outputs } else { 0 };
        let norm = self.width * if biased { 2 } else { 1 };
        let block = 2 * norm
            + linear(self.width, self.qkv_width(), biased || self.qkv_bias)
            + linear(self.query_width(), self.width, biased)
            + linear(self.width, self.up_width(), biased)
            + linear(self.feed_forward, self.width, biased);
        let positions = if biased { self.context * self.width } else { 0 };
        let tables = self.vocabulary * self.width * if self.tied { 1 } else { 2 };
        self.layers * block + norm + positions + tables
    }

    /// Floating-point operations of one training token at sequences of `sequence` tokens: 6 per element of a matrix
    /// (forward 2, backward 4), and 6 per element pair of the two attention products, halved because half is masked
    /// (the convention of Chowdhery et al. 2022, appendix B, with causal attention counted once).
    pub fn flops_per_token(&self, sequence: usize) -> f64 {
        let block = self.width * self.qkv_width()
            + self.query_width() * self.width
            + self.width * self.up_width()
            + self.feed_forward * self.width;
        let matrices = self.layers * block + self.vocabulary * self.width;
        let attention = self.layers * 2 * self.query_width() * sequence / 2;
        6.0 * (matrices + attention) as f64
    }

    /// One line that names family and sizes.
    pub fn summary(&self) -> String {
        let family = match (self.family, self.qkv_bias) {
            (Family::Gpt2, _) => "gpt2",
            (Family::Llama, false) => "llama",
            (Family::Llama, true) => "llama with qkv biases",
        };
        format!(
            "{family}: width {}, {} layers, {} heads ({} key-value) of {}, feed-forward {}, vocabulary {}, context {}, {} head",
            self.width,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size,
            self.feed_forward,
            self.vocabulary,
            self.context,
            if self.tied { "tied" } else { "free" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn presets_have_the_published_parameter_counts() {
        let count = |name: &str| {
            ModelSettings { preset: name.into(), ..Default::default() }
                .complete(0)
                .map(|c| c.parameter_count())
        };
        // complete(0) leaves the vocabulary to the tokenizer, so presets are counted with their own.
        assert!(count("gpt2").is_err());
        let count = |name: &str| PRESETS.iter().find(|(n, _)| *n == name).unwrap().1.parameter_count();
        // As `sum(p.numel() for p in model.parameters())` gives for the published models.
        assert_eq!(count("gpt2"), 124_439_808);
        assert_eq!(count("smollm2-135m"), 134_515_008);
        assert_eq!(count("qwen2.5-0.5b"), 494_032_768);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let refused = |settings: ModelSettings| *settings.complete(100).unwrap_err().kind() == Kind::Invalid;
        assert!(refused(ModelSettings { heads: 3, kv_heads: 2, ..Default::default() }));
        for family in ["gpt2", "llama"] {
            let wide = ModelSettings { width: usize::MAX, family: family.into(), ..Default::default() };
            assert!(wide.complete(100).unwrap_err().to_string().contains("model.width"), "{family}");
        }
        assert!(refused(ModelSettings { preset: "gpt9".into(), ..Default::default() }));
        assert!(refused(ModelSettings { vocabulary: 50, ..Default::default() }));
        assert!(refused(ModelSettings { tied: "maybe".into(), ..Default::default() }));
        assert!(refused(ModelSettings {
            preset: "gpt2".into(),
            family: "llama".into(),
            ..Default::default()
        }));
        assert!(refused(ModelSettings { width: 30, heads: 2, ..Default::default() }));
    }
}
