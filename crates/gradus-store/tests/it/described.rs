//! Descriptions that lie beside the data in a real S3 server: found in few requests, whatever goes wrong.

use super::bucket::{keys, quick};
use gradus_store::bucket::{Address, Bucket, BucketSettings};
use gradus_store::index::{INDEX_FILE, Index, IndexSettings};
use gradus_testbed::S3Server;
use std::fmt::Write;

const INDEX_KEY: &str = "set/gradus-index.parquet";

/// JSON lines of many lengths in some objects of a bucket.
fn home(objects: usize, lines: usize) -> S3Server {
    let server = S3Server::with_bucket("data").unwrap();
    for object in 0..objects {
        let mut text = String::new();
        for line in 0..lines {
            // Lengths that no packer finds a rule in: a square of a number, modulo a prime.
            let number = (object * lines + line) as u64;
            writeln!(text, "[\"{:0width$}\"]", 0, width = (number * number % 9973 % 61) as usize).unwrap();
        }
        server.put("data", &format!("set/{object:03}.jsonl"), text.as_bytes()).unwrap();
    }
    server
}

fn bucket(server: &S3Server) -> Bucket {
    let settings = BucketSettings { retry_attempts: 100, ..quick(server) };
    Bucket::open(&Address::parse("s3://data/set").unwrap(), &settings, &keys).unwrap()
}

fn made(bucket: &Bucket) -> Index {
    Index::build(bucket, "s3://data/set", &IndexSettings::default(), &|_| ()).unwrap()
}

fn describe(bucket: &Bucket) -> (Index, u64) {
    let index = made(bucket);
    let mut bytes = Vec::new();
    index.write_to(&mut bytes).unwrap();
    bucket.write(INDEX_FILE, &bytes).unwrap();
    (index, bytes.len() as u64)
}

fn find(bucket: &Bucket) -> Index {
    Index::find(bucket, &IndexSettings::default()).unwrap()
}

#[test]
fn a_description_is_there_with_the_listing() {
    let server = home(40, 5);
    let bucket = bucket(&server);
    let (index, bytes) = describe(&bucket);
    server.faults().reset_counts();
    // Neither is answered before the other has come.
    server.faults().hold();
    let found = std::thread::scope(|scope| {
        let finding = scope.spawn(|| find(&bucket));
        server.faults().wait_for_requests(2);
        server.faults().release();
        finding.join().unwrap()
    });
    assert_eq!(found, index);
    let counts = server.faults().counts();
    assert_eq!((counts.requests, counts.bytes_by_target[&format!("data/{INDEX_KEY}")]), (2, bytes));
}

#[test]
fn a_long_description_comes_in_few_requests() {
    let server = home(100, 6000);
    let bucket = bucket(&server);
    let (index, bytes) = describe(&bucket);
    assert!(bytes > 2 << 20, "{bytes}");
    server.faults().reset_counts();
    assert!(find(&bucket) == index);
    let counts = server.faults().counts();
    assert_eq!(counts.of_target("GET", &format!("data/{INDEX_KEY}")), 2, "its end, and all as one part");
    assert!(Index::read_object(&bucket, &bucket.head(INDEX_FILE).unwrap()).unwrap() == index);
}

#[test]
fn what_fails_on_the_way_to_a_description_is_asked_for_again() {
    let server = home(3, 5);
    let bucket = bucket(&server);
    let (index, _) = describe(&bucket);
    let faults = server.faults();
    for broken in [(0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5)] {
        for seed in 0..10 {
            faults.set(|plan| (plan.seed, (plan.refused, plan.cut, plan.truncated)) = (seed, broken));
            assert_eq!(find(&bucket), index);
        }
    }
}

#[test]
fn data_without_a_description_or_with_one_of_other_data_are_described_anew() {
    let server = home(3, 5);
    let bucket = bucket(&server);
    assert_eq!(find(&bucket), made(&bucket));
    let (former, _) = describe(&bucket);
    server.put("data", "set/001.jsonl", b"[1]\n[2]\n").unwrap();
    let found = find(&bucket);
    assert!(found != former && found == made(&bucket));
    for damaged in [&b""[..], b"PAR1PAR1", &[7; 100]] {
        bucket.write(INDEX_FILE, damaged).unwrap();
        assert_eq!(find(&bucket), made(&bucket));
    }
}
