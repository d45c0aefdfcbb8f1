//! What a bucket does when the store fails, is slow, or asks for fewer requests.

use super::{assert_kind, begin, home, noise, whole};
use gradus_error::Kind;
use gradus_store::bucket::BucketSettings;
use gradus_testbed::Refusal;
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn some_requests_fail_and_all_bytes_are_right() {
    for (share, refusal) in [(0.01, Refusal::InternalError), (0.3, Refusal::SlowDown)] {
        let home = home();
        let bytes = noise(1_000_000);
        let (bucket, object) = home.with_object(&home.settings(), &bytes);
        home.server.faults().set(|plan| (plan.refused, plan.refusal) = (share, refusal));
        let reads: Vec<_> =
            (0..500).map(|at| (at * 2000, begin(&bucket, &object, at * 2000..at * 2000 + 2000))).collect();
        for (offset, read) in reads {
            let at = offset as usize;
            assert_eq!(read.recv().unwrap().unwrap(), bytes[at..at + 2000]);
        }
        let counts = home.server.faults().counts();
        assert!(counts.refused > 0);
        // Every read is answered once, and nothing is asked for but what was refused.
        assert_eq!(
            (counts.requests, counts.of_target("GET", "data/key")),
            (500 + counts.refused, 500 + counts.refused)
        );
        let counters = bucket.counters();
        assert_eq!((counters.retries, counters.gets), (counts.refused, counts.requests));
        assert_eq!(counters.bytes_read, 1_000_000);
        assert_eq!(counters.throttled, if refusal == Refusal::SlowDown { counts.refused } else { 0 });
    }
}

#[test]
fn bodies_that_are_cut_or_short_are_taken_up_where_they_ended() {
    let home = home();
    let bytes = noise(3_000_000);
    let (bucket, object) = home.with_object(&home.settings(), &bytes);
    home.server.faults().set(|plan| (plan.cut, plan.truncated) = (0.3, 0.3));
    for offset in (0..3_000_000).step_by(300_000) {
        let mut part = vec![0; 300_000];
        bucket.read_at(&object, offset, &mut part).unwrap();
        assert!(part == bytes[offset as usize..offset as usize + 300_000]);
    }
    let counts = home.server.faults().counts();
    assert!(counts.broken > 0);
    assert_eq!(counts.requests, 10 + counts.broken);
    assert_eq!(bucket.counters().retries, counts.broken);
    // What had arrived was not asked for again: less than two copies came in all.
    assert!(bucket.counters().bytes_read == 3_000_000, "{:?}", bucket.counters());
}

#[test]
fn an_object_that_changes_between_two_halves_of_a_read_is_not_mixed() {
    let home = home();
    let (bucket, object) = home.with_object(&home.settings(), &noise(1_000_000));
    let faults = home.server.faults();
    faults.set(|plan| plan.cut = 1.0);
    faults.hold_after(1);
    let read = begin(&bucket, &object, 0..1_000_000);
    faults.wait_for_requests(2);
    home.server.put("data", "key", &vec![7; 1_000_000]).unwrap();
    faults.set(|plan| plan.cut = 0.0);
    faults.release();
    assert_kind(read.recv().unwrap(), &Kind::Corrupt);
}

#[test]
fn a_stream_whose_object_changes_ends_in_an_error() {
    let home = home();
    let bytes = noise(30 << 20);
    let settings = BucketSettings { part_bytes: 5 << 20, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &bytes);
    let mut stream = bucket.open_stream(&object).unwrap();
    let mut first = vec![0; 1000];
    stream.read_exact(&mut first).unwrap();
    home.server.put("data", "key", &vec![7; 30 << 20]).unwrap();
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(bytes[1000..].starts_with(&rest), "what came before is of the old object");
}

#[test]
fn a_stream_reads_through_failures() {
    let home = home();
    let bytes = noise(26 << 20);
    let settings = BucketSettings { part_bytes: 5 << 20, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &bytes);
    home.server.faults().set(|plan| (plan.refused, plan.cut) = (0.3, 0.3));
    assert!(whole(&bucket, &object) == bytes);
    assert!(home.server.faults().counts().most_in_flight <= 4, "parts that are read ahead");
}

#[test]
fn latency_is_borne_by_many_requests_at_a_time() {
    let home = home();
    let bytes = noise(320_000);
    let (bucket, object) = home.with_object(&home.settings(), &bytes);
    let faults = home.server.faults();
    faults.set(|plan| plan.latency = Duration::from_millis(50));
    faults.hold();
    let reads: Vec<_> =
        (0..32).map(|at| begin(&bucket, &object, at * 10_000..at * 10_000 + 10_000)).collect();
    faults.wait_for_in_flight(32);
    faults.release();
    for (at, read) in reads.into_iter().enumerate() {
        assert_eq!(read.recv().unwrap().unwrap(), bytes[at * 10_000..at * 10_000 + 10_000]);
    }
    assert_eq!((faults.counts().most_in_flight, faults.counts().requests), (32, 32));
}

#[test]
fn no_more_requests_than_connections_are_under_way() {
    let home = home();
    let settings = BucketSettings { connections: 4, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &noise(16_000));
    let faults = home.server.faults();
    faults.hold();
    let reads: Vec<_> = (0..16).map(|at| begin(&bucket, &object, at * 1000..at * 1000 + 1000)).collect();
    faults.wait_for_in_flight(4);
    assert_eq!((bucket.counters().under_way, bucket.counters().allowed), (4, 4));
    faults.release();
    reads.into_iter().for_each(|read| drop(read.recv().unwrap().unwrap()));
    assert_eq!((faults.counts().most_in_flight, faults.counts().requests), (4, 16));
}

#[test]
fn the_limit_falls_when_the_store_asks_and_rises_again() {
    let home = home();
    let settings = BucketSettings { connections: 8, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &noise(1000));
    home.server.faults().set(|plan| plan.refuse_next = 2);
    let read = || bucket.read_at(&object, 0, &mut [0; 100]).unwrap();
    read();
    let counters = bucket.counters();
    assert_eq!((counters.throttled, counters.lowest_allowed, counters.allowed), (2, 2, 2));
    // 2 + 3 + ... + 7 good answers lead from 2 to 8, and one was given.
    (0..26).for_each(|_| read());
    let counters = bucket.counters();
    assert_eq!((counters.lowest_allowed, counters.allowed, counters.under_way), (2, 8, 0));
}

#[test]
fn an_operation_gives_up_when_its_budget_is_spent() {
    let home = home();
    let settings = BucketSettings { retry_attempts: 3, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &noise(1000));
    home.server.faults().set(|plan| plan.refused = 1.0);
    let mut place = [0; 10];
    assert_kind(bucket.read_at(&object, 0, &mut place), &Kind::Unavailable);
    assert_kind(bucket.list(""), &Kind::Unavailable);
    assert_kind(bucket.head("key"), &Kind::Unavailable);
    assert_kind(bucket.write("key", b"x"), &Kind::Unavailable);
    assert_kind(bucket.delete("key"), &Kind::Unavailable);
    assert_eq!(home.server.faults().counts().requests, 15);
    assert_eq!(bucket.counters().retries, 10);
}

#[test]
fn a_server_that_is_gone_is_unavailable_and_named() {
    let mut home = home();
    let settings = BucketSettings { retry_attempts: 2, ..home.settings() };
    let (bucket, object) = home.with_object(&settings, &noise(1000));
    let endpoint = home.server.endpoint();
    home.server.stop();
    let text = assert_kind(bucket.read_at(&object, 0, &mut [0; 10]), &Kind::Unavailable);
    assert!(text.contains(&endpoint) && text.contains("s3://data/key"), "{text}");
}

#[test]
fn uploads_go_through_failures() {
    let home = home();
    let settings = BucketSettings { part_bytes: 5 << 20, retry_attempts: 20, ..home.settings() };
    let bucket = home.open(&settings, "s3://data");
    home.server.faults().set(|plan| plan.refused = 0.3);
    let bytes = noise(33 << 20);
    let mut writer = bucket.writer("key").unwrap();
    writer.write_all(&bytes).unwrap();
    let written = writer.finish().unwrap();
    assert!(whole(&bucket, &written) == bytes);
    assert_eq!(bucket.counters().bytes_written, 33 << 20);
}

#[test]
fn more_keys_than_a_page_holds_are_listed() {
    let home = home();
    let folder = home.server.root().join("data/many");
    std::fs::create_dir(&folder).unwrap();
    (0..2345).for_each(|number| std::fs::write(folder.join(format!("{number:05}")), b"").unwrap());
    home.server.faults().set(|plan| plan.refused = 0.2);
    let bucket = home.bucket();
    let listed = bucket.list("many/").unwrap();
    assert_eq!(listed.len(), 2345);
    let expected = (0..2345).map(|number| format!("s3://data/many/{number:05}"));
    assert!(listed.iter().map(|object| object.address.clone()).eq(expected));
    assert_eq!(bucket.counters().lists, 3 + bucket.counters().retries);
}
