//! `gradus`: trains language models across machines.

mod cli;
mod commands;
mod config;
mod data_section;
mod data_source;
mod exit;
mod found_data;
mod gathered;
mod holdings;
mod launcher;
mod logging;
mod mixture;
mod report;
mod run_data;
mod run_folder;
mod run_settings;
mod settings;
mod sinks;
mod wording;

use anyhow::Result;
use clap::Parser;
use cli::{Bench, Cli, Command, Plan};
use gradus_collective::flight;
use run_settings::Settings;
use std::process::ExitCode;

fn main() -> ExitCode {
    logging::start();
    match run() {
        Ok(code) => code.into(),
        Err(error) => {
            logging::failure(&error);
            exit::code(&error).into()
        }
    }
}

/// Runs the subcommand; returns the exit code.
fn run() -> Result<u8> {
    let (arguments, overrides) = cli::split_overrides(std::env::args_os())?;
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are no errors: clap prints them where they belong.
        Err(error) => {
            error.print()?;
            return Ok(u8::try_from(error.exit_code()).unwrap_or(exit::FAILED));
        }
    };
    cli.command.check_overrides(&overrides)?;
    match &cli.command {
        Command::Train(arguments) => return commands::train::run(arguments, &overrides),
        Command::Prepare { file } => {
            let settings = settings::resolve::<Settings>(file.as_deref(), &overrides)?.settings;
            logging::print(format_args!(
                "{}",
                commands::prepare::describe(&commands::prepare::run(&settings)?)
            ))?;
        }
        Command::Dataset { what } => commands::dataset::run(what, &overrides)?,
        Command::Generate(arguments) => commands::generate::run(arguments)?,
        Command::Logits(arguments) => commands::logits::run(arguments)?,
        Command::Config { file } => {
            config::print_config::<Settings>(&mut std::io::stdout(), file.as_deref(), &overrides)?;
        }
        Command::Report { run } => {
            let files = report::write_report(run)?;
            logging::print(format_args!("{}\n{}", files.page.display(), files.loss.display()))?;
        }
        Command::Coordinator(arguments) => commands::coordinator::run(arguments, &overrides)?,
        Command::Preflight(arguments) => return commands::preflight::run(arguments, &overrides),
        Command::Cache { what } => commands::cache::run(what, &overrides)?,
        Command::Doctor => commands::doctor::run()?,
        Command::Plan { what: Plan::Collective(arguments) } => {
            commands::plan_collective::run(arguments, &overrides)?;
        }
        Command::Plan { what: Plan::Pipeline(arguments) } => commands::plan_pipeline::run(arguments)?,
        Command::Plan { what: Plan::Train(arguments) } => commands::plan_train::run(arguments, &overrides)?,
        Command::Flight { files } => {
            let analysis = flight::analyse(&flight::read_logs(files)?).to_string();
            logging::print(format_args!("{}", analysis.trim_end()))?;
        }
        Command::Bench { what: Bench::Train(arguments) } => commands::bench_train::run(arguments)?,
        Command::Bench { what: Bench::Kernels(arguments) } => commands::bench_kernels::run(arguments)?,
        Command::Bench { what: Bench::Generate(arguments) } => commands::bench_generate::run(arguments)?,
        Command::Bench { what: Bench::Dataset(arguments) } => {
            let settings = settings::resolve::<Settings>(None, &overrides)?.settings;
            commands::bench_dataset::run(arguments, &settings)?;
        }
        Command::Bench { what: Bench::Handover(arguments) } => {
            let settings = settings::resolve::<Settings>(Some(&arguments.file), &[])?.settings;
            commands::bench_handover::run(arguments, &settings)?;
        }
    }
    Ok(exit::DONE)
}
