//! Settings: defaults, a TOML file and the command line become one value whose every part knows where it came from.
//!
//! The schema is the serialised default of the settings' own type: its keys are the known keys, its values' types are
//! the types that a file or a `--section.key value` must give. So a settings type is a plain serde structure with a
//! `Default`, and nothing is said twice. Whatever the types cannot say (an enumeration's words, a number's range) is
//! said by deserialising, and the value at fault is found by trying each one alone.
//!
//! Invariant: a failure is `Invalid` and names the file and line, or the flag, that is to be mended.

mod convert;
mod file;
mod render;
#[cfg(test)]
mod tests;

pub use gradus_host::units::{parse_bytes, parse_duration};
pub use render::render;

use gradus_error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// A file gave it.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line of its key, from 1.
        line: usize,
    },
    /// `--section.key value` gave it.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Settings, and where each of them came from.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The settings.
    pub settings: T,
    /// The origin of every key, by its dotted name.
    pub origins: BTreeMap<String, Origin>,
}

/// Settings from `T`'s defaults, over them the values of `file`, over them `overrides`: pairs of a dotted key and the
/// text of its value, the last of a key counting, but for lists, which are joined.
///
/// # Errors
/// `Invalid`, naming file and line or flag, for a key that `T`'s default does not have (with the nearest that it does
/// have), a value of another type, or one that `T` refuses; else the system's failure to read the file. `Internal` if
/// `T`'s default cannot be written as a TOML table.
pub fn resolve<T>(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Resolved<T>>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults = default_table::<T>()?;
    let mut given = Vec::new();
    if let Some(path) = file {
        given
            .extend(file::read(path, &defaults)?.into_iter().map(|value| Assignment::from_file(path, value)));
    }
    for (key, text) in overrides {
        given.push(Assignment::from_command_line(&defaults, key, text)?);
    }
    let mut merged = defaults.clone();
    let mut origins: BTreeMap<_, _> = keys(&defaults).into_iter().map(|key| (key, Origin::Default)).collect();
    join_repeated_lists(&mut given);
    for assignment in &given {
        set(&mut merged, &assignment.path, assignment.value.clone());
        origins.insert(assignment.path.join("."), assignment.origin.clone());
    }
    let settings =
        Value::Table(merged).try_into().map_err(|error| culprit::<T>(&defaults, &given, &error))?;
    Ok(Resolved { settings, origins })
}

/// A list that the command line gives several times is one list: `--data.input a --data.input b`. The last holds all.
fn join_repeated_lists(given: &mut [Assignment]) {
    for index in 1..given.len() {
        let (before, rest) = given.split_at_mut(index);
        let own = &mut rest[0];
        let earlier =
            before.iter().rev().find(|earlier| earlier.path == own.path && earlier.origin == own.origin);
        if let (Origin::CommandLine, Some(Value::Array(first)), Value::Array(second)) =
            (&own.origin, earlier.map(|earlier| &earlier.value), &own.value)
        {
            own.value = Value::Array(first.iter().chain(second).cloned().collect());
        }
    }
}

/// One value given from outside.
struct Assignment {
    path: Vec<String>,
    value: Value,
    origin: Origin,
}

impl Assignment {
    fn from_file(path: &Path, given: file::Given) -> Self {
        let origin = Origin::File { path: path.to_owned(), line: given.line };
        Self { path: given.path, value: given.value, origin }
    }

    fn from_command_line(defaults: &Table, key: &str, text: &str) -> Result<Self> {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let refuse = |reason: String| Error::invalid(format!("--{key}: {reason}"));
        match lookup(defaults, &path) {
            None => Err(refuse(unknown_key(&path, defaults))),
            Some(Value::Table(section)) => Err(refuse(section_as_value(&path, section))),
            Some(default) => {
                let value = convert::from_text(default, text).map_err(refuse)?;
                Ok(Self { path, value, origin: Origin::CommandLine })
            }
        }
    }

    /// How a message names it.
    fn name(&self) -> String {
        match &self.origin {
            Origin::File { .. } => format!("{}: `{}`", self.origin, self.path.join(".")),
            Origin::CommandLine | Origin::Default => format!("--{}", self.path.join(".")),
        }
    }
}

fn default_table<T: Serialize + Default>() -> Result<Table> {
    Table::try_from(T::default())
        .map_err(|error| Error::internal("the default settings are no TOML table").with_source(error))
}

/// The failure of the first value that `T` refuses even alone, the last one given of each key counting; else of all
/// together.
fn culprit<T: DeserializeOwned>(defaults: &Table, given: &[Assignment], whole: &toml::de::Error) -> Error {
    for (index, assignment) in given.iter().enumerate() {
        let overridden = given[index + 1..].iter().any(|later| later.path == assignment.path);
        let mut alone = defaults.clone();
        set(&mut alone, &assignment.path, assignment.value.clone());
        if let (false, Err(error)) = (overridden, Value::Table(alone).try_into::<T>()) {
            return Error::invalid(format!("{}: {}", assignment.name(), one_line(error.message())));
        }
    }
    let names: Vec<_> = given.iter().map(Assignment::name).collect();
    Error::invalid(format!(
        "settings contradict each other: {} ({})",
        one_line(whole.message()),
        names.join(", ")
    ))
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', ", ")
}

/// Puts `value` at `path`, whose sections exist since it was found among the defaults.
fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), value)),
        [section, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                set(inner, rest, value);
            }
        }
    }
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    match (table.get(first)?, rest) {
        (value, []) => Some(value),
        (Value::Table(inner), rest) => lookup(inner, rest),
        _ => None,
    }
}

/// Every key that holds a value, by its dotted name.
fn keys(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => found.extend(keys(inner).into_iter().map(|rest| format!("{key}.{rest}"))),
            _ => found.push(key.clone()),
        }
    }
    found
}

/// A sentence on a key that nobody knows, with the nearest one that is known.
fn unknown_key(path: &[String], defaults: &Table) -> String {
    let name = path.join(".");
    let shown: String = name.chars().take(100).collect();
    match nearest(&name, &keys(defaults)) {
        Some(near) => format!("there is no setting `{shown}`; did you mean `{near}`?"),
        None => format!("there is no setting `{shown}`; `gradus config` lists all there are"),
    }
}

/// The known key that is most like `name`: by its whole name, or by its last part where that is in another section.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    // Comparing costs time in proportion to both lengths: no key that is this long is like a known one.
    if name.len() > 200 {
        return None;
    }
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &str| {
        let whole = strsim::jaro_winkler(name, key);
        let part = strsim::normalized_damerau_levenshtein(&last(name), &last(key));
        // A little less than whole likeness, so that the same key in the section that was meant wins.
        whole.max(0.95 * part)
    };
    let best = known.iter().map(|key| (likeness(key), key)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    // Below this, Jaro-Winkler pairs words that have only some letters in common.
    (best.0 > 0.7).then_some(best.1.as_str())
}

/// A sentence on a section that was given as if it were one value.
fn section_as_value(path: &[String], section: &Table) -> String {
    let names: Vec<_> = section.keys().take(8).map(|key| format!("`{}.{key}`", path.join("."))).collect();
    format!("`{}` is a section, not a value: it has {}", path.join("."), names.join(", "))
}
