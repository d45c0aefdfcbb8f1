//! Objects as files of a folder: `s3s-fs`, with reading of our own.
//!
//! `s3s-fs` reads bodies in pieces of 4 KiB, hashes a file that it did not write itself at every GET, and does not know
//! `If-Match` on reads. GET and HEAD are answered here instead, and listings get ETags: an ETag is made of a file's
//! inode, time of change and size, so a file that is written anew behind the server's back has another one. No file has
//! a name that ends in `/`, as the empty objects have that consoles make for folders: those are listed only.

use crate::body::FileBody;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, ETag, ETagCondition, GetBucketLocationInput,
    GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListObjectsV2Input,
    ListObjectsV2Output, ListPartsInput, ListPartsOutput, Object, PutObjectInput, PutObjectOutput,
    StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

/// What the trait's functions return, written out.
type Answer<'a, T> = Pin<Box<dyn Future<Output = S3Result<S3Response<T>>> + Send + 'a>>;

/// The objects below a folder; each folder in it is a bucket.
pub(crate) struct Store {
    files: FileSystem,
    root: PathBuf,
    marks: Marks,
}

/// Marks of folders, `bucket/folder/` each.
pub(crate) type Marks = Arc<Mutex<BTreeSet<String>>>;

impl Store {
    /// The buckets below `root`, which must be there.
    pub(crate) fn new(root: &Path, marks: Marks) -> io::Result<Self> {
        let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { files, root: root.canonicalize()?, marks })
    }

    fn path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let inside = Path::new(key).components().all(|part| matches!(part, Component::Normal(_)));
        // A file system would take these for other keys than they are.
        let itself = !key.ends_with('/') && !key.contains("//");
        if !inside || !itself {
            return Err(s3_error!(NoSuchKey));
        }
        Ok(self.root.join(bucket).join(key))
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn open(&self, bucket: &str, key: &str, matching: Option<&ETagCondition>) -> S3Result<(File, Metadata)> {
        self.check_bucket(bucket)?;
        let file = File::open(self.path(bucket, key)?).map_err(|error| s3_error!(error, NoSuchKey))?;
        let metadata = file.metadata().map_err(s3s::S3Error::internal_error)?;
        if !metadata.is_file() {
            return Err(s3_error!(NoSuchKey));
        }
        match matching {
            Some(ETagCondition::ETag(expected)) if !expected.strong_cmp(&etag(&metadata)) => {
                Err(s3_error!(PreconditionFailed))
            }
            _ => Ok((file, metadata)),
        }
    }

    fn get(&self, input: &GetObjectInput) -> S3Result<S3Response<GetObjectOutput>> {
        let (file, metadata) = self.open(&input.bucket, &input.key, input.if_match.as_ref())?;
        let bytes = metadata.len();
        let range = match &input.range {
            Some(range) => range.check(bytes)?,
            None => 0..bytes,
        };
        let content_range =
            input.range.map(|_| format!("bytes {}-{}/{bytes}", range.start, range.end.saturating_sub(1)));
        let output = GetObjectOutput {
            content_length: Some((range.end - range.start) as i64),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            last_modified: metadata.modified().ok().map(Timestamp::from),
            e_tag: Some(etag(&metadata)),
            body: Some(StreamingBlob::from(Body::http_body(FileBody::new(file, range)))),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    fn head(&self, input: &HeadObjectInput) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, metadata) = self.open(&input.bucket, &input.key, input.if_match.as_ref())?;
        let output = HeadObjectOutput {
            content_length: Some(metadata.len() as i64),
            last_modified: metadata.modified().ok().map(Timestamp::from),
            e_tag: Some(etag(&metadata)),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    fn etag_of(&self, bucket: &str, key: &str) -> Option<ETag> {
        let metadata = std::fs::metadata(self.path(bucket, key).ok()?).ok()?;
        Some(etag(&metadata))
    }

    /// The marks that belong on a page of a listing: those after `token`, up to where the page ends if it is not the last.
    fn marks(&self, input: &ListObjectsV2Input, end: Option<&str>) -> Vec<Object> {
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let token = input.continuation_token.as_deref().unwrap_or_default();
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = marks.iter().filter_map(|mark| mark.strip_prefix(&input.bucket)?.strip_prefix('/'));
        keys.filter(|key| key.starts_with(prefix) && *key > token && end.is_none_or(|end| *key <= end))
            .map(|key| Object {
                key: Some(key.to_owned()),
                size: Some(0),
                e_tag: Some(ETag::Strong("mark".to_owned())),
                last_modified: Some(Timestamp::from(std::time::UNIX_EPOCH)),
                ..Object::default()
            })
            .collect()
    }
}

fn etag(metadata: &Metadata) -> ETag {
    let changed = metadata.mtime() as i128 * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    ETag::Strong(format!("{:x}-{changed:x}-{:x}", metadata.ino(), metadata.len()))
}

/// Hands requests on as they are.
macro_rules! handed_on {
    ($($name:ident: $input:ty => $output:ty;)*) => {$(
        fn $name<'s, 'a>(&'s self, request: S3Request<$input>) -> Answer<'a, $output>
        where
            's: 'a,
            Self: 'a,
        {
            self.files.$name(request)
        }
    )*};
}

impl S3 for Store {
    handed_on! {
        create_bucket: CreateBucketInput => CreateBucketOutput;
        delete_bucket: DeleteBucketInput => DeleteBucketOutput;
        delete_object: DeleteObjectInput => DeleteObjectOutput;
        delete_objects: DeleteObjectsInput => DeleteObjectsOutput;
        get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput;
        head_bucket: HeadBucketInput => HeadBucketOutput;
        list_buckets: ListBucketsInput => ListBucketsOutput;
        upload_part: UploadPartInput => UploadPartOutput;
        list_parts: ListPartsInput => ListPartsOutput;
        abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
    }

    fn get_object<'s, 'a>(&'s self, request: S3Request<GetObjectInput>) -> Answer<'a, GetObjectOutput>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move { self.get(&request.input) })
    }

    fn head_object<'s, 'a>(&'s self, request: S3Request<HeadObjectInput>) -> Answer<'a, HeadObjectOutput>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move { self.head(&request.input) })
    }

    fn create_multipart_upload<'s, 'a>(
        &'s self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<'a, CreateMultipartUploadOutput>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            self.check_bucket(&request.input.bucket)?;
            self.files.create_multipart_upload(request).await
        })
    }

    fn put_object<'s, 'a>(&'s self, request: S3Request<PutObjectInput>) -> Answer<'a, PutObjectOutput>
    where
        's: 'a,
        Self: 'a,
    {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        Box::pin(async move {
            // It would be made.
            self.check_bucket(&bucket)?;
            let mut response = self.files.put_object(request).await?;
            response.output.e_tag = self.etag_of(&bucket, &key);
            Ok(response)
        })
    }

    fn complete_multipart_upload<'s, 'a>(
        &'s self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<'a, CompleteMultipartUploadOutput>
    where
        's: 'a,
        Self: 'a,
    {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        Box::pin(async move {
            let mut response = self.files.complete_multipart_upload(request).await?;
            let e_tag = self.etag_of(&bucket, &key);
            let (bucket, key) = (Some(bucket), Some(key));
            response.output = CompleteMultipartUploadOutput {
                bucket,
                key,
                e_tag,
                ..CompleteMultipartUploadOutput::default()
            };
            Ok(response)
        })
    }

    fn list_objects_v2<'s, 'a>(
        &'s self,
        request: S3Request<ListObjectsV2Input>,
    ) -> Answer<'a, ListObjectsV2Output>
    where
        's: 'a,
        Self: 'a,
    {
        let input = request.input.clone();
        Box::pin(async move {
            let mut response = self.files.list_objects_v2(request).await?;
            let output = &mut response.output;
            for object in output.contents.iter_mut().flatten() {
                object.e_tag = object.key.as_deref().and_then(|key| self.etag_of(&input.bucket, key));
            }
            let marks = self.marks(&input, output.next_continuation_token.as_deref());
            if !marks.is_empty() {
                let contents = output.contents.get_or_insert_default();
                contents.extend(marks);
                contents.sort_by(|a, b| a.key.cmp(&b.key));
            }
            Ok(response)
        })
    }
}
