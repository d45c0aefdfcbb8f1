//! What a failed request means: for the caller, and for whether it is sent again.

use super::transport::Refused;
use gradus_error::{Error, Kind};
use object_store::client::HttpError;
use std::error::Error as StdError;

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) then: Then,
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: it will fail again.
    End,
    /// Nothing: what was asked for is not there.
    Missing,
    /// Send it again.
    Again,
    /// Send it again, and fewer at a time.
    Fewer,
    /// Get other credentials; then send it again, once.
    Renew,
}

/// What was being done, for messages.
#[derive(Debug, Clone)]
pub(super) struct Deed<'a> {
    /// `read`, `list`, ...
    pub(super) verb: &'a str,
    /// Of what.
    pub(super) address: &'a str,
    /// Its bucket.
    pub(super) bucket: &'a str,
    /// Whose credentials are used.
    pub(super) who: &'a str,
    /// Where requests go.
    pub(super) endpoint: &'a str,
}

impl Failure {
    pub(super) fn end(error: Error) -> Self {
        Self { error, then: Then::End }
    }

    pub(super) fn again(error: Error) -> Self {
        Self { error, then: Then::Again }
    }

    /// What the caller is told.
    pub(super) fn into_error(self) -> Error {
        self.error
    }
}

impl Deed<'_> {
    /// Judges what `object_store` reports.
    pub(super) fn failed(&self, error: object_store::Error) -> Failure {
        if let Some(refused) = beneath::<Refused>(&error) {
            return self.refused(&refused.clone());
        }
        if let Some(http) = beneath::<HttpError>(&error) {
            let text = innermost(http);
            return Failure::again(Error::unavailable(format!(
                "cannot {} {} at {}: {text}",
                self.verb, self.address, self.endpoint
            )));
        }
        match error {
            object_store::Error::InvalidPath { source } => Failure::end(
                Error::invalid(format!(
                    "cannot {} {}: a key there has parts that are empty, `.` or `..`: rename the object",
                    self.verb, self.address
                ))
                .with_source(source),
            ),
            // An answer that makes no sense: half of one, or another server's.
            other => Failure::again(
                Error::unavailable(format!(
                    "cannot {} {}: {} answered what is not S3",
                    self.verb, self.address, self.endpoint
                ))
                .with_source(other),
            ),
        }
    }

    /// Judges an answer that is no success.
    pub(super) fn refused(&self, refused: &Refused) -> Failure {
        let Self { verb, address, bucket, who, endpoint } = self;
        let code = refused.code.as_str();
        let fail = |kind: Kind, text: String, then| Failure { error: Error::new(kind, text), then };
        match (refused.status, code) {
            (_, "NoSuchBucket") => fail(
                Kind::Invalid,
                format!("cannot {verb} {address}: {endpoint} has no bucket `{bucket}`"),
                Then::End,
            ),
            (404 | 410, _) => fail(
                Kind::Invalid,
                format!("cannot {verb} {address}: there is no such object"),
                Then::Missing,
            ),
            (412, _) | (416, _) => fail(
                Kind::Corrupt,
                format!("{address} is not what it was when it was indexed: index the dataset again"),
                Then::End,
            ),
            (_, "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException") => fail(
                Kind::Denied,
                format!("cannot {verb} {address}: {who} have expired: renew them ({refused})"),
                Then::Renew,
            ),
            (501, _) => fail(
                Kind::Invalid,
                format!("cannot {verb} {address}: {endpoint} does not know how ({refused})"),
                Then::End,
            ),
            (_, "RequestTimeTooSkewed") => fail(
                Kind::Denied,
                format!("cannot {verb} {address}: the clock of this machine is wrong: set it ({refused})"),
                Then::End,
            ),
            (301 | 302 | 307 | 308, _)
            | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                let mend = match &refused.region {
                    Some(region) => format!("the bucket is in {region}: set bucket.region (or AWS_REGION)"),
                    None => "the bucket is elsewhere: set bucket.region and bucket.endpoint".to_owned(),
                };
                fail(
                    Kind::Invalid,
                    format!("cannot {verb} {address} at {endpoint}: {mend} ({refused})"),
                    Then::End,
                )
            }
            (401 | 403, _) | (400, "InvalidToken" | "InvalidAccessKeyId" | "MissingSecurityHeader") => fail(
                Kind::Denied,
                format!("cannot {verb} {address}: {who} were denied ({refused})"),
                Then::End,
            ),
            (429 | 503, _)
            | (_, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded") => fail(
                Kind::Unavailable,
                format!("cannot {verb} {address}: {endpoint} asks for fewer requests ({refused})"),
                Then::Fewer,
            ),
            (408 | 500..=599, _) | (_, "RequestTimeout" | "InternalError") => fail(
                Kind::Unavailable,
                format!("cannot {verb} {address}: {endpoint} failed ({refused})"),
                Then::Again,
            ),
            _ => fail(
                Kind::Invalid,
                format!("cannot {verb} {address}: {endpoint} refused it ({refused})"),
                Then::End,
            ),
        }
    }
}

/// An error of this type among those beneath `error`.
fn beneath<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The text of the error that lies beneath all others, which says what happened.
pub(super) fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, code: &str) -> (Kind, Then) {
        let refused = Refused { status, code: code.to_owned(), message: String::new(), region: None };
        let deed =
            Deed { verb: "read", address: "s3://b/k", bucket: "b", who: "those", endpoint: "http://h" };
        let failure = deed.refused(&refused);
        (failure.error.kind().clone(), failure.then)
    }

    #[test]
    fn answers_are_judged_by_status_and_code() {
        for (status, code, kind, then) in [
            (404, "NoSuchBucket", Kind::Invalid, Then::End),
            (404, "NoSuchKey", Kind::Invalid, Then::Missing),
            (404, "", Kind::Invalid, Then::Missing),
            (412, "PreconditionFailed", Kind::Corrupt, Then::End),
            (416, "InvalidRange", Kind::Corrupt, Then::End),
            (403, "AccessDenied", Kind::Denied, Then::End),
            (403, "SignatureDoesNotMatch", Kind::Denied, Then::End),
            (400, "ExpiredToken", Kind::Denied, Then::Renew),
            (403, "RequestTimeTooSkewed", Kind::Denied, Then::End),
            (301, "PermanentRedirect", Kind::Invalid, Then::End),
            (429, "", Kind::Unavailable, Then::Fewer),
            (503, "SlowDown", Kind::Unavailable, Then::Fewer),
            (500, "InternalError", Kind::Unavailable, Then::Again),
            (502, "", Kind::Unavailable, Then::Again),
            (408, "", Kind::Unavailable, Then::Again),
            (400, "RequestTimeout", Kind::Unavailable, Then::Again),
            (400, "InvalidArgument", Kind::Invalid, Then::End),
            (501, "NotImplemented", Kind::Invalid, Then::End),
        ] {
            assert_eq!(judged(status, code), (kind, then), "{status} {code}");
        }
    }
}
