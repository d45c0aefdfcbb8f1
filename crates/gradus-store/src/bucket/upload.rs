//! What is written to a bucket, and removed from it.

use super::failure::{Failure, Then};
use super::remote::{Remote, bare};
use crate::blocks::ObjectInfo;
use gradus_error::Result;
use object_store::multipart::{MultipartStore, PartId};
use object_store::{ObjectStoreExt, PutPayload};

impl Remote {
    /// Puts an object there as one request.
    pub(super) async fn put(&self, key: &str, bytes: bytes::Bytes) -> Result<ObjectInfo> {
        let (path, address) = (self.path(key)?, self.address(key));
        let payload = || PutPayload::from_bytes(bytes.clone());
        let put = self
            .attempts("write", &address)
            .sent(|| self.store.put(&path, payload()))
            .await
            .map_err(Failure::into_error)?;
        self.tally.wrote(bytes.len() as u64);
        self.written(key, bytes.len() as u64, put.e_tag).await
    }

    async fn written(&self, key: &str, bytes: u64, etag: Option<String>) -> Result<ObjectInfo> {
        match etag {
            Some(etag) => Ok(ObjectInfo { address: self.address(key), bytes, etag: bare(&etag).to_owned() }),
            None => self.head(key).await,
        }
    }

    /// Begins an upload in parts.
    pub(super) async fn begin_upload(&self, key: &str) -> Result<String> {
        let (path, address) = (self.path(key)?, self.address(key));
        let begun = self.attempts("write", &address).sent(|| self.store.create_multipart(&path)).await;
        begun.map_err(Failure::into_error)
    }

    /// Uploads a part; parts are numbered from 0.
    pub(super) async fn upload_part(
        &self,
        key: &str,
        upload: &String,
        number: usize,
        bytes: bytes::Bytes,
    ) -> Result<PartId> {
        let (path, address) = (self.path(key)?, self.address(key));
        let put = || self.store.put_part(&path, upload, number, PutPayload::from_bytes(bytes.clone()));
        let part = self.attempts("write", &address).sent(put).await.map_err(Failure::into_error)?;
        self.tally.wrote(bytes.len() as u64);
        Ok(part)
    }

    /// Makes the object of its parts.
    pub(super) async fn finish_upload(
        &self,
        key: &str,
        upload: &String,
        parts: Vec<PartId>,
        bytes: u64,
    ) -> Result<ObjectInfo> {
        let (path, address) = (self.path(key)?, self.address(key));
        let mut attempts = self.attempts("write", &address);
        match attempts.sent(|| self.store.complete_multipart(&path, upload, parts.clone())).await {
            Ok(put) => self.written(key, bytes, put.e_tag).await,
            // An upload that was finished by a request whose answer was lost is gone.
            Err(failure) if failure.then == Then::Missing && attempts.retry.failures() > 0 => {
                let found = self.find(key).await?.filter(|info| info.bytes == bytes);
                found.ok_or(failure.error)
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Throws the parts of an upload away.
    pub(super) async fn abort_upload(&self, key: &str, upload: &String) -> Result<()> {
        let (path, address) = (self.path(key)?, self.address(key));
        let mut attempts = self.attempts("end the upload of", &address);
        let _permit = attempts.begin().await?;
        self.store.abort_multipart(&path, upload).await.map_err(|error| attempts.failed(error).error)
    }

    /// Removes an object; one that is not there is none to remove.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let (path, address) = (self.path(key)?, self.address(key));
        match self.attempts("delete", &address).sent(|| self.store.delete(&path)).await {
            Err(failure) if failure.then != Then::Missing => Err(failure.error),
            _ => Ok(()),
        }
    }
}
