//! Values read by the type of the default that they replace.
//!
//! The default is the schema: a key whose default is a float takes floats (and integers, which mean the same), one whose
//! default is an array takes arrays, and so on. What a type cannot say (an enumeration's words, a number's range) is
//! found later, by deserialising.

use super::parse_bytes;
use toml::Value;

/// What a value of this type is called in a message.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a section",
    }
}

/// A value from a file, as the type of `default`.
///
/// # Errors
/// A sentence that says what was expected and what was found.
pub fn from_file(default: &Value, found: Value) -> Result<Value, String> {
    match (default, found) {
        (Value::Float(_), Value::Integer(number)) => Ok(Value::Float(number as f64)),
        (Value::Array(defaults), Value::Array(found)) => {
            let elements = found.into_iter().map(|element| match defaults.first() {
                Some(default) => from_file(default, element),
                None => Ok(element),
            });
            Ok(Value::Array(elements.collect::<Result<_, _>>()?))
        }
        (Value::Integer(_), Value::String(text)) => {
            size(&text).ok_or_else(|| expected(default, &shown(&Value::String(text))))
        }
        // A choice of true, false or nothing: nothing is the empty string, for TOML has no other.
        (Value::String(empty), Value::Boolean(choice)) if empty.is_empty() => {
            Ok(Value::String(choice.to_string()))
        }
        (Value::Table(_), found @ Value::Table(_)) => Ok(found),
        (default, found) if default.same_type(&found) => Ok(found),
        (default, found) => Err(expected(default, &shown(&found))),
    }
}

/// The text of a command line's value, as the type of `default`.
///
/// # Errors
/// A sentence that says what was expected and what was found.
pub fn from_text(default: &Value, text: &str) -> Result<Value, String> {
    let refuse = || expected(default, &format!("`{text}`"));
    match default {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Integer(_) => {
            let number = text.trim().replace('_', "").parse().map(Value::Integer);
            number.ok().or_else(|| size(text)).ok_or_else(refuse)
        }
        Value::Float(_) => text.trim().replace('_', "").parse().map(Value::Float).map_err(|_| refuse()),
        Value::Boolean(_) => text.trim().parse().map(Value::Boolean).map_err(|_| refuse()),
        Value::Datetime(_) => text.trim().parse().map(Value::Datetime).map_err(|_| refuse()),
        Value::Array(elements) => array_from_text(default, elements, text),
        Value::Table(_) => Err(refuse()),
    }
}

/// A size with its unit, such as `24MB`, as the number of bytes.
fn size(text: &str) -> Option<Value> {
    // Without a unit it is a number like any other, and no number of bytes or steps has a fraction.
    text.trim().ends_with(|last: char| last.is_ascii_alphabetic()).then_some(())?;
    i64::try_from(parse_bytes(text).ok()?).ok().map(Value::Integer)
}

/// `[...]` as TOML has it, else elements between commas, each read as the default's first element (as strings where the
/// default has none). Nothing at all is the empty array.
fn array_from_text(default: &Value, elements: &[Value], text: &str) -> Result<Value, String> {
    let text = text.trim();
    if text.starts_with('[') {
        let parsed = parse_value(text).ok_or_else(|| expected(default, &format!("`{text}`")))?;
        return from_file(default, parsed);
    }
    if text.is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    let element = elements.first().cloned().unwrap_or_else(|| Value::String(String::new()));
    text.split(',').map(|part| from_text(&element, part.trim())).collect::<Result<_, _>>().map(Value::Array)
}

/// One value in TOML's syntax, or nothing.
fn parse_value(text: &str) -> Option<Value> {
    let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    // A line feed in the text could have smuggled in further keys.
    if table.len() == 1 { table.remove("value") } else { None }
}

fn expected(default: &Value, found: &str) -> String {
    let hint = match default {
        Value::String(text) if !text.is_empty() => format!(" such as \"{text}\""),
        Value::Array(_) => " such as x,y or [x, y]".to_owned(),
        _ => String::new(),
    };
    format!("expected {}{hint}, found {found}", type_name(default))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) | Value::Array(_) => type_name(value).to_owned(),
        Value::String(text) if text.chars().count() > 60 => "a long string".to_owned(),
        Value::String(text) => format!("the string {text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_a_float_but_no_integer_is_a_float() {
        assert_eq!(from_file(&Value::Float(0.5), Value::Integer(2)), Ok(Value::Float(2.0)));
        assert!(from_file(&Value::Integer(1), Value::Float(2.0)).unwrap_err().contains("found 2.0"));
        let betas = Value::Array(vec![Value::Float(0.9), Value::Float(0.95)]);
        let given = Value::Array(vec![Value::Integer(0), Value::Float(0.5)]);
        assert_eq!(from_file(&betas, given), Ok(Value::Array(vec![Value::Float(0.0), Value::Float(0.5)])));
    }

    #[test]
    fn text_is_read_by_the_type_of_the_default() {
        let array = |values: &[i64]| Value::Array(values.iter().map(|v| Value::Integer(*v)).collect());
        assert_eq!(from_text(&Value::Integer(0), "1_000"), Ok(Value::Integer(1000)));
        assert_eq!(from_text(&Value::Integer(0), "24MB"), Ok(Value::Integer(24_000_000)));
        assert_eq!(from_file(&Value::Integer(0), Value::String("1KiB".into())), Ok(Value::Integer(1024)));
        assert_eq!(from_text(&Value::Float(0.0), "3e-4"), Ok(Value::Float(3e-4)));
        assert_eq!(from_text(&Value::Boolean(false), "true"), Ok(Value::Boolean(true)));
        assert_eq!(from_text(&Value::String(String::new()), "12"), Ok(Value::String("12".into())));
        assert_eq!(from_text(&array(&[7]), "1, 2"), Ok(array(&[1, 2])));
        assert_eq!(from_text(&array(&[7]), "[1, 2]"), Ok(array(&[1, 2])));
        assert_eq!(from_text(&array(&[7]), ""), Ok(array(&[])));
        let words = Value::Array(vec!["a".into(), "b".into()]);
        assert_eq!(from_text(&Value::Array(Vec::new()), "a,b"), Ok(words));
    }

    #[test]
    fn wrong_text_says_what_was_expected() {
        assert_eq!(from_text(&Value::Integer(0), "six").unwrap_err(), "expected an integer, found `six`");
        assert!(from_text(&Value::Boolean(false), "yes").unwrap_err().starts_with("expected true or false"));
        assert!(from_text(&Value::Array(Vec::new()), "[1\nother = 2").is_err());
        assert!(from_text(&Value::Array(Vec::new()), "[1]\nother = 2").is_err());
    }
}
