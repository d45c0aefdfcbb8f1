//! Profiles: `~/.aws/config` and `~/.aws/credentials`, as Amazon's tools read them.
//!
//! Sections are `[default]` and `[NAME]` in the credentials, `[default]` and `[profile NAME]` in the config; the
//! credentials count before the config. A key without a value begins a group whose indented lines belong to it, and is read as
//! `group.key`. Reference: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".

use super::environment::Environment;
use gradus_error::{Error, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Largest file that is read.
const FILE_BYTES: u64 = 1 << 20;

/// Longest key: that of a group stands before each of its keys.
const KEY_BYTES: usize = 256;

type Section = BTreeMap<String, String>;

/// One profile, of both files.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Profile {
    pub(super) name: String,
    /// Which file has its keys, for messages.
    pub(super) file: String,
    values: Section,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Some values are secrets.
        f.debug_struct("Profile").field("name", &self.name).field("keys", &self.values.keys()).finish()
    }
}

impl Profile {
    /// Reads the profile of this name; an empty one is that of the environment, or `default`. `None` where nobody named
    /// one and there is none.
    ///
    /// # Errors
    /// `Invalid` for a profile that was named and is nowhere, and for a file that cannot be understood; the system's failure
    /// to read.
    pub(super) fn read(named: &str, environment: &Environment) -> Result<Option<Self>> {
        let chosen = (!named.is_empty()).then_some((named, "bucket.profile"));
        let chosen = chosen
            .or_else(|| Some((environment.get("AWS_PROFILE")?, "AWS_PROFILE")))
            .or_else(|| Some((environment.get("AWS_DEFAULT_PROFILE")?, "AWS_DEFAULT_PROFILE")));
        let name = chosen.map_or("default", |(name, _)| name);
        let (credentials_file, config_file) = (
            place(environment, "AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            place(environment, "AWS_CONFIG_FILE", "config"),
        );
        let config = sections(config_file.as_deref())?;
        let credentials = sections(credentials_file.as_deref())?;
        let of_config = config
            .get(&format!("profile {name}"))
            .or_else(|| (name == "default").then(|| config.get(name))?);
        let of_credentials = credentials.get(name);
        if of_config.is_none() && of_credentials.is_none() {
            let told = |path: &Option<PathBuf>| {
                path.as_deref().map_or("none".to_owned(), |path| path.display().to_string())
            };
            return match chosen {
                None => Ok(None),
                Some((_, from)) => Err(Error::invalid(format!(
                    "the profile `{name}` ({from}) is neither in {} nor in {}",
                    told(&credentials_file),
                    told(&config_file)
                ))),
            };
        }
        let holds_keys = of_credentials.is_some_and(|section| section.contains_key("aws_access_key_id"));
        let file = if holds_keys || of_config.is_none() { &credentials_file } else { &config_file };
        let file = file.as_deref().map_or_else(String::new, |path| path.display().to_string());
        let mut values = of_config.cloned().unwrap_or_default();
        values.extend(of_credentials.cloned().unwrap_or_default());
        if let Some(services) =
            values.get("services").and_then(|name| config.get(&format!("services {name}")))
        {
            values.extend(services.iter().map(|(key, value)| (format!("services.{key}"), value.clone())));
        }
        Ok(Some(Self { name: name.to_owned(), file, values }))
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// For messages.
    pub(super) fn who(&self) -> String {
        format!("the credentials of profile `{}` in {}", self.name, self.file)
    }
}

/// Where a file is: as a variable says, or in the folder that tools share.
fn place(environment: &Environment, variable: &str, name: &str) -> Option<PathBuf> {
    let home = || environment.get("HOME").or_else(|| environment.get("USERPROFILE"));
    match environment.get(variable) {
        Some(path) => match path.strip_prefix("~/") {
            Some(rest) => Some(Path::new(home()?).join(rest)),
            None => Some(PathBuf::from(path)),
        },
        None => Some(Path::new(home()?).join(".aws").join(name)),
    }
}

/// The sections of a file; a file that is not there has none.
fn sections(path: Option<&Path>) -> Result<BTreeMap<String, Section>> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let failure = || format!("cannot read {}", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Error::io(failure(), error)),
        Ok(metadata) if metadata.len() > FILE_BYTES => {
            return Err(Error::invalid(format!("{} is too large for a file of profiles", path.display())));
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(failure(), error))?;
    parse(&text).map_err(|error| error.within(path.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, Section>> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let (mut section, mut group): (Option<String>, Option<String>) = (None, None);
    for (number, line) in text.lines().enumerate() {
        let bad = |why: &str| Error::invalid(format!("line {}: {why}", number + 1));
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            let (name, _) = rest.split_once(']').ok_or_else(|| bad("a section's name lacks its `]`"))?;
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            let name = name.replace(['"', '\''], "");
            sections.entry(name.clone()).or_default();
            (section, group) = (Some(name), None);
            continue;
        }
        let Some(values) = section.as_ref().and_then(|name| sections.get_mut(name)) else {
            return Err(bad("stands before the first section"));
        };
        let (key, value) = trimmed.split_once('=').ok_or_else(|| bad("is no `key = value`"))?;
        let (key, value) = (key.trim().to_ascii_lowercase(), without_comment(value));
        if key.len() > KEY_BYTES {
            return Err(bad("has a key that is too long"));
        }
        let indented = line.starts_with([' ', '\t']);
        let key = match &group {
            Some(group) if indented => format!("{group}.{key}"),
            _ => {
                group = value.is_empty().then(|| key.clone());
                key
            }
        };
        values.insert(key, value.to_owned());
    }
    Ok(sections)
}

/// Whether a text is a file of profiles.
pub(super) fn is_understood(text: &str) -> bool {
    parse(text).is_ok()
}

/// A value ends before ` #` or ` ;`.
fn without_comment(value: &str) -> &str {
    let end = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
    value[..end.unwrap_or(value.len())].trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn environment(home: &Path, more: &[(&str, &str)]) -> Environment {
        let home = home.display().to_string();
        Environment::read(&|name| match name {
            "HOME" => Some(home.clone()),
            _ => more.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
        })
    }

    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(home.path().join(".aws").join(name), text).unwrap();
        write(
            "config",
            "# a comment\n[default]\nregion = eu-central-1 # here\n\n[profile lab]\nregion=eu-west-1\nservices = mine\n\
             s3 =\n  addressing_style = path\noutput = json\n[services mine]\ns3 =\n  endpoint_url = http://here:1\n",
        );
        write(
            "credentials",
            "[default]\naws_access_key_id = A\naws_secret_access_key = B=C+/#D\n[ lab ]\naws_access_key_id=E\n",
        );
        home
    }

    #[test]
    fn profiles_are_put_together_of_both_files() {
        let home = home();
        let default = Profile::read("", &environment(home.path(), &[])).unwrap().unwrap();
        assert_eq!(default.get("region"), Some("eu-central-1"));
        assert_eq!(default.get("aws_secret_access_key"), Some("B=C+/#D"));
        let lab = Profile::read("", &environment(home.path(), &[("AWS_PROFILE", "lab")])).unwrap().unwrap();
        assert_eq!((lab.get("region"), lab.get("aws_access_key_id")), (Some("eu-west-1"), Some("E")));
        assert_eq!((lab.get("s3.addressing_style"), lab.get("output")), (Some("path"), Some("json")));
        assert_eq!(lab.get("services.s3.endpoint_url"), Some("http://here:1"));
        assert!(lab.who().contains("`lab`") && lab.who().contains("credentials"));
        let named =
            Profile::read("lab", &environment(home.path(), &[("AWS_PROFILE", "default")])).unwrap().unwrap();
        assert_eq!(named, lab, "the setting counts before the variable");
    }

    #[test]
    fn a_profile_that_was_named_must_be_there() {
        let home = home();
        for (named, variables) in [("none", vec![]), ("", vec![("AWS_PROFILE", "none")])] {
            let error = Profile::read(named, &environment(home.path(), &variables)).unwrap_err();
            assert_eq!(error.kind(), &Kind::Invalid);
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Profile::read("", &environment(empty.path(), &[])).unwrap(), None);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_with_its_line() {
        let long = format!("[default]\n{} = value\n", "k".repeat(KEY_BYTES + 1));
        for text in ["key = value\n", "[default\n", "[default]\nnonsense\n", &long] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), &Kind::Invalid);
        }
        assert!(parse(&long.replacen('k', "", 1)).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_is_fatal(text in "(\\[[a-z ]*\\]|[a-z]* ?= ?[a-z#; ]*|\\PC{0,8}|[ \t]+a=b|\n){0,30}") {
            let _ = parse(&text);
        }
    }
}
