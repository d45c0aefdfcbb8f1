//! Reading weights: from one file or from shards with an index, tensor by tensor, into the places that the mapping
//! names.
//!
//! First all headers are read and held against the mapping, then the tensors are read: a folder that does not fit its
//! configuration changes nothing. At most one transposed matrix and one piece of a file are in memory at a time.

use super::fields::{Fields, read_bounded};
use super::mapping::{Mapped, bare_name, is_ignored, mapping};
use super::shard::{Shard, element_bytes, unsupported};
use crate::config::{Family, ModelConfig};
use crate::parameters::Parameters;
use gradus_error::{Error, Result};
use gradus_memory::Span;
use safetensors::tensor::TensorInfo;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// The name of weights in one file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of weights in shards.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// Room for a million names.
const LONGEST_INDEX_BYTES: u64 = 100 << 20;
/// Published models have up to about 200.
const MOST_SHARDS: usize = 10_000;

/// Reads the weights of `folder` and hands them to `put`, each range once: whole tensors, or pieces of them in order.
///
/// F32, F16 and BF16 are read. The padding of the vocabulary is never put. Names are known with and without the base
/// model's prefix. Passed over are the head of a tied model, which is the embedding whatever the file holds, and
/// constants of older versions (causal masks, rotary frequencies).
///
/// # Errors
/// Before anything is put: `Invalid`, naming tensor, file and shapes, where the folder has no weights or they do not
/// fit `config`; `Corrupt` where a file or the index contradicts itself. Meanwhile: the system's failure to read.
pub fn read_weights(
    folder: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    put: &mut dyn FnMut(Span, &[f32]),
) -> Result<()> {
    Weights::open(folder, config)?.read(&mapping(config, parameters), put)
}

/// The checked headers of a folder's weights.
pub(super) struct Weights {
    shards: Vec<Shard>,
    /// For each tensor, by its name without prefix: the shard and the name there.
    places: BTreeMap<String, (usize, String)>,
    family: Family,
}

impl Weights {
    /// Reads all headers.
    ///
    /// # Errors
    /// As [`read_weights`], before anything is put, but for shapes.
    pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), places: BTreeMap::new(), family: config.family };
        for (file, promised) in files(folder)? {
            let shard = Shard::open(&folder.join(&file))?;
            if let Some(absent) = promised.iter().find(|name| shard.find(name).is_none()) {
                let index = folder.join(INDEX_FILE);
                return Err(Error::corrupt(format!("{}: {absent} is not in {file}", index.display())));
            }
            weights.add(shard, config)?;
        }
        Ok(weights)
    }

    fn add(&mut self, shard: Shard, config: &ModelConfig) -> Result<()> {
        for name in shard.names() {
            let bare = bare_name(self.family, &name);
            if is_ignored(config, bare) {
                continue;
            }
            if self.places.insert(bare.to_owned(), (self.shards.len(), name.clone())).is_some() {
                return Err(Error::corrupt(format!(
                    "{}: {name} is there a second time",
                    shard.path().display()
                )));
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Holds the headers against the mapping and reads all tensors.
    ///
    /// # Errors
    /// As [`read_weights`].
    pub(super) fn read(&self, mapping: &[Mapped], put: &mut dyn FnMut(Span, &[f32])) -> Result<()> {
        let places = self.check(mapping)?;
        for (mapped, (shard, name)) in mapping.iter().zip(places) {
            let shard = &self.shards[*shard];
            if mapped.transposed {
                let transposed = read_transposed(shard, name, mapped)?;
                put(mapped.target, &transposed);
            } else {
                let mut piece = |first, values: &[f32]| put(mapped.target.part(first, values.len()), values);
                shard.read(name, &mut piece)?;
            }
        }
        Ok(())
    }

    /// The place of each mapped tensor, once all are there, well shaped, and no others.
    pub(super) fn check(&self, mapping: &[Mapped]) -> Result<Vec<&(usize, String)>> {
        let places: Vec<_> = mapping.iter().filter_map(|mapped| self.place(mapped)).collect();
        if places.len() < mapping.len() {
            return Err(self.missing(mapping));
        }
        for (mapped, (shard, name)) in mapping.iter().zip(&places) {
            let shard = &self.shards[*shard];
            let info = shard.find(name).expect("a place names a tensor of its shard");
            check_tensor(mapped, info)
                .map_err(|error| error.within(format!("{}: {name}", shard.path().display())))?;
        }
        match self.places.len() - places.len() {
            0 => Ok(places),
            _ => Err(self.extra(mapping)),
        }
    }

    fn place(&self, mapped: &Mapped) -> Option<&(usize, String)> {
        self.places.get(bare_name(self.family, &mapped.name))
    }

    fn missing(&self, mapping: &[Mapped]) -> Error {
        let missing: Vec<_> = mapping.iter().filter(|mapped| self.place(mapped).is_none()).collect();
        let others = |count: usize| if count > 0 { format!(" (and {count} more)") } else { String::new() };
        Error::invalid(format!(
            "{} {:?}{} is missing from {}{}: the weights do not fit config.json",
            missing[0].name,
            missing[0].shape,
            others(missing.len() - 1),
            self.shards[0].path().display(),
            others(self.shards.len() - 1),
        ))
    }

    fn extra(&self, mapping: &[Mapped]) -> Error {
        let mut known: Vec<_> = mapping.iter().map(|mapped| bare_name(self.family, &mapped.name)).collect();
        known.sort_unstable();
        let extra = self.places.iter().find(|(name, _)| known.binary_search(&name.as_str()).is_err());
        let (_, (shard, name)) = extra.expect("there are more places than mapped tensors");
        let shard = &self.shards[*shard];
        let shape = shard.find(name).map(|info| info.shape.clone()).unwrap_or_default();
        Error::invalid(format!(
            "{}: {name} {shape:?} has no place in the model that config.json describes",
            shard.path().display()
        ))
    }
}

fn check_tensor(mapped: &Mapped, info: &TensorInfo) -> Result<()> {
    if info.shape != mapped.shape {
        return Err(Error::invalid(format!(
            "the shape is {:?}, and by config.json it is {:?}",
            info.shape, mapped.shape
        )));
    }
    match element_bytes(info.dtype) {
        Some(_) => Ok(()),
        None => Err(Error::invalid(unsupported(info.dtype))),
    }
}

/// `[rows, columns]` of the file as `[columns, rows]`.
fn read_transposed(shard: &Shard, name: &str, mapped: &Mapped) -> Result<Vec<f32>> {
    let [rows, columns] = mapped.shape[..] else { unreachable!("only matrices are transposed") };
    let mut transposed = vec![0.0; mapped.target.len];
    shard.read(name, &mut |first, values| {
        for (index, value) in values.iter().enumerate() {
            let (row, column) = ((first + index) / columns, (first + index) % columns);
            transposed[column * rows + row] = *value;
        }
    })?;
    Ok(transposed)
}

/// The files that hold the weights, each with the tensors that the index promises of it: the single file where there
/// is one, as in transformers, else the index's.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    if folder.join(SINGLE_FILE).exists() {
        return Ok(BTreeMap::from([(SINGLE_FILE.to_owned(), Vec::new())]));
    }
    let index = folder.join(INDEX_FILE);
    if index.exists() {
        return read_index(&index);
    }
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    let found = match pickled.iter().find(|name| folder.join(name).exists()) {
        Some(name) => {
            format!("only {name}, which is not read: convert it to safetensors (save_pretrained does)")
        }
        None => format!("neither {SINGLE_FILE} nor {INDEX_FILE}"),
    };
    Err(Error::invalid(format!("{} has {found}", folder.display())))
}

fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let damaged = |text: String| Error::corrupt(format!("{}: {text}", path.display()));
    let bytes = read_bounded(path, LONGEST_INDEX_BYTES)?;
    let fields = Fields::parse(&bytes, path.display().to_string())
        .map_err(|error| damaged("this is no index".into()).with_source(error))?;
    let Some(map) = fields.given("weight_map").and_then(serde_json::Value::as_object) else {
        return Err(damaged("it has no object weight_map".into()));
    };
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        match file.as_str().filter(|name| is_plain_name(name)) {
            Some(name) => files.entry(name.to_owned()).or_default().push(tensor.clone()),
            None => {
                return Err(damaged(format!(
                    "{tensor} is said to be in {file}, which is no plain file name"
                )));
            }
        }
    }
    if files.is_empty() || files.len() > MOST_SHARDS {
        return Err(damaged(format!("it names {} files: 1 to {MOST_SHARDS} are supported", files.len())));
    }
    Ok(files)
}

/// Whether the name is a single component, and so leads to a file right in its folder.
fn is_plain_name(name: &str) -> bool {
    Path::new(name).components().next() == Some(Component::Normal(name.as_ref())) && !name.contains('\0')
}
