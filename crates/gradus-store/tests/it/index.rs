//! Datasets of all formats, written by other programs' libraries, described, read back and decoded.

use gradus_error::Kind;
use gradus_store::bucket::{Address, Bucket, BucketSettings};
use gradus_store::index::{Decoder, Field, Format, Index, IndexSettings};
use gradus_store::{Dataset, Split};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn address(folder: &Path) -> Address {
    Address::parse(folder.to_str().unwrap()).unwrap()
}

pub(crate) fn bucket(folder: &Path) -> Bucket {
    Bucket::open(&address(folder), &BucketSettings::default(), &|_| None).unwrap()
}

fn build(folder: &Path, settings: &IndexSettings) -> gradus_error::Result<Index> {
    Index::build(&bucket(folder), &address(folder).to_string(), settings, &|_| ())
}

/// The index of a folder, which is the same with any number of threads and when it is read back from its file.
pub(crate) fn indexed_with(folder: &Path, settings: &IndexSettings) -> Index {
    let with = |threads| build(folder, &IndexSettings { threads, ..settings.clone() }).unwrap();
    let index = with(3);
    assert_eq!(index, with(1));
    let beside = tempfile::tempdir().unwrap();
    let path = beside.path().join("index.parquet");
    index.write(&path).unwrap();
    let back = Index::read(&path).unwrap();
    assert_eq!(back.objects(), index.objects());
    assert_eq!((back.samples(), back.format()), (index.samples(), index.format()));
    for number in 0..index.samples() {
        assert_eq!(back.sample(number), index.sample(number));
    }
    ranges_name_their_samples(&back);
    back
}

pub(crate) fn indexed(folder: &Path) -> Index {
    indexed_with(folder, &IndexSettings::default())
}

pub(crate) fn kind_of(folder: &Path) -> Kind {
    build(folder, &IndexSettings::default()).unwrap_err().kind().clone()
}

/// Every sample is among those that need any of the bytes of its unit, and no other is.
fn ranges_name_their_samples(index: &Index) {
    for (number, object) in index.objects().iter().enumerate() {
        let number = number as u32;
        for start in (0..object.bytes).step_by(97) {
            let range = start..(start + 61).min(object.bytes);
            let needs = |sample: &u64| {
                let unit = index.sample(*sample).unit;
                unit.start < range.end && range.start < unit.end && !unit.is_empty()
            };
            let expected: Vec<u64> = index.samples_of(number).filter(needs).collect();
            let found = index.samples_in(number, range.clone());
            let empty = |sample: &u64| index.sample(*sample).unit.is_empty();
            let found: Vec<u64> = found.filter(|sample| !empty(sample)).collect();
            assert_eq!(found, expected, "{range:?} of {object:?}");
        }
    }
}

/// All samples, through a decoder that keeps little and one that keeps much.
pub(crate) fn samples(index: &Index) -> Vec<Vec<u8>> {
    let store = bucket(Path::new("/"));
    let read = |budget: usize| {
        let mut decoder = Decoder::new(budget);
        let one = |number| {
            let place = index.sample(number);
            let object = &index.objects()[place.object as usize];
            if let Some(sample) = decoder.held(&place, object).unwrap() {
                return sample.to_vec();
            }
            let mut unit = vec![0; (place.unit.end - place.unit.start) as usize];
            store.read_at(object, place.unit.start, &mut unit).unwrap();
            let sample = decoder.sample(&place, object, unit.into()).unwrap().to_vec();
            assert!(decoder.held_bytes() <= budget);
            sample
        };
        (0..index.samples()).map(one).collect::<Vec<_>>()
    };
    let all = read(1 << 20);
    assert_eq!(all, read(100));
    all
}

fn lines(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{{\"n\": {n}, \"text\": \"{}\"}}", "größer ".repeat(n % 7))).collect()
}

fn bytes_of(lines: &[String]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.clone().into_bytes()).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn lines_of_plain_files_are_samples_and_blank_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let all = lines(50);
    std::fs::write(folder.path().join("b.ndjson"), all[20..].join("\n")).unwrap();
    std::fs::write(folder.path().join("a.jsonl"), format!("{}\r\n \n\n", all[..20].join("\r\n"))).unwrap();
    std::fs::write(folder.path().join("README.md"), "# Data").unwrap();
    let index = indexed(folder.path());
    assert_eq!(samples(&index), bytes_of(&all));
    assert_eq!(index.fields(b"{}").unwrap(), [Field { name: "json".to_owned(), range: 0..2 }]);
}

#[test]
fn lines_that_members_and_frames_share_are_whole() {
    let all = lines(100);
    let text = |lines: &[String]| format!("{}\n", lines.join("\n")).into_bytes();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    type Pack<'a> = (&'a str, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let pack: [Pack<'_>; 2] = [("gz", &gzip), ("zst", &zstd)];
    for (ending, pack) in pack {
        for part_bytes in [1 << 20, 333, 10] {
            let folder = tempfile::tempdir().unwrap();
            let parts = |lines: &[String]| {
                // As bgzip does: parts of a size, whatever they hold, and an empty one at the end.
                let text = text(lines);
                text.chunks(part_bytes).chain([&[] as &[u8]]).flat_map(pack).collect::<Vec<u8>>()
            };
            std::fs::write(folder.path().join(format!("a.jsonl.{ending}")), parts(&all[..40])).unwrap();
            std::fs::write(folder.path().join(format!("b.jsonl.{ending}")), parts(&all[40..])).unwrap();
            assert_eq!(samples(&indexed(folder.path())), bytes_of(&all), "{ending} {part_bytes}");
        }
    }
}

#[test]
fn packed_lines_that_are_cut_or_altered_are_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let text = lines(100).join("\n");
    let all = [("gz", gzip(text.as_bytes())), ("zst", zstd::encode_all(text.as_bytes(), 3).unwrap())];
    for (ending, packed) in all {
        let path = folder.path().join(format!("a.jsonl.{ending}"));
        std::fs::write(&path, &packed[..packed.len() - 20]).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Corrupt, "{ending}");
        let middle = packed.len() / 2;
        std::fs::write(&path, [&packed[..middle], b"1234567890", &packed[middle + 10..]].concat()).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Corrupt, "{ending}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_has_changed_since_it_was_indexed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, lines(3).join("\n")).unwrap();
    let index = indexed(folder.path());
    let listed = || bucket(folder.path()).list("").unwrap();
    index.check_objects(&listed()).unwrap();
    let place = index.sample(1);
    let damaged = vec![b'x'; place.len as usize];
    let error = Decoder::new(0).sample(&place, &index.objects()[0], damaged.into()).unwrap_err();
    assert_eq!(*error.kind(), Kind::Corrupt);
    let beside = |name: &str| std::fs::write(folder.path().join(name), "{}").unwrap();
    ["README.md", "_b.jsonl"].into_iter().for_each(beside);
    index.check_objects(&listed()).unwrap();
    beside("b.jsonl.gz");
    assert_eq!(*index.check_objects(&listed()).unwrap_err().kind(), Kind::Invalid);
    std::fs::remove_file(folder.path().join("b.jsonl.gz")).unwrap();
    std::fs::write(&path, "{}").unwrap();
    assert_eq!(*index.check_objects(&listed()).unwrap_err().kind(), Kind::Invalid);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(*index.check_objects(&listed()).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn what_is_no_dataset_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Invalid);
    assert_eq!(kind_of(&folder.path().join("nowhere")), Kind::Invalid);
    std::fs::write(folder.path().join("README.md"), "# Data").unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Invalid);
    let path = folder.path().join("a.jsonl");
    for none in ["", "\n\n", "a,b\n1,2\n", "{\n  \"pretty\": 1\n}\n"] {
        std::fs::write(&path, none).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Invalid, "{none:?}");
    }
    std::fs::write(&path, "{}\n").unwrap();
    assert_eq!(indexed(folder.path()).samples(), 1);
    for other in
        ["b.tar", "b.parquet", "b.tar.gz", "b.csv", "b.jsonl.bz2", "b.json.xz", "b.parquet.lz4", "b.XZ"]
    {
        std::fs::write(folder.path().join(other), "x").unwrap();
        let error = build(folder.path(), &IndexSettings::default()).unwrap_err();
        assert!(*error.kind() == Kind::Invalid && error.to_string().contains(other), "{other}: {error}");
        std::fs::remove_file(folder.path().join(other)).unwrap();
    }
}

// Tar.

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn named(index: &Index, sample: &[u8]) -> Vec<(String, Vec<u8>)> {
    let fields = index.fields(sample).unwrap();
    fields.into_iter().map(|field| (field.name, sample[field.range].to_vec())).collect()
}

#[test]
fn entries_of_one_name_are_a_sample() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/x.y", "folder".repeat(30));
    let entries: [(&str, &[u8]); 10] = [
        ("train/", b""),
        ("train/1.JPG", &[7; 700]),
        ("train/1.cls", b"3"),
        ("__meta__/1.cls", b"none"),
        ("train/LICENSE", b"none"),
        ("train/1.seg.png", b""),
        ("train/2.jpg", &[8; 512]),
        (&long, b"long"),
        ("a/.b", b"hidden"),
        ("1.txt", b"last"),
    ];
    std::fs::write(folder.path().join("0.tar"), tar_of(&entries)).unwrap();
    std::fs::write(folder.path().join("1.tar"), tar_of(&[("1.txt", b"another"), ("empty.txt", b"")]))
        .unwrap();
    let index = indexed(folder.path());
    assert_eq!(*index.format(), Format::WebDataset);
    let all: Vec<_> = samples(&index).iter().map(|sample| named(&index, sample)).collect();
    let field = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    let expected = [
        vec![field("jpg", &[7; 700]), field("cls", b"3"), field("seg.png", b"")],
        vec![field("jpg", &[8; 512])],
        vec![field("y", b"long")],
        vec![field("b", b"hidden")],
        vec![field("txt", b"last")],
        vec![field("txt", b"another")],
        vec![field("txt", b"")],
    ];
    assert_eq!(all, expected);
}

#[test]
fn tar_files_that_are_cut_or_altered_are_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.tar");
    let whole = tar_of(&[("1.txt", &[1; 600]), ("2.txt", b"x")]);
    for cut in [100, 512, 600, 1536, 1700, 2048, 2500] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Corrupt, "{cut}");
    }
    let mut altered = whole.clone();
    altered[1536 + 3] = b'3';
    std::fs::write(&path, &altered).unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Corrupt);
    std::fs::write(&path, tar_of(&[("1.txt", b""), ("1.TXT", b"")])).unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Invalid);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(indexed(folder.path()).samples(), 2);
}

// Parquet.

/// A file of a number and a text, in row groups; a text may be missing if the column is optional.
fn write_parquet(path: &Path, groups: &[&[Option<&str>]], optional: bool, properties: WriterProperties) {
    let word = if optional { "optional" } else { "required" };
    let schema = format!("message rows {{ required int64 n; {word} binary text (string); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&vec![7; rows.len()], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, optional.then_some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn a_row_of_parquet_is_a_sample() {
    let many: Vec<String> = (0..3000).map(|n| format!("text {} größer", n % 1700)).collect();
    let many: Vec<Option<&str>> = many.iter().map(|text| Some(text.as_str())).collect();
    let few = [Some("one"), None, Some(""), Some("four")];
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ];
    for (number, codec) in codecs.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let of = |version| {
            let builder = WriterProperties::builder().set_compression(codec).set_writer_version(version);
            builder.set_dictionary_enabled(number % 2 == 0).set_data_page_row_count_limit(500).build()
        };
        let (a, b) = (folder.path().join("a.parquet"), folder.path().join("b.parquet"));
        write_parquet(&a, &[&few, &many[..10], &[]], true, of(WriterVersion::PARQUET_1_0));
        write_parquet(&b, &[&many], false, of(WriterVersion::PARQUET_2_0));
        let expected: Vec<Vec<u8>> = few
            .iter()
            .chain(&many[..10])
            .chain(&many)
            .map(|text| text.unwrap_or_default().as_bytes().to_vec())
            .collect();
        assert_eq!(samples(&indexed(folder.path())), expected, "{codec:?}");
    }
}

#[test]
fn parquet_that_is_cut_or_has_no_such_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, &[&[Some("one"), Some("two")]], false, WriterProperties::builder().build());
    let whole = std::fs::read(&path).unwrap();
    for column in ["n", "words"] {
        let settings = IndexSettings { text_column: column.to_owned(), ..IndexSettings::default() };
        let error = build(folder.path(), &settings).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        assert!(column == "n" || error.to_string().contains("n, text"), "{error}");
    }
    for cut in [0, 3, 11, 50, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Corrupt, "{cut}");
    }
    let mut altered = whole.clone();
    let (text, of) = (b"two", altered.windows(3).position(|three| three == b"two").unwrap());
    altered[of - 4] = 200;
    assert_eq!(&altered[of..of + 3], text);
    std::fs::write(&path, &altered).unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Corrupt);
}

// The index itself.

#[test]
fn an_index_that_is_damaged_or_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jsonl"), lines(40).join("\n")).unwrap();
    let mut whole = Vec::new();
    indexed(folder.path()).write_to(&mut whole).unwrap();
    let path = folder.path().join("index.parquet");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Index::read(&path).map_err(|error| error.kind().clone())
    };
    assert!(read(&whole).is_ok());
    assert_eq!(read(&whole[..whole.len() - 9]), Err(Kind::Corrupt));
    write_parquet(&path, &[&[Some("one")]], false, WriterProperties::builder().build());
    assert_eq!(Index::read(&path).unwrap_err().kind(), &Kind::Invalid);
    // The object is smaller than its samples want it.
    let bytes = std::fs::metadata(folder.path().join("a.jsonl")).unwrap().len();
    let text = format!("\"bytes\":{bytes}");
    let at = whole.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let mut altered = whole.clone();
    altered[at + text.len() - 4] = b'0';
    assert_eq!(read(&altered), Err(Kind::Corrupt));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(Index::read(&path).unwrap_err().kind(), &Kind::Invalid);
}

// Tokens.

#[test]
fn samples_of_prepared_tokens_are_arithmetic() {
    let home = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(home.path().join(format!("{name}.txt")), super::text(300)).unwrap();
    }
    let settings =
        gradus_store::PrepareSettings { shard_tokens: 1000, ..super::settings(home.path(), "*.txt") };
    let folder = super::prepared(&settings).folder;
    let dataset = Dataset::open(&folder).unwrap();
    for split in [Split::Train, Split::HeldOut] {
        let index = indexed_with(&folder, &IndexSettings { split, ..IndexSettings::default() });
        assert!(index.objects().len() > 1 || split == Split::HeldOut);
        let split = dataset.files(split).unwrap();
        assert_eq!(index.samples(), split.samples());
        let mut tokens = vec![0; dataset.sequence_length() + 1];
        for (number, sample) in samples(&index).iter().enumerate() {
            split.read(number as u64, &mut tokens).unwrap();
            let found: Vec<u32> =
                sample.chunks(2).map(|two| u32::from(u16::from_le_bytes([two[0], two[1]]))).collect();
            assert_eq!(found, tokens);
        }
    }
    let shard = &dataset.manifest().train.shards[0];
    std::fs::write(folder.join(&shard.file), "short").unwrap();
    assert_eq!(kind_of(&folder), Kind::Corrupt);
}
