//! `cargo peers`: the same load on our node, nats-server, mosquitto and ngircd, and what the machine itself can do.
//!
//! What is measured, and how, says `tests/benches/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use arborcast_cli::open_files;
use arborcast_tests::peers::cases::{Case, delivery_lengths, versions};
use arborcast_tests::peers::load::Settings;
use arborcast_tests::peers::raw;
use arborcast_tests::peers::servers::Contender;
use clap::{Parser, ValueEnum as _};
use serde_json::json;

/// Measures our node beside nats-server, mosquitto and ngircd, all in turns.
#[derive(Parser)]
#[command(name = "cargo peers")]
struct Cli {
    /// Rounds of everything; the medians are shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// How long each is measured under load
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Measure only this; can be given several times
    #[arg(long, value_name = "CASE", value_enum)]
    only: Vec<Case>,
    /// Only our own servers
    #[arg(long)]
    ours: bool,
    /// How many activities the average subscriber may be behind the publishers
    #[arg(long, value_name = "N", default_value_t = 8192)]
    window: u64,
    /// Threads that read what arrives
    #[arg(long, value_name = "N", default_value_t = 2)]
    readers: usize,
    /// Microseconds that such a thread rests after reading all there was, so that it takes less of the machine
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rest: u64,
    /// Print the results as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// Be the process that only writes, to so many sockets
    #[arg(long, value_name = "SOCKETS", hide = true)]
    raw_writer: Option<usize>,
}

/// Open files of the largest case, and more.
const MOST_FILES: usize = 8192;

/// Every round's value of each figure, in the order of its first appearance.
type Figures = Vec<(&'static str, Vec<f64>)>;

fn main() {
    let cli = Cli::parse();
    // Where the operating system does not let us have more files, the largest cases fail and say so.
    drop(open_files::make_room(MOST_FILES));
    if let Some(sockets) = cli.raw_writer {
        // Its readers have gone away: that is its end.
        drop(raw::write_to(sockets));
        return;
    }
    let missing: Vec<&str> =
        [Contender::Nats, Contender::Mosquitto, Contender::Ngircd].into_iter().filter_map(Contender::missing).collect();
    if !missing.is_empty() {
        let names = missing.join(" ");
        eprintln!("not found, and left out: {names} (on Debian: apt install {names})");
    }
    let settings = Settings {
        duration: Duration::from_secs_f64(cli.seconds),
        window: cli.window,
        readers: cli.readers.max(1),
        rest: Duration::from_micros(cli.rest),
    };
    let cases: Vec<Case> = if cli.only.is_empty() { Case::value_variants().to_vec() } else { cli.only.clone() };
    let mut results: BTreeMap<(Case, usize), (Contender, Figures)> = BTreeMap::new();
    for round in 0..cli.rounds {
        for case in &cases {
            for (place, contender) in case.contenders().iter().enumerate() {
                let is_ours = matches!(contender, Contender::Arborcast | Contender::ArborcastAcknowledged);
                if contender.missing().is_some() || (cli.ours && !is_ours) {
                    continue;
                }
                let figures = case.measure(*contender, settings);
                eprintln!("round {}: {case:?}: {}: {figures:.3?}", round + 1, contender.name());
                let (_, all) = results.entry((*case, place)).or_insert_with(|| (*contender, Vec::new()));
                for (name, value) in figures {
                    match all.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, values)) => values.push(value),
                        None => all.push((name, vec![value])),
                    }
                }
            }
        }
    }
    if cli.json { print_json(&results) } else { print_tables(&results) }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn print_json(results: &BTreeMap<(Case, usize), (Contender, Figures)>) {
    let rows: Vec<_> = results
        .iter()
        .map(|((case, _), (contender, figures))| {
            let medians: serde_json::Map<_, _> =
                figures.iter().map(|(name, values)| ((*name).to_owned(), json!(median(values)))).collect();
            let rounds: serde_json::Map<_, _> =
                figures.iter().map(|(name, values)| ((*name).to_owned(), json!(values))).collect();
            let case = case.to_possible_value().map(|value| value.get_name().to_owned());
            json!({"case": case, "contender": contender.name(), "median": medians, "rounds": rounds})
        })
        .collect();
    println!("{}", json!({"versions": versions(), "results": rows}));
}

fn print_tables(results: &BTreeMap<(Case, usize), (Contender, Figures)>) {
    println!("\n{}; bytes of a delivery: {:?}", versions().join("; "), delivery_lengths());
    let mut last = None;
    for ((case, _), (contender, figures)) in results {
        let (_, ours) = results.iter().find(|((of, _), _)| of == case).expect("this one at least").1;
        if last.replace(*case) != Some(*case) {
            let names: Vec<_> =
                ours.iter().flat_map(|(name, _)| [format!(" {name} |"), " ours / theirs |".into()]).collect();
            println!("\n{}\n\n| |{}", case.title(), names.concat());
            println!("|---|{}", "---|".repeat(names.len()));
        }
        let cells = figures.iter().map(|(name, values)| {
            let theirs = median(values);
            let ours = ours.iter().find(|(of, _)| of == name).map_or(f64::NAN, |(_, values)| median(values));
            let digits = if theirs < 1.0 {
                3
            } else if theirs < 100.0 {
                2
            } else {
                0
            };
            format!(" {theirs:.digits$} | {:.2} |", ours / theirs)
        });
        println!("| {} |{}", contender.name(), cells.collect::<String>());
    }
}
