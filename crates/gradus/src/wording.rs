//! Figures as people read them, the same on the terminal and in reports.

use gradus_store::MixtureProgress;
use gradus_train::{DataRecord, DataWaits, Exposed, Mesh, Straggling};

/// A count with its thousands apart: `10,512`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of things: `1 step`, `2,000 steps`.
pub fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A quantity in three digits: `512`, `13.9M`, `1.24B`.
pub fn quantity(value: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    if !value.is_finite() {
        return "-".to_owned();
    }
    // 999.5 and more would be written as four digits: it is 1.00 of the next unit.
    match UNITS.iter().find(|(scale, _)| value.abs() >= scale * 0.9995) {
        Some((scale, unit)) => format!("{}{unit}", three_digits(value / scale)),
        None if value.fract() == 0.0 => format!("{value:.0}"),
        None => three_digits(value),
    }
}

fn three_digits(value: f64) -> String {
    let magnitude = value.abs();
    let places = if magnitude >= 99.95 {
        0
    } else if magnitude >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.places$}")
}

/// Bytes per second: `512B/s`, `47.6MB/s`, `1.24GB/s`.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", decimal_bytes(bytes_per_s))
}

/// Bytes in decimal units, as rates are: `512B`, `47.6MB`, `1.24GB`.
pub fn bytes(count: u64) -> String {
    decimal_bytes(count as f64)
}

fn decimal_bytes(count: f64) -> String {
    // A thousand millions of bytes are a giga, not a billion.
    format!("{}B", quantity(count).replace('B', "G"))
}

/// Bytes in GiB, or in MiB below a tenth of one.
pub fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 102.4 { format!("{mebibytes:.1}MiB") } else { format!("{:.2}GiB", mebibytes / 1024.0) }
}

/// A length of time: `0.8s`, `42s`, `2m 05s`, `1h 02m`, `3d 04h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1}s"),
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A short time in three digits: `0.84us`, `12.5ms`, `1.04s`.
pub fn brief(seconds: f64) -> String {
    const UNITS: [(f64, &str); 3] = [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")];
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    let unit = UNITS.iter().find(|(scale, _)| seconds >= scale * 0.9995).unwrap_or(&UNITS[2]);
    format!("{}{}", three_digits(seconds / unit.0), unit.1)
}

/// A share of one, in percent.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}%", share * 100.0) } else { "-".to_owned() }
}

/// A loss: four places, which is what noise leaves of it.
pub fn loss(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "not finite".to_owned() }
}

/// How gradients travel between `world_size` ranks.
pub fn ranks(world_size: usize, transport: &str) -> String {
    match (world_size, transport) {
        (0 | 1, _) => "1".to_owned(),
        (_, "shm") => format!("{world_size} over shared memory"),
        (_, "tcp") => format!("{world_size} over TCP"),
        (_, other) => format!("{world_size} over {other}"),
    }
}

/// The same in a sentence.
pub fn ranks_in_words(world_size: usize, transport: &str) -> String {
    match world_size {
        0 | 1 => "one rank".to_owned(),
        _ => ranks(world_size, transport).replacen(" over ", " ranks over ", 1),
    }
}

/// Parts of `whole_s` seconds by the axis that was waited for, as `pp 2.1%, vote 0.2%`; empty for a single rank.
pub fn by_axis(exposed: &Exposed, mesh: &Mesh, whole_s: f64) -> String {
    let parts = exposed.along(mesh).map(|(axis, time_s)| format!("{axis} {}", percent(time_s / whole_s)));
    parts.collect::<Vec<_>>().join(", ")
}

/// Part of the time from which on waiting for data is worth a word.
const NOTABLE_WAIT: f64 = 0.005;

/// Waiting for data as a part of `whole_s` seconds, with its causes, as `3.1% (bucket 2.9%, decode 0.2%)`; nothing where
/// it is too little to be worth a word.
pub fn data_wait(waits: &DataWaits, whole_s: f64) -> Option<String> {
    let part = waits.total() / whole_s;
    if part.is_nan() || part <= NOTABLE_WAIT {
        return None;
    }
    let causes = waits.named().into_iter().filter(|(_, time_s)| *time_s > 0.0);
    let causes: Vec<_> =
        causes.map(|(cause, time_s)| format!("{cause} {}", percent(time_s / whole_s))).collect();
    Some(format!("{} ({})", percent(part), causes.join(", ")))
}

/// What was read and where it came from, in a line.
pub fn data_read(record: &DataRecord) -> String {
    let found = &record.bytes_by_source;
    let share = |part: u64| format!("{:.0}%", part as f64 / found.total().max(1) as f64 * 100.0);
    let mut parts = vec![format!("memory {}", share(found.memory))];
    let others = [("disk", found.disk), ("peers", found.peer)].into_iter().filter(|(_, part)| *part > 0);
    parts.extend(others.map(|(name, part)| format!("{name} {}", share(part))));
    let mut asked = vec![bytes(record.bucket_bytes), counted(record.requests, "request")];
    if record.retries > 0 {
        let one = if record.retries == 1 { "retry" } else { "retries" };
        asked.push(format!("{} {one}", grouped(record.retries)));
    }
    if record.cost > 0.0 {
        asked.push(format!("${:.2}", record.cost));
    }
    parts.push(format!("bucket {} ({})", share(found.bucket), asked.join(", ")));
    format!("{} read: {}", bytes(record.bytes), parts.join(", "))
}

/// How datasets are mixed, and how often the run has seen each.
pub fn mixture(mixture: &[MixtureProgress]) -> String {
    let one = |part: &MixtureProgress| {
        let seen = if part.samples > 0 { format!(" ({:.2} epochs)", part.epochs) } else { String::new() };
        format!("{} {:.1}%{seen}", printable(&part.prepared), part.share * 100.0)
    };
    mixture.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// More ranks than these are counted, not named.
const MOST_NAMED: usize = 16;

/// `rank 3`, `ranks 0, 2`, or how many they are.
pub fn these_ranks(ranks: &[usize]) -> String {
    let named = || ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match ranks.len() {
        1 => format!("rank {}", named()),
        2..=MOST_NAMED => format!("ranks {}", named()),
        count => format!("{count} ranks"),
    }
}

/// Who is waited for, by whom, and how much.
pub fn straggling(record: &Straggling) -> String {
    let mut text = these_ranks(&record.ranks);
    if !record.place.is_empty() {
        text.push_str(&format!(" ({})", record.place));
    }
    if (1..=MOST_NAMED).contains(&record.hosts.len()) {
        text.push_str(&format!(" on {}", record.hosts.join(", ")));
    }
    let (verb, whom) = if record.ranks.len() == 1 { ("is", "it") } else { ("are", "them") };
    let one = if record.waiting.len() == 1 { "s" } else { "" };
    text.push_str(&format!(
        " {verb} {:.0}% of a step ({}) behind: {} wait{one} for {whom}",
        record.lag * 100.0,
        brief(record.lag_s),
        these_ranks(&record.waiting)
    ));
    text
}

/// Text from outside without what would move a terminal's cursor or change its colours; line feeds and tabs stay.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Text from outside as HTML and XML show it, whatever it holds; also between quotes of an attribute.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML allows no other control characters, not even as references.
            control if control.is_control() && !"\n\t".contains(control) => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stragglers_are_told_of_in_a_sentence() {
        let one = Straggling {
            step: 64,
            ranks: vec![3],
            place: "pp 1, dp 1".into(),
            hosts: vec!["ada".into()],
            waiting: vec![0, 1, 2],
            lag: 0.1804,
            lag_s: 0.021,
        };
        let text = straggling(&one);
        assert_eq!(
            text,
            "rank 3 (pp 1, dp 1) on ada is 18% of a step (21.0ms) behind: ranks 0, 1, 2 wait for it"
        );
        let many = Straggling { ranks: (1..40).collect(), waiting: vec![0], place: String::new(), ..one };
        let text = straggling(&Straggling { hosts: Vec::new(), ..many });
        assert_eq!(text, "39 ranks are 18% of a step (21.0ms) behind: rank 0 waits for them");
    }

    #[test]
    fn reading_is_told_in_a_line() {
        let waits = DataWaits { bucket: 0.03, decode: 0.001, ..DataWaits::default() };
        assert_eq!(data_wait(&waits, 1.0).as_deref(), Some("3.1% (bucket 3.0%, decode 0.1%)"));
        assert_eq!(
            [data_wait(&waits, 10.0), data_wait(&waits, f64::NAN), data_wait(&DataWaits::default(), 0.0)],
            [const { None }; 3]
        );
        let mut record = crate::sinks::examples::data(9);
        assert_eq!(
            data_read(&record),
            "12.3GB read: memory 61%, disk 30%, bucket 9% (1.10GB, 1,234 requests, 3 retries, $0.01)"
        );
        (record.cost, record.retries, record.bytes_by_source.disk) = (0.0, 1, 0);
        record.bytes_by_source.peer = 3_690;
        assert_eq!(
            data_read(&record),
            "12.3GB read: memory 61%, peers 30%, bucket 9% (1.10GB, 1,234 requests, 1 retry)"
        );
        assert!(
            data_read(&DataRecord::default()).starts_with("0B read: memory 0%, bucket 0% (0B, 0 requests")
        );
    }

    #[test]
    fn nothing_from_outside_is_markup() {
        let text = escaped("<script>alert('x')</script> & \"q\"\0\n");
        assert_eq!(text, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;q&quot;\u{fffd}\n");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(grouped));
        let quantities =
            [0.0, 7.25, 512.0, 999.6, 10_512.0, 13_900_000.0, 1.24e9, 999_960.0, f64::NAN].map(quantity);
        assert_eq!(quantities, ["0", "7.25", "512", "1.00k", "10.5k", "13.9M", "1.24B", "1.00M", "-"]);
        assert_eq!([512.0, 4.76e7, 1.24e9].map(rate), ["512B/s", "47.6MB/s", "1.24GB/s"]);
        assert_eq!([10 << 20, 440_234_147].map(memory), ["10.0MiB", "0.41GiB"]);
        let durations = [0.84, 9.96, 59.6, 125.0, 3720.0, 273_600.0, f64::INFINITY, -1.0].map(duration);
        assert_eq!(durations, ["0.8s", "10s", "1m 00s", "2m 05s", "1h 02m", "3d 04h", "-", "-"]);
        let briefly = [0.0, 8.4e-7, 0.01249, 0.999_96, 1.04, 250.0, f64::NAN].map(brief);
        assert_eq!(briefly, ["0.00us", "0.84us", "12.5ms", "1.00s", "1.04s", "250s", "-"]);
        assert_eq!([0.312, f64::NAN].map(percent), ["31.2%", "-"]);
        assert_eq!([3.21014, f64::INFINITY].map(loss), ["3.2101", "not finite"]);
        assert_eq!(ranks(2, "shm"), "2 over shared memory");
        assert_eq!(printable("a\x1b[2J\nb\u{9b}"), "a\u{fffd}[2J\nb\u{fffd}");
    }
}
