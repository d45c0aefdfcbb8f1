//! What the gateway is asked and answers (etcd's `rpc.proto` as JSON: 64-bit numbers are text, bytes are base64, and what
//! is zero is left out).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Bytes, as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let decoded = STANDARD.decode(&text);
        decoded.map(Self).map_err(|_| D::Error::invalid_value(Unexpected::Str(&text), &"base64"))
    }
}

/// A 64-bit number, as text; a plain one is understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Number(pub(super) i64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl serde::de::Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a 64-bit number")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Number, E> {
        Ok(Number(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Number, E> {
        let signed = i64::try_from(number);
        signed.map(Number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
        text.parse().map(Number).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

// Requests.

#[derive(Debug, Serialize)]
pub(super) struct Range {
    pub(super) key: Bytes,
}

#[derive(Debug, Serialize)]
pub(super) struct Put {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) lease: Number,
}

#[derive(Debug, Serialize)]
pub(super) struct Transaction {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
    pub(super) failure: Vec<Operation>,
}

/// That a key was created, or written last, in a revision; one that does not exist was in revision 0.
#[derive(Debug, Serialize)]
pub(super) struct Compare {
    pub(super) key: Bytes,
    pub(super) target: &'static str,
    pub(super) result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) create_revision: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mod_revision: Option<Number>,
}

impl Compare {
    pub(super) fn created(key: &[u8], revision: i64) -> Self {
        let (key, create_revision) = (Bytes(key.to_vec()), Some(Number(revision)));
        Self { key, target: "CREATE", result: "EQUAL", create_revision, mod_revision: None }
    }

    pub(super) fn written(key: &[u8], revision: i64) -> Self {
        let (key, mod_revision) = (Bytes(key.to_vec()), Some(Number(revision)));
        Self { key, target: "MOD", result: "EQUAL", create_revision: None, mod_revision }
    }
}

#[derive(Debug, Serialize)]
pub(super) enum Operation {
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_range")]
    Range(Range),
}

#[derive(Debug, Serialize)]
pub(super) struct Grant {
    #[serde(rename = "TTL")]
    pub(super) ttl_s: Number,
}

/// Names a lease: to keep it alive, or to end it.
#[derive(Debug, Serialize)]
pub(super) struct OfLease {
    #[serde(rename = "ID")]
    pub(super) id: Number,
}

#[derive(Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

// Answers; what is not read is left out.

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default)]
    pub(super) revision: Number,
}

#[derive(Debug, Deserialize)]
pub(super) struct Ranged {
    /// What no stranger's answer has.
    #[serde(rename = "header")]
    pub(super) _header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    #[serde(default)]
    pub(super) value: Bytes,
    #[serde(default)]
    pub(super) create_revision: Number,
    #[serde(default)]
    pub(super) mod_revision: Number,
}

#[derive(Debug, Deserialize)]
pub(super) struct Transacted {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<Operated>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Operated {
    pub(super) response_range: Option<Ranged>,
}

/// A lease, as it was given or prolonged; one that has ended has no time to live.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Leased {
    #[serde(rename = "ID")]
    pub(super) id: Number,
    #[serde(rename = "TTL", default)]
    pub(super) ttl_s: Number,
}

/// The first part of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: T,
}

/// An answer of which only the arrival counts.
#[derive(Debug, Deserialize)]
pub(super) struct Done {
    #[serde(rename = "header")]
    pub(super) _header: Header,
}

#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: String,
}

/// Why something failed: a code of gRPC, and words.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub(super) code: i64,
    #[serde(default)]
    pub(super) message: String,
    /// Where gateways before 3.6 say it as well.
    #[serde(default)]
    pub(super) error: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_transaction_is_asked_and_answered_as_etcd_has_it() {
        let put = Put { key: Bytes(b"k".into()), value: Bytes(b"bar".into()), lease: Number(7) };
        let range = Range { key: Bytes(b"foo".into()) };
        let success = vec![Operation::Put(put), Operation::Range(range)];
        let compare = vec![Compare::created(b"foo", 0), Compare::written(b"k", 9)];
        let asked = serde_json::to_string(&Transaction { compare, success, failure: Vec::new() });
        assert_eq!(
            asked.unwrap(),
            r#"{"compare":[{"key":"Zm9v","target":"CREATE","result":"EQUAL","create_revision":"0"},{"key":"aw==","target":"MOD","result":"EQUAL","mod_revision":"9"}],"success":[{"request_put":{"key":"aw==","value":"YmFy","lease":"7"}},{"request_range":{"key":"Zm9v"}}],"failure":[]}"#
        );
        let answer = r#"{"header":{"cluster_id":"10144879847569953045","revision":"2"},"succeeded":true,"responses":
            [{"response_put":{"header":{"revision":"2"}}},{"response_range":{"header":{},"kvs":[{"key":"Zm9v","mod_revision":"2","value":"YmFy"}]}}]}"#;
        let Transacted { header, succeeded, responses } = serde_json::from_str(answer).unwrap();
        assert!(succeeded && header.revision == Number(2) && responses[0].response_range.is_none());
        let found = &responses[1].response_range.as_ref().unwrap().kvs[0];
        assert_eq!((found.value.0.as_slice(), found.mod_revision), (b"bar".as_slice(), Number(2)));
        let refused: Transacted = serde_json::from_str(r#"{"header":{"revision":"2"}}"#).unwrap();
        assert!(!refused.succeeded);
    }

    #[test]
    fn a_lease_that_has_ended_has_no_time_to_live() {
        let ended: Streamed<Leased> = serde_json::from_str(r#"{"result":{"header":{},"ID":"14"}}"#).unwrap();
        assert_eq!((ended.result.id, ended.result.ttl_s), (Number(14), Number(0)));
    }

    proptest! {
        #[test]
        fn foreign_answers_never_panic(text in r#"\{"(header|result|kvs|code)":[\[{}"a-zA-Z:0-9=,.-]{0,40}\}"#) {
            let _ = serde_json::from_str::<Ranged>(&text);
            let _ = serde_json::from_str::<Transacted>(&text);
            let _ = serde_json::from_str::<Streamed<Leased>>(&text);
            let _ = serde_json::from_str::<Failure>(&text);
        }
    }
}
