//! Credentials as services and programs word them: JSON with keys and a time until which they are good.

use super::credentials::Found;
use gradus_error::{Error, Result};
use object_store::aws::AwsCredential;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Keys as metadata services and `credential_process` give them; the latter calls the token by its longer name.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "SessionToken")]
    token: Option<String>,
    expiration: Option<String>,
}

/// Reads what `who` describes gave.
///
/// # Errors
/// `Denied` for what holds no keys: its text says why, and is not shown, for it may hold some.
pub(super) fn read(json: &[u8], who: String) -> Result<Found> {
    let issued: Issued = serde_json::from_slice(json)
        .map_err(|error| Error::denied(format!("{who} came without keys (line {})", error.line())))?;
    let expires = match &issued.expiration {
        Some(time) => Some(since_1970(time).ok_or_else(|| {
            Error::denied(format!("{who} came with a time that is none: `{}`", time.escape_debug()))
        })?),
        None => None,
    };
    let keys = AwsCredential {
        key_id: issued.access_key_id,
        secret_key: issued.secret_access_key,
        token: issued.token.filter(|token| !token.is_empty()),
    };
    Ok(Found { keys: Arc::new(keys), who, expires })
}

/// The time since 1970 of `2030-01-31T12:00:00Z` or `2030-01-31T12:00:00+00:00`, to the second.
pub(super) fn since_1970(time: &str) -> Option<Duration> {
    let (date, clock) = time.split_once('T')?;
    let clock = clock.strip_suffix('Z').or_else(|| clock.strip_suffix("+00:00"))?;
    let clock = clock.split_once('.').map_or(clock, |(seconds, _)| seconds);
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let mut parts = text.split(by).map(|part| part.parse::<u64>().ok());
        let three = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(three)
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days of the civil calendar (Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2014): years begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn times_are_those_of_date() {
        // `date -u -d TIME +%s`.
        for (time, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-22T01:28:39+00:00", 1_795_310_919),
            ("2030-01-31T23:59:59.123Z", 1_896_134_399),
        ] {
            assert_eq!(since_1970(time), Some(Duration::from_secs(seconds)), "{time}");
        }
        for time in [
            "",
            "2030",
            "2030-13-01T00:00:00Z",
            "2030-01-01T25:00:00Z",
            "2030-01-01T00:00:00",
            "1-1-1T1:1:1Z",
        ] {
            assert_eq!(since_1970(time), None, "{time}");
        }
    }

    #[test]
    fn what_holds_no_keys_is_denied() {
        for json in [
            "",
            "{}",
            "{\"Code\":\"Failed\"}",
            "[]",
            "{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"B\",\"Expiration\":\"x\"}",
        ] {
            let error = read(json.as_bytes(), "the credentials".to_owned()).unwrap_err();
            assert_eq!(error.kind(), &Kind::Denied, "{json}");
        }
        let found = read(
            b"{\"Version\":1,\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"B\",\"SessionToken\":\"C\"}",
            String::new(),
        );
        assert_eq!(found.unwrap().keys.token.as_deref(), Some("C"));
    }
}
