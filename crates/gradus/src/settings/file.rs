//! A settings file as a list of values, each with the line on which it stands.
//!
//! The tree of the file is walked beside the tree of the defaults, so that a key is known or unknown at the place where
//! it is written, whatever quotes and dots it is made of.

use super::convert;
use gradus_error::{Error, IoContext, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// No settings file is larger: a bound on what is read on another's word.
const LARGEST_BYTES: u64 = 1 << 20;

/// One value that a file gives.
#[derive(Debug)]
pub struct Given {
    /// Its names from the outside in.
    pub path: Vec<String>,
    /// The value, already of the default's type.
    pub value: Value,
    /// The line of its key, from 1.
    pub line: usize,
}

/// The values that `file` gives, in the order of the file.
///
/// # Errors
/// `Invalid` with file and line for a file that is missing, too large, not UTF-8, not TOML, or that has a key that
/// `defaults` does not have or a value of another type; else the system's failure to read.
pub fn read(file: &Path, defaults: &Table) -> Result<Vec<Given>> {
    let describe = || format!("cannot read {}", file.display());
    let mut bytes = Vec::new();
    File::open(file).context(describe)?.take(LARGEST_BYTES + 1).read_to_end(&mut bytes).context(describe)?;
    if bytes.len() as u64 > LARGEST_BYTES {
        return Err(Error::invalid(format!("{} is larger than 1 MiB: no settings file is", file.display())));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::invalid(format!("{} is not UTF-8", file.display())).with_source(error))?;
    parse(file, &text, defaults)
}

/// As [`read`], from `text`; `file` is only named in messages.
///
/// # Errors
/// As [`read`], without the system's failures.
pub fn parse(file: &Path, text: &str, defaults: &Table) -> Result<Vec<Given>> {
    let table = DeTable::parse(text).map_err(|error| syntax_error(file, text, &error))?;
    let mut walk = Walk { file, text, given: Vec::new(), path: Vec::new() };
    walk.table(table.get_ref(), defaults, defaults)?;
    walk.given.sort_by_key(|given| given.line);
    Ok(walk.given)
}

struct Walk<'a> {
    file: &'a Path,
    text: &'a str,
    given: Vec<Given>,
    path: Vec<String>,
}

impl Walk<'_> {
    /// Takes what `table` gives for `section`, a part of `all`.
    fn table(&mut self, table: &DeTable<'_>, section: &Table, all: &Table) -> Result<()> {
        for (key, value) in table {
            let line = line_of(self.text, key.span().start);
            self.path.push(key.get_ref().to_string());
            match (section.get(key.get_ref().as_ref()), value.get_ref()) {
                (None, _) => return Err(self.refuse(line, &super::unknown_key(&self.path, all))),
                (Some(Value::Table(inner)), DeValue::Table(table)) => self.table(table, inner, all)?,
                (Some(Value::Table(inner)), _) => {
                    return Err(self.refuse(line, &super::section_as_value(&self.path, inner)));
                }
                (Some(default), found) => {
                    let converted = owned(found).and_then(|found| convert::from_file(default, found));
                    let wrong = |reason| self.refuse(line, &format!("`{}`: {reason}", self.path.join(".")));
                    let value = converted.map_err(wrong)?;
                    self.given.push(Given { path: self.path.clone(), value, line });
                }
            }
            self.path.pop();
        }
        Ok(())
    }

    fn refuse(&self, line: usize, reason: &str) -> Error {
        Error::invalid(format!("{}:{line}: {reason}", self.file.display()))
    }
}

/// A parsed value without its spans. TOML bounds nesting at 80 levels, so this recursion is bounded.
fn owned(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            let digits = i64::from_str_radix(number.as_str(), number.radix());
            Value::Integer(digits.map_err(|_| format!("{number} does not fit 64 bits"))?)
        }
        DeValue::Float(number) => {
            Value::Float(number.as_str().parse().map_err(|_| format!("{number} is no number"))?)
        }
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(value) => Value::Datetime(*value),
        DeValue::Array(elements) => {
            Value::Array(elements.iter().map(|element| owned(element.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), owned(value.get_ref())?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}

/// The line, from 1, on which the byte at `offset` stands.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// File, line and column of a mistake in the syntax, with the line itself and a mark beneath it.
fn syntax_error(file: &Path, text: &str, error: &toml::de::Error) -> Error {
    let offset = error.span().map_or(text.len(), |span| span.start).min(text.len());
    let line_number = line_of(text, offset);
    let start = text.as_bytes()[..offset].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    let column = String::from_utf8_lossy(&text.as_bytes()[start..offset]).chars().count() + 1;
    let gutter = line_number.to_string();
    let blank = " ".repeat(gutter.len());
    // Control characters, tabs among them, would misplace the mark or upset the terminal.
    let line: String = line.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    Error::invalid(format!(
        "{}:{line_number}:{column}: {}\n{blank} |\n{gutter} | {line}\n{blank} | {}^",
        file.display(),
        error.message().replace('\n', ", "),
        " ".repeat(column.min(201) - 1),
    ))
}
