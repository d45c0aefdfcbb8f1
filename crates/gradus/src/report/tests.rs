//! Whole reports of runs that went well, badly, or hardly at all.

use super::*;
use crate::sinks::{MetricsFile, examples};
use gradus_train::{EvaluationRecord, Event, Observer, RunDescription, StepRecord};

/// The page and the figure of a run with these events.
fn report(events: &[Event]) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("tiny <stories>");
    fs::create_dir(&run).unwrap();
    let mut metrics = MetricsFile::open(&run.join(METRICS)).unwrap();
    events.iter().for_each(|event| metrics.observe(event));
    fs::write(run.join(SETTINGS), "[model]\nlayers = 6  # from <here>\n").unwrap();
    let files = write_report(&run).unwrap();
    (fs::read_to_string(files.page).unwrap(), fs::read_to_string(files.loss).unwrap())
}

/// Elements are closed in the order in which they are opened; enough of a parser for what we write.
fn assert_balanced(markup: &str) {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    for tag in markup.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed)),
            None if tag.ends_with('/') || VOID.contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

fn sample(step: u64, text: &str) -> Event {
    Event::Sample { step, prompt: "Once & <b>".into(), text: text.into() }
}

#[test]
fn a_whole_run_has_all_its_parts() {
    let mut events = vec![Event::Started(examples::description()), sample(0, "<script>alert(1)</script>")];
    events.extend((1..=100).map(|step| Event::Step(examples::step(step))));
    events.extend([
        examples::straggling(64),
        examples::evaluation(50),
        examples::evaluation(100),
        sample(100, " there was"),
        examples::finished(100),
    ]);
    let (page, figure) = report(&events);
    assert_balanced(&page);
    assert_balanced(&figure);
    assert!(
        !page.contains("<script") && page.contains("&lt;script&gt;alert(1)"),
        "the model's text is only text"
    );
    assert!(page.contains("Once &amp; &lt;b&gt;") && page.contains("tiny &lt;stories&gt;"));
    assert!(page.contains("After step 100") && page.contains("Before the first step"));
    assert!(page.contains("from &lt;here&gt;") && page.contains(">done</span>"));
    assert!(
        page.contains("<td>50</td><td>205k</td><td>3.4100</td><td>30.3</td><td>0.9412</td><td>1.3579</td>")
    );
    assert!(page.contains("after step 64, rank 1 (dp 1) on ada is 18% of a step"));
    assert!(page.contains("time: dp 0.1%, vote 0.2%") && page.contains("<th>Mesh</th><td>dp 2</td>"));
    assert_eq!(page.matches("<svg").count(), 8);
    assert!(figure.contains("held out") && figure.contains("smoothed"));
    for outside in ["http://", "https://", "url(", "@import", "<link", "<script", " src="] {
        let own = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains(outside), "the page needs nothing from outside, but has {outside}");
    }
}

#[test]
fn a_run_without_steps_and_one_with_a_single_one_have_a_page() {
    let (page, figure) = report(&[Event::Started(examples::description())]);
    assert_balanced(&page);
    assert_balanced(&figure);
    assert!(page.contains("not finished") && !page.contains("NaN") && !page.contains("inf<"));
    let (page, figure) = report(&[Event::Step(examples::step(1))]);
    assert_balanced(&page);
    assert!(figure.contains("<circle") && !figure.contains("held out"));
}

#[test]
fn what_is_not_finite_is_said_and_does_not_spoil_the_figures() {
    let broken = |step| StepRecord {
        loss: f64::NAN,
        gradient_norm: f64::INFINITY,
        mfu: f64::NAN,
        step_s: 0.0,
        skipped: true,
        ..examples::step(step)
    };
    let evaluation = EvaluationRecord { step: 4, loss: f64::INFINITY, nats_per_byte: f64::NAN, targets: 0 };
    let resumed = RunDescription {
        resumed_from: 4,
        world_size: 1,
        transport: "none".into(),
        ..examples::description()
    };
    let (page, figure) = report(&[
        Event::Started(examples::description()),
        Event::Step(examples::step(1)),
        Event::Step(broken(2)),
        Event::Step(examples::step(3)),
        Event::Step(broken(4)),
        Event::Evaluation(evaluation),
        Event::Started(resumed),
        Event::Finished { step: 4, model: PathBuf::new(), interrupted: true },
    ]);
    assert_balanced(&page);
    assert_balanced(&figure);
    assert!(
        page.contains("not finite")
            && page.contains(">interrupted</span>")
            && page.contains("2 steps: a gradient")
    );
    assert!(!page.contains("NaN") && !figure.contains("NaN") && !page.contains(">inf"));
    let (page, _) = report(&[Event::Step(broken(1)), Event::Step(broken(2))]);
    assert_balanced(&page);
}
