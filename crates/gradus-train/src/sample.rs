//! Text that the model writes, for a person to look at: before the first step and after the last.

use gradus_error::Result;
use gradus_model::sampling::SamplingSettings;
use gradus_model::{Generator, Request, Transformer};
use gradus_store::Tokenizer;
use serde::{Deserialize, Serialize};

/// The `[sample]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSettings {
    /// What the model is given to write on from; empty: the end-of-text token, that is, the start of a document.
    pub prompt: String,
    /// Tokens to write; 0: no samples.
    pub tokens: usize,
    /// Factor of randomness; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest so many tokens are drawn from; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability are drawn from; 1: all.
    pub top_p: f32,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { prompt: String::new(), tokens: 200, temperature: 0.7, top_k: 40, top_p: 1.0 }
    }
}

impl SampleSettings {
    fn sampling(&self, seed: u64) -> SamplingSettings {
        SamplingSettings { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed }
    }

    /// Whether the settings are possible.
    ///
    /// # Errors
    /// `Invalid`, naming the section.
    pub fn check(&self) -> Result<()> {
        self.sampling(0).check().map_err(|error| error.within("[sample]"))
    }
}

/// Writes samples with one model.
pub(crate) struct Sampler {
    settings: SampleSettings,
    sampling: SamplingSettings,
    prompt: Vec<u32>,
    generator: Generator,
}

impl Sampler {
    /// `None` where the settings ask for no samples.
    pub fn new(
        model: &Transformer,
        tokenizer: &Tokenizer,
        settings: &SampleSettings,
        seed: u64,
    ) -> Result<Option<Self>> {
        if settings.tokens == 0 {
            return Ok(None);
        }
        settings.check()?;
        let sampling = settings.sampling(seed);
        let mut prompt = tokenizer.encode(&settings.prompt)?;
        if prompt.is_empty() {
            prompt.push(tokenizer.end_of_text());
        }
        let capacity = (prompt.len() + settings.tokens).min(model.config().context);
        let generator = Generator::new(model, capacity)?;
        Ok(Some(Self { settings: settings.clone(), sampling, prompt, generator }))
    }

    /// The prompt, and what the model writes after it.
    pub fn write(&mut self, model: &Transformer, tokenizer: &Tokenizer) -> Result<(String, String)> {
        let request = Request {
            prompt: &self.prompt,
            max_tokens: self.settings.tokens,
            sampling: &self.sampling,
            stop: &[tokenizer.end_of_text()],
        };
        let mut tokens = Vec::new();
        self.generator.generate(model, request, &mut |token| {
            tokens.push(token);
            true
        })?;
        Ok((self.settings.prompt.clone(), tokenizer.decode(&tokens)?))
    }
}
