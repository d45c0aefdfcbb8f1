//! Resolved settings as a TOML file that gives the same settings again, each line saying where its value came from.

use super::{Origin, Resolved, default_table};
use gradus_error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use toml::{Table, Value};

/// Every key with its value, sections after the plain keys of their parent, and `# from ...` in one column per section.
///
/// # Errors
/// `Internal` if the settings cannot be written as a TOML table.
pub fn render<T: Serialize + Default>(resolved: &Resolved<T>) -> Result<String> {
    let table = Table::try_from(&resolved.settings)
        .map_err(|error| Error::internal("the settings are no TOML table").with_source(error))?;
    let order = default_table::<T>()?;
    let mut text = String::new();
    section(&mut text, "", &table, &order, &resolved.origins);
    Ok(text)
}

fn section(text: &mut String, name: &str, table: &Table, order: &Table, origins: &BTreeMap<String, Origin>) {
    let dotted = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    let values: Vec<_> = table.iter().filter(|(_, value)| !value.is_table()).collect();
    if !values.is_empty() {
        open_section(text, name);
    }
    let lines = values.iter().map(|(key, value)| (format!("{} = {}", bare(key), inline(value)), dotted(key)));
    let lines: Vec<_> = lines.collect();
    // One very long value must not push every comment off the screen.
    let width =
        lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    for (line, key) in lines {
        let origin = origins.get(&key).unwrap_or(&Origin::Default);
        let _ = writeln!(text, "{line:width$}  # from {}", comment(&origin.to_string()));
    }
    for (key, value) in table {
        if let (Value::Table(inner), Some(Value::Table(order))) = (value, order.get(key)) {
            section(text, &dotted(&bare(key)), inner, order, origins);
        }
    }
}

fn open_section(text: &mut String, name: &str) {
    if name.is_empty() {
        return;
    }
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(text, "{gap}[{name}]");
}

/// A key, in quotes where TOML wants them.
fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { quoted(key) }
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Float(number) => float(*number),
        Value::Array(elements) => {
            let elements: Vec<_> = elements.iter().map(inline).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            let entries: Vec<_> =
                table.iter().map(|(key, value)| format!("{} = {}", bare(key), inline(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// The shortest decimal that reads back as `number`. A setting of type f32 arrives widened (0.1 as 0.10000000149011612):
/// it is written as the f32 that it is.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "nan".to_owned()
        } else {
            format!("{}inf", if number < 0.0 { "-" } else { "" })
        };
    }
    let narrow = number as f32;
    if f64::from(narrow) == number { format!("{narrow:?}") } else { format!("{number:?}") }
}

/// A basic string (TOML 1.0, "String"), its control characters escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A path may hold anything; a comment must end where its line ends.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
