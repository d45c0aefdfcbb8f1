//! A request's way: counted, held, delayed, refused or handed on, and its body counted and paced.

use crate::body::{BoxError, Ending, FaultyBody};
use crate::faults::{Faults, Refusal, Ticket};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Method, Request, Response, header};
use s3s::service::S3Service;
use std::pin::Pin;

/// The body of an answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// S3 with faults before it.
#[derive(Clone)]
pub(crate) struct FaultyService {
    pub(crate) s3: S3Service,
    pub(crate) faults: Faults,
}

impl Service<Request<Incoming>> for FaultyService {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.answer(request).await })
    }
}

impl FaultyService {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<AnswerBody>, BoxError> {
        let (ticket, fate) = self.faults.arrive(request.method().as_str(), &target(&request));
        self.faults.held(fate.number).await;
        if !fate.latency.is_zero() {
            tokio::time::sleep(fate.latency).await;
        }
        let method = request.method().clone();
        if let Some(refusal) = fate.refusal {
            // What is not read would be taken for the next request.
            let _ = request.into_body().collect().await;
            return refused(refusal, &method, self.faults.clone(), ticket);
        }
        let response = Service::call(&self.s3, request).await.map_err(|error| format!("{error:?}"))?;
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        let whole = method != Method::GET || !response.status().is_success();
        let ending = if whole { Ending::Whole } else { self.faults.ending(fate.number, bytes) };
        let (mut parts, body) = response.into_parts();
        if let Ending::Short(bytes) = ending {
            parts.headers.insert(header::CONTENT_LENGTH, bytes.into());
        }
        let body = FaultyBody::new(body, self.faults.clone(), ticket, ending);
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

/// `bucket/key`, or the bucket alone; what is escaped in the path is given as it is meant.
fn target(request: &Request<Incoming>) -> String {
    let path = request.uri().path().trim_start_matches('/').as_bytes();
    let mut target = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let escaped = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if path[at] == b'%' => {
                target.push(byte);
                at += 3;
            }
            _ => {
                target.push(path[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&target).into_owned()
}

fn refused(
    refusal: Refusal,
    method: &Method,
    faults: Faults,
    ticket: Ticket,
) -> Result<Response<AnswerBody>, BoxError> {
    let (status, code) = refusal.words();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as planned</Message></Error>"
    );
    // A HEAD is answered without a body.
    let text = if method == Method::HEAD { String::new() } else { text };
    let body = FaultyBody::new(Full::new(Bytes::from(text)), faults, ticket, Ending::Whole);
    Ok(Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/xml")
        .body(body.boxed_unsync())?)
}
