//! `report.html`: one page that needs nothing beside it, not even a network.
//!
//! Whatever comes from outside (the model's own text above all) passes through [`escaped`] on its way into the page.

use super::figures;
use super::ink;
use super::run::{Run, Sample, State};
use crate::wording::{self, escaped};
use gradus_error::Result;
use gradus_train::{EvaluationRecord, RunDescription, Straggling};
use std::fmt::Write;

/// Prompts whose samples are shown.
const MOST_PROMPTS: usize = 4;

/// Notices of slow ranks that are shown, the newest.
const MOST_STRAGGLERS: usize = 4;

/// The page of `run`, called `name`; `settings` is the text of its resolved settings, empty where it is not known.
///
/// # Errors
/// `Internal` if a figure cannot be drawn.
pub fn page(run: &Run, name: &str, settings: &str) -> Result<String> {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} - Gradus</title>\n\
         <style>\n{}{}</style>\n</head>\n<body>\n",
        escaped(name),
        ink::page_style(),
        include_str!("page.css"),
    );
    header(&mut page, run, name);
    facts(&mut page, run);
    let _ = writeln!(page, "<figure>{}</figure>", figures::loss(run).draw()?);
    evaluations(&mut page, run);
    samples(&mut page, run);
    page.push_str("<h2>Speed and steadiness</h2>\n<div class=\"small\">\n");
    for figure in figures::beside(run) {
        let _ = writeln!(page, "<figure>{}</figure>", figure.draw()?);
    }
    page.push_str("</div>\n");
    environment(&mut page, run);
    if !settings.is_empty() {
        let _ = write!(
            page,
            "<h2>Settings</h2>\n<details><summary>Resolved settings, and where each came from</summary>\
             <pre>{}</pre></details>\n",
            escaped(settings)
        );
    }
    let _ = write!(
        page,
        "<footer>Made by gradus {} from <code>metrics.jsonl</code>; <code>gradus report {}</code> makes it anew.\
         </footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        escaped(name)
    );
    Ok(page)
}

fn header(page: &mut String, run: &Run, name: &str) {
    let (class, state) = match &run.state {
        State::Done(_) => ("done", "done"),
        State::Interrupted => ("unfinished", "interrupted"),
        State::Open => ("unfinished", "not finished"),
    };
    let lead = run.description.as_ref().map_or(String::new(), |run| {
        format!("{}; {}", run.model, wording::ranks_in_words(run.world_size, &run.transport))
    });
    let _ = write!(
        page,
        "<header><p class=\"over\">A training run of Gradus</p>\n<h1>{} <span class=\"state {class}\">{state}</span></h1>\n\
         <p class=\"lead\">{}</p></header>\n",
        escaped(name),
        escaped(&lead)
    );
}

/// The figures that are asked for first: (what, value, a word beneath).
fn facts(page: &mut String, run: &Run) {
    let tally = &run.tally;
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), wording::loss);
    let started = tally.first_loss.map_or(String::new(), |first| format!("from {}", wording::loss(first)));
    let mut facts = vec![("Training loss", shown(tally.loss.mean()), started)];
    if let Some(last) = run.evaluations.last() {
        facts.push(("Held-out loss", wording::loss(last.loss), bits_per_byte(last).unwrap_or_default()));
    }
    let elapsed = run.steps.last().map_or(0.0, |record| record.elapsed_s);
    let steps = wording::counted(run.last_step(), "step");
    facts.push(("Tokens", wording::quantity(tally.tokens as f64), steps));
    facts.push(("Time", wording::duration(elapsed), since_resumed(run)));
    let ranks = run.description.as_ref().map_or(0, |description| description.world_size);
    let of_ranks = if ranks > 1 { format!("of {ranks} ranks together") } else { String::new() };
    facts.push(("Tokens per second", wording::quantity(tally.tokens_per_s()), of_ranks));
    facts.push(("Model FLOP utilisation", wording::percent(tally.mfu()), "of the measured peak".to_owned()));
    facts.push(("Exposed communication", wording::percent(tally.exposed()), exposed_beneath(run)));
    if let Some(part) = tally.data_wait() {
        let (part, causes) = part.split_once(' ').unwrap_or((&part, ""));
        facts.push(("Waiting for data", part.to_owned(), format!("of the steps' time {causes}")));
    }
    if let Some(data) = &run.data {
        let (bytes, found) = (wording::bytes(data.bytes), wording::data_read(data));
        let found = found.split_once(": ").map_or("", |(_, found)| found).to_owned();
        facts.push(("Data read", bytes, found));
    }
    if let Some(description) = &run.description {
        let parameters = wording::quantity(description.parameters as f64);
        facts.push(("Parameters", parameters, tokens_per_parameter(run, description)));
    }
    page.push_str("<dl class=\"facts\">\n");
    for (what, value, beneath) in facts {
        let _ = writeln!(
            page,
            "<div><dt>{what}</dt><dd>{}<small>{}</small></dd></div>",
            escaped(&value),
            escaped(&beneath)
        );
    }
    page.push_str("</dl>\n");
}

fn exposed_beneath(run: &Run) -> String {
    let mesh = run.description.as_ref().map(|description| description.mesh).unwrap_or_default();
    match run.tally.exposed_by_axis(&mesh) {
        none if none.is_empty() => "of the steps' time".to_owned(),
        by_axis => format!("of the steps' time: {by_axis}"),
    }
}

fn bits_per_byte(record: &EvaluationRecord) -> Option<String> {
    let bits = record.nats_per_byte / std::f64::consts::LN_2;
    (record.nats_per_byte > 0.0).then(|| format!("{bits:.3} bits per byte"))
}

fn since_resumed(run: &Run) -> String {
    match run.resumed_after.last() {
        Some(step) => format!("since it was resumed after step {}", wording::grouped(*step)),
        None => String::new(),
    }
}

fn tokens_per_parameter(run: &Run, description: &RunDescription) -> String {
    let ratio = run.tally.tokens as f64 / description.parameters as f64;
    if ratio >= 0.005 && ratio.is_finite() {
        format!("{} tokens per parameter", wording::quantity(ratio))
    } else {
        String::new()
    }
}

fn evaluations(page: &mut String, run: &Run) {
    if run.evaluations.is_empty() {
        return;
    }
    page.push_str("<h2>Held-out loss</h2>\n<div class=\"scroll\"><table><thead><tr><th>Step</th><th>Tokens</th>\
                   <th>Nats per token</th><th>Perplexity</th><th>Nats per byte</th><th>Bits per byte</th></tr></thead>\n");
    let best = run.evaluations.iter().map(|record| record.loss).fold(f64::INFINITY, f64::min);
    // The newest first: a long table shows its beginning.
    for record in run.evaluations.iter().rev() {
        let tokens =
            run.tokens_at(record.step).map_or("-".to_owned(), |tokens| wording::quantity(tokens as f64));
        let per_byte = |factor: f64| match record.nats_per_byte {
            nats if nats > 0.0 => format!("{:.4}", nats * factor),
            _ => "-".to_owned(),
        };
        let _ = writeln!(
            page,
            "<tr{}><td>{}</td><td>{tokens}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            if record.loss == best { " class=\"best\"" } else { "" },
            wording::grouped(record.step),
            wording::loss(record.loss),
            wording::quantity(record.loss.exp()),
            per_byte(1.0),
            per_byte(std::f64::consts::LOG2_E),
        );
    }
    page.push_str("</table></div>\n");
}

fn samples(page: &mut String, run: &Run) {
    let pairs = run.first_and_last_samples(MOST_PROMPTS);
    if pairs.is_empty() {
        return;
    }
    page.push_str("<h2>What it writes</h2>\n");
    for (first, last) in pairs {
        page.push_str("<div class=\"facing\">");
        sample(page, first);
        if last.step != first.step {
            sample(page, last);
        }
        page.push_str("</div>\n");
    }
}

fn sample(page: &mut String, sample: &Sample) {
    let when = match sample.step {
        0 => "Before the first step".to_owned(),
        step => format!("After step {}", wording::grouped(step)),
    };
    // A line feed at once behind <pre> would be swallowed.
    let _ = write!(
        page,
        "<div><h3>{when}</h3><pre><span class=\"prompt\">{}</span>{}</pre></div>",
        escaped(&sample.prompt),
        escaped(&sample.text)
    );
}

fn environment(page: &mut String, run: &Run) {
    let Some(description) = &run.description else { return };
    let quantity = |count: u64| wording::quantity(count as f64);
    let mut rows = vec![
        ("Model", description.model.clone()),
        ("Device", description.device.clone()),
        ("Ranks", wording::ranks(description.world_size, &description.transport)),
        ("Tokens per step", wording::grouped(description.tokens_per_step as u64)),
        ("Training split", format!("{} tokens", quantity(description.train_tokens))),
        ("Held-out split", format!("{} tokens", quantity(description.held_out_tokens))),
    ];
    if description.mesh.world_size() > 1 {
        rows.push(("Mesh", description.mesh.describe()));
    }
    if description.bytes_per_token > 0.0 {
        rows.push(("Bytes per token", format!("{:.2}", description.bytes_per_token)));
    }
    if description.peak_flops_per_s > 0.0 {
        let peak = description.peak_flops_per_s / 1e12;
        rows.push((
            "Peak of all ranks",
            format!("{peak:.2} TFLOP/s in matrix products, measured at the start"),
        ));
    }
    let resumed: Vec<_> = run.resumed_after.iter().map(|step| wording::grouped(*step)).collect();
    if !resumed.is_empty() {
        rows.push(("Resumed after step", resumed.join("; ")));
    }
    if run.tally.skipped > 0 {
        rows.push(("Skipped", wording::counted(run.tally.skipped, "step") + ": a gradient was not finite"));
    }
    let newest = run.straggling.iter().rev().take(MOST_STRAGGLERS);
    let told = |record: &Straggling| {
        format!("after step {}, {}", wording::grouped(record.step), wording::straggling(record))
    };
    rows.extend(newest.map(|record| ("Waited for", told(record))));
    if let State::Done(model) = &run.state {
        rows.push(("Model's folder", model.display().to_string()));
    }
    page.push_str("<h2>Environment</h2>\n<div class=\"scroll\"><table class=\"plain\">\n");
    for (what, value) in rows {
        let _ = writeln!(page, "<tr><th>{what}</th><td>{}</td></tr>", escaped(&value));
    }
    page.push_str("</table></div>\n");
}
