//! Writing on: token after token, each a pure function of weights, prompt and seed.

use crate::cache::KeyValueCache;
use crate::sampling::{SamplingSettings, sample};
use crate::transformer::Transformer;
use crate::workspace::Workspace;
use gradus_error::{Error, Result};

/// What to write on from, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// At least one token.
    pub prompt: &'a [u32],
    /// Tokens to write at most; the context's end also ends the text.
    pub max_tokens: usize,
    /// How to choose.
    pub sampling: &'a SamplingSettings,
    /// Tokens that end the text; they are not given out.
    pub stop: &'a [u32],
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By a token that ends texts, or because nobody wanted more.
    Stopped,
    /// It has as many tokens as were asked for.
    LongEnough,
    /// The model's context is full.
    ContextFull,
}

/// The memory that writing needs, kept from one text to the next.
pub struct Generator {
    workspace: Workspace,
    cache: KeyValueCache,
    prefill_rows: usize,
}

impl Generator {
    /// Memory for texts of up to `capacity` tokens, prompt included.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn new(model: &Transformer, capacity: usize) -> Result<Self> {
        // A prompt goes through in pieces of this many tokens: enough rows to be efficient, few enough to be small.
        let prefill_rows = capacity.clamp(1, 256);
        let device = model.device().as_ref();
        Ok(Self {
            workspace: Workspace::for_inference(device, model.config(), prefill_rows)?,
            cache: KeyValueCache::new(device, model.config(), capacity)?,
            prefill_rows,
        })
    }

    /// Logits `[tokens, V]` of all positions of one text.
    ///
    /// # Errors
    /// `Invalid` for an unknown token or a text longer than the context.
    pub fn logits(&mut self, model: &Transformer, tokens: &[u32]) -> Result<Vec<f32>> {
        self.cache.truncate(0);
        let mut all = Vec::new();
        for piece in tokens.chunks(self.prefill_rows) {
            all.extend(model.logits(&self.workspace, piece, &mut self.cache, piece.len())?);
        }
        Ok(all)
    }

    /// The same logits, one token after another through the cache, as writing makes them.
    ///
    /// # Errors
    /// As [`Generator::logits`].
    pub fn stepwise_logits(&mut self, model: &Transformer, tokens: &[u32]) -> Result<Vec<f32>> {
        self.cache.truncate(0);
        let mut all = Vec::new();
        for token in tokens {
            all.extend(model.logits(&self.workspace, &[*token], &mut self.cache, 1)?);
        }
        Ok(all)
    }

    /// Writes on from the prompt, calling `emit` with each token as soon as it is known; `emit` returns whether to go
    /// on.
    ///
    /// # Errors
    /// `Invalid` for an empty prompt, an unknown token, or a prompt longer than the context.
    pub fn generate(
        &mut self,
        model: &Transformer,
        request: Request,
        emit: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Ending> {
        request.sampling.check()?;
        let mut logits = self.prefill(model, request.prompt)?;
        for draw in 0..request.max_tokens {
            let token = sample(&logits, request.sampling, draw as u64);
            if request.stop.contains(&token) || !emit(token) {
                return Ok(Ending::Stopped);
            }
            if draw + 1 == request.max_tokens {
                break;
            }
            if self.cache.len() == self.cache.capacity() {
                return Ok(Ending::ContextFull);
            }
            logits = model.logits(&self.workspace, &[token], &mut self.cache, 1)?;
        }
        Ok(Ending::LongEnough)
    }

    /// Runs a prompt through and returns the logits after its last token.
    fn prefill(&mut self, model: &Transformer, prompt: &[u32]) -> Result<Vec<f32>> {
        if prompt.is_empty() {
            return Err(Error::invalid("the prompt is empty: give at least one token to write on from"));
        }
        let room = self.cache.capacity();
        if prompt.len() > room {
            return Err(Error::invalid(format!(
                "the prompt has {} tokens, the context {room}: give a shorter one",
                prompt.len()
            )));
        }
        self.cache.truncate(0);
        let mut logits = Vec::new();
        for piece in prompt.chunks(self.prefill_rows) {
            logits = model.logits(&self.workspace, piece, &mut self.cache, 1)?;
        }
        Ok(logits)
    }
}
