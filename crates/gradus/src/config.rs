//! `gradus config`: the settings of a file as a run would see them.

use crate::settings::{render, resolve};
use gradus_error::{IoContext, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::io::Write;
use std::path::Path;

/// Writes every setting with its value and where it came from to `out`, as TOML that gives the same settings again.
///
/// # Errors
/// As [`resolve`]; the system's failure to write.
pub fn print_config<T>(out: &mut dyn Write, file: Option<&Path>, overrides: &[(String, String)]) -> Result<()>
where
    T: Serialize + DeserializeOwned + Default,
{
    let text = render(&resolve::<T>(file, overrides)?)?;
    out.write_all(text.as_bytes()).context(|| "cannot write the settings".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Settings {
        layers: usize,
    }

    #[test]
    fn what_is_printed_is_valid_toml() {
        let mut out = Vec::new();
        print_config::<Settings>(&mut out, None, &[("layers".into(), "6".into())]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "layers = 6  # from command line\n");
        assert_eq!(toml::from_str::<Settings>(&text).unwrap().layers, 6);
    }
}
