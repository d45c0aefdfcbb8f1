//! Credentials: where they come from, and how long they are good.

use super::chain::Search;
use super::environment::Environment;
use super::settings::BucketSettings;
use futures_util::future::BoxFuture;
use gradus_error::{Error, Kind, Result};
use gradus_host::clock::{Clock, RealClock};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Credentials are renewed this long before they expire.
const MARGIN: Duration = Duration::from_secs(300);

/// Credentials that could not be renewed in time, or that are short-lived, are used meanwhile, and looked for again after this.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// Times that a service which gives credentials is asked, and the pause in between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Keys, where they came from, and until when they are good.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) keys: Arc<AwsCredential>,
    /// For messages: `the credentials of profile ...`.
    pub(super) who: String,
    /// Time since 1970.
    pub(super) expires: Option<Duration>,
}

impl Found {
    /// Refuses what cannot stand in a request's head.
    ///
    /// # Errors
    /// `Denied`, naming where they are from; they are not shown.
    fn checked(self) -> Result<Self> {
        let token = self.keys.token.as_deref().unwrap_or_default();
        if [self.keys.key_id.as_str(), token].into_iter().all(is_sendable) {
            return Ok(self);
        }
        Err(Error::denied(format!(
            "{} hold a character that no request can carry, such as the end of a line: set them without it",
            self.who
        )))
    }
}

/// Whether a text can stand in the head of a request: visible ASCII and blanks (RFC 9110, section 5.5).
pub(super) fn is_sendable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Credentials of a bucket, found when they are first needed and renewed before they expire.
#[derive(Debug)]
pub(super) struct Credentials<C = RealClock> {
    anonymous: bool,
    profile: String,
    environment: Environment,
    region: String,
    client: reqwest::Client,
    found: Mutex<Option<Found>>,
    /// When they were looked for last; time since 1970.
    asked: Mutex<Option<Duration>>,
    /// One search at a time.
    searching: tokio::sync::Mutex<()>,
    clock: C,
}

impl<C: Clock> Credentials<C> {
    pub(super) fn new(
        settings: &BucketSettings,
        environment: Environment,
        region: String,
        client: reqwest::Client,
        clock: C,
    ) -> Self {
        Self {
            anonymous: settings.anonymous,
            profile: settings.profile.clone(),
            environment,
            region,
            client,
            found: Mutex::new(None),
            asked: Mutex::new(None),
            searching: tokio::sync::Mutex::new(()),
            clock,
        }
    }

    /// Who signs, for messages.
    pub(super) fn who(&self) -> String {
        if self.anonymous {
            return "requests without credentials (bucket.anonymous)".to_owned();
        }
        self.lock().as_ref().map_or_else(|| "the credentials".to_owned(), |found| found.who.clone())
    }

    /// Finds credentials, where none are known that are good for a while.
    ///
    /// # Errors
    /// That of the link of the chain which failed; `Denied` when no link has any.
    pub(super) async fn ready(&self) -> Result<()> {
        if self.anonymous || self.good().is_some() {
            return Ok(());
        }
        let _one = self.searching.lock().await;
        let mut failures = 0;
        while self.good().is_none() {
            let found = super::chain::find(&self.profile, &self.search()).await.and_then(Found::checked);
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.calendar());
            match found {
                Ok(found) => {
                    *self.lock() = Some(found);
                    return Ok(());
                }
                // Those that were to be renewed hold a while yet.
                Err(error) if self.good().is_some() => {
                    tracing::warn!("{} could not be renewed yet: {error}", self.who());
                    return Ok(());
                }
                Err(error) if *error.kind() == Kind::Unavailable && failures < ATTEMPTS - 1 => {
                    failures += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lets the next request find credentials anew.
    pub(super) fn forget(&self) {
        if let Some(found) = &mut *self.lock() {
            found.expires = Some(Duration::ZERO);
        }
    }

    fn search(&self) -> Search<'_> {
        Search { environment: &self.environment, region: &self.region, client: &self.client }
    }

    fn good(&self) -> Option<Arc<AwsCredential>> {
        let now = self.clock.calendar();
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let just_asked = asked.is_some_and(|asked| now.saturating_sub(asked) < RENEWAL_PAUSE);
        let margin = if just_asked { Duration::ZERO } else { MARGIN };
        let found = self.lock();
        let found = found.as_ref()?;
        found.expires.is_none_or(|expires| now + margin < expires).then(|| Arc::clone(&found.keys))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Clock + Debug + 'static> CredentialProvider for Credentials<C> {
    type Credential = AwsCredential;

    fn get_credential<'s, 'a>(&'s self) -> BoxFuture<'a, object_store::Result<Arc<AwsCredential>>>
    where
        's: 'a,
        Self: 'a,
    {
        // `ready` went before; keys that it found and that are short-lived are used to their end.
        let keys = self.lock().as_ref().map(|found| Arc::clone(&found.keys));
        Box::pin(async move {
            keys.ok_or_else(|| object_store::Error::Generic {
                store: "S3",
                source: Box::new(Error::internal("a request was to be signed before credentials were found")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{issued::since_1970, runtime, transport};
    use gradus_testbed::InstanceMetadata;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tracing::{Event, Level, Metadata, Subscriber, field::Field, field::Visit, span};

    fn found(key_id: &str, token: &str) -> Found {
        let (key_id, secret_key) = (key_id.to_owned(), "any\nthing".to_owned());
        let keys = AwsCredential { key_id, secret_key, token: Some(token.to_owned()) };
        Found { keys: Arc::new(keys), who: "the credentials of a test".to_owned(), expires: None }
    }

    #[test]
    fn what_no_request_can_carry_is_denied_and_not_shown() {
        found("AKID", "t0ken+/=").checked().unwrap();
        for (key_id, token) in
            [("AKID\n", "token"), ("AKID", "token\r\n"), ("AKID", "t\u{f6}ken"), ("A\u{7f}", "")]
        {
            let error = found(key_id, token).checked().unwrap_err();
            assert_eq!(error.kind(), &Kind::Denied);
            let text = error.to_string();
            assert!(text.contains("of a test") && !text.contains("ken"), "{text}");
        }
    }

    /// A clock that is set by hand, to seconds since 1970.
    #[derive(Debug, Clone, Default)]
    struct Hand(Arc<AtomicU64>);

    impl Clock for Hand {
        fn now(&self) -> Duration {
            self.calendar()
        }

        fn calendar(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }

        fn sleep(&self, _: Duration) {
            panic!("nobody sleeps by it");
        }
    }

    /// What is warned of, on one thread.
    #[derive(Clone, Default)]
    struct Warnings(Arc<Mutex<Vec<String>>>);

    impl Visit for Warnings {
        fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata) -> bool {
            *metadata.level() == Level::WARN
        }

        fn event(&self, event: &Event) {
            event.record(&mut self.clone());
        }

        fn new_span(&self, _: &span::Attributes) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// Those of an instance whose service is `metadata`.
    fn of(metadata: &InstanceMetadata, clock: Hand) -> Credentials<Hand> {
        let set = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| metadata.endpoint());
        let settings = BucketSettings::default();
        let client = transport::client(&settings, &metadata.endpoint(), None).unwrap();
        Credentials::new(&settings, Environment::read(&set), "region".to_owned(), client, clock)
    }

    #[test]
    fn keys_that_cannot_be_renewed_are_used_to_their_end_and_asked_for_now_and_then() {
        let (end, later) = ("2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z");
        let metadata = InstanceMetadata::start("FIRST", "S", end).unwrap();
        let (clock, warnings) = (Hand::default(), Warnings::default());
        let credentials = of(&metadata, clock.clone());
        // How many seconds before their end keys are asked for; what that comes to.
        let ready = |before: u64| {
            let now = since_1970(end).unwrap().as_secs() - before;
            clock.0.store(now, Ordering::Relaxed);
            tracing::subscriber::with_default(warnings.clone(), || {
                runtime::get().unwrap().block_on(credentials.ready())
            })
        };
        let told = || warnings.0.lock().unwrap().len();
        ready(3600).unwrap();
        metadata.refuse_next(10, 503, "");
        ready(301).unwrap();
        assert_eq!(
            (metadata.asked(), metadata.refusals_left(), told()),
            (1, 10, 0),
            "they are good for long"
        );
        ready(200).unwrap();
        assert_eq!(
            (metadata.refusals_left(), told()),
            (9, 1),
            "one attempt to renew them, and no word of an end"
        );
        assert!(warnings.0.lock().unwrap()[0].contains("testbed-role"), "{:?}", warnings.0);
        ready(191).unwrap();
        assert_eq!((metadata.refusals_left(), told()), (9, 1), "it was tried just now");
        ready(190).unwrap();
        assert_eq!((metadata.refusals_left(), told()), (8, 2));
        metadata.refuse_next(1, 403, "");
        assert_eq!(*ready(0).unwrap_err().kind(), Kind::Denied, "they have ended");
        metadata.set_keys("SECOND", "S", later);
        ready(0).unwrap();
        assert_eq!(credentials.good().unwrap().key_id, "SECOND");
        assert_eq!((metadata.asked(), told()), (2, 2));
    }
}
