//! `gradus report RUN`: a run's loss as a figure, and all that there is to know about it as a page.
//!
//! Both are made from `metrics.jsonl` alone (and the run's resolved settings, where they are kept beside it), so they
//! can be made anew at any time, also of a run that was killed or still goes on.

pub mod axis;
mod figure;
mod figures;
pub mod ink;
mod page;
mod run;
mod series;
#[cfg(test)]
mod tests;

use gradus_error::{IoContext, Result};
use gradus_host::disk::{self, write_atomically};
use run::Run;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// In a run's folder: every event, one JSON line each.
pub const METRICS: &str = "metrics.jsonl";
/// In a run's folder: its resolved settings, as `gradus config` prints them; may be missing.
pub const SETTINGS: &str = "settings.toml";
/// In a run's folder: the page.
pub const PAGE: &str = "report.html";
/// In a run's folder: the figure.
pub const LOSS: &str = "loss.svg";

/// No settings are longer: a bound on what is read on a file's word.
const LONGEST_SETTINGS_BYTES: u64 = 1 << 20;

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFiles {
    /// The page.
    pub page: PathBuf,
    /// The figure of the loss.
    pub loss: PathBuf,
}

/// Makes [`PAGE`] and [`LOSS`] in the folder `run` from its [`METRICS`], replacing older ones.
///
/// # Errors
/// `Invalid` if there are no metrics; the system's failure to read or write.
pub fn write_report(run: &Path) -> Result<ReportFiles> {
    let content = Run::read(&run.join(METRICS))?;
    let name = name_of(run);
    let files = ReportFiles { page: run.join(PAGE), loss: run.join(LOSS) };
    write_text(&files.loss, &figures::loss(&content).draw_alone()?)?;
    write_text(&files.page, &page::page(&content, &name, &settings_of(run)?)?)?;
    Ok(files)
}

/// The folder's own name, also of `.` and of one that ends with a slash.
fn name_of(run: &Path) -> String {
    let whole = fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    whole.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn settings_of(run: &Path) -> Result<String> {
    let path = run.join(SETTINGS);
    let describe = || format!("cannot read {}", path.display());
    if !path.try_exists().context(describe)? {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    disk::open_regular(&path)
        .context(describe)?
        .take(LONGEST_SETTINGS_BYTES)
        .read_to_end(&mut bytes)
        .context(describe)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |out| {
        out.write_all(text.as_bytes()).context(|| format!("cannot write {}", path.display()))
    })
}
