//! How many entries a second the log store writes and syncs, beside raft-engine alone with the same batches.
//!
//! What stands between the two is this project's: keys in shard groups, the note of what is synced, and large
//! batches written in parts. A ratio that falls says that one of those has become dearer. Both write what a store
//! writes: an entry and a hard state for each region of a batch, with one sync. Compare figures of one run only, and
//! on the disk that is meant.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Config, Engine, MessageExt};
use raftstore::{EngineConfig, LogBatch, LogStore, RaftEngineLogStore, RegionId, RegionWrite};

use crate::stress::options::time_within;

/// Measures the log on disk beside raft-engine alone.
#[derive(Parser, Debug)]
#[command(bin_name = "stress log", version)]
struct Options {
    /// Regions in a batch, a row each, separated by commas (1 to 100,000)
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batches: Vec<u64>,
    /// Bytes of an entry (0 to 1,048,576)
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    payload: u64,
    /// Directory in which the logs are made and removed again: a temporary one by default
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How long to measure each of the two, each time (10ms to 1h)
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    duration: Duration,
    /// Measure each so many times, in turn, and report the medians (1 to 100)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    repeat: u64,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    time_within(text, Duration::from_millis(10)..=Duration::from_secs(3600))
}

/// Runs `stress log` with this command line, its name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = Options::parse_from(args);
    let result = run(&options);
    if let Err(error) = &result {
        eprintln!("stress log: {error}");
    }
    ExitCode::from(u8::from(result.is_err()))
}

fn run(options: &Options) -> Result<(), String> {
    println!(
        "{} B entries, each with a hard state; medians of {}, {:?} each",
        options.payload, options.repeat, options.duration
    );
    println!(
        "regions a batch   raft-engine, entries/s   log store, entries/s   log store / raft-engine"
    );
    for regions in &options.batches {
        let (mut alone, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.repeat {
            let engine = in_new_directory(options, |dir| raft_engine_rate(options, *regions, dir))?;
            let store = in_new_directory(options, |dir| log_store_rate(options, *regions, dir))?;
            alone.push(engine);
            ours.push(store);
            ratios.push(store / engine);
        }
        let (engine, store, ratio) = (median(alone), median(ours), median(ratios));
        println!("{regions:>15} {engine:>24.0} {store:>22.0} {ratio:>25.2}");
    }
    Ok(())
}

fn in_new_directory(
    options: &Options,
    measure: impl FnOnce(&Path) -> Result<f64, String>,
) -> Result<f64, String> {
    let made = match &options.data_dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let dir = made.map_err(|error| format!("cannot make a directory for the log: {error}"))?;
    measure(dir.path())
}

/// Entries a second of what writes one batch after the other, with this index for each of its regions.
fn rate(
    options: &Options,
    regions: u64,
    mut write: impl FnMut(u64) -> Result<(), String>,
) -> Result<f64, String> {
    // raft-engine allocates what it needs for a group with its first write.
    write(1)?;
    let start = Instant::now();
    let mut batches = 0;
    while start.elapsed() < options.duration {
        write(2 + batches)?;
        batches += 1;
    }
    Ok((batches * regions) as f64 / start.elapsed().as_secs_f64())
}

fn entry(options: &Options, index: u64) -> Entry {
    let data = vec![index as u8; options.payload as usize].into();
    Entry { index, term: 1, data, ..Entry::default() }
}

fn hard_state(index: u64) -> HardState {
    HardState { term: 1, vote: 1, commit: index, ..HardState::default() }
}

struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

fn raft_engine_rate(options: &Options, regions: u64, dir: &Path) -> Result<f64, String> {
    let dir = dir.to_str().ok_or("the directory's name is not UTF-8")?.to_owned();
    // As the log store sets it up.
    let compression =
        raft_engine::ReadableSize(EngineConfig::default().compression_threshold.as_u64());
    let config = Config { dir, batch_compression_threshold: compression, ..Config::default() };
    let engine = Engine::open(config).map_err(|error| error.to_string())?;
    rate(options, regions, |index| {
        let mut batch = raft_engine::LogBatch::default();
        for region in 1..=regions {
            let added = batch.add_entries::<EntryExt>(region, &[entry(options, index)]);
            let key = b"hard state".to_vec();
            let added = added.and_then(|()| batch.put_message(region, key, &hard_state(index)));
            added.map_err(|error| error.to_string())?;
        }
        engine.write(&mut batch, true).map(|_| ()).map_err(|error| error.to_string())
    })
}

fn log_store_rate(options: &Options, regions: u64, dir: &Path) -> Result<f64, String> {
    let store = RaftEngineLogStore::open(dir, &EngineConfig::default());
    let store = store.map_err(|error| error.to_string())?;
    rate(options, regions, |index| {
        let write = |region| RegionWrite {
            region_id: RegionId::new(region),
            clear: false,
            entries: vec![entry(options, index)],
            hard_state: Some(hard_state(index)),
            truncated: None,
            record: None,
        };
        let mut batch = LogBatch { writes: (1..=regions).map(write).collect(), ident: None };
        store.write(&mut batch, true).map(|_| ()).map_err(|error| error.to_string())
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::{Index, LogReader};

    #[test]
    fn both_write_what_they_say() {
        let options = Options::try_parse_from([
            "stress log",
            "--batches",
            "3",
            "--payload",
            "10",
            "--duration",
            "10ms",
            "--repeat",
            "1",
        ]);
        let options = options.expect("sound options");
        let dir = tempfile::tempdir().expect("a directory");
        let (alone, ours) = (dir.path().join("alone"), dir.path().join("ours"));
        assert!(raft_engine_rate(&options, 3, &alone).expect("it writes") > 0.0);
        assert!(log_store_rate(&options, 3, &ours).expect("it writes") > 0.0);
        let config = Config { dir: alone.to_str().expect("UTF-8").to_owned(), ..Config::default() };
        let engine = Engine::open(config).expect("it opens");
        let store = RaftEngineLogStore::open(&ours, &EngineConfig::default()).expect("it opens");
        for region in 1..=3 {
            assert!(engine.last_index(region).is_some_and(|last| last > 1));
            let (low, high) = (Index::new(1), Index::new(3));
            let entries = store.entries(RegionId::new(region), low, high, usize::MAX);
            assert_eq!(entries.expect("they are there").len(), 2);
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for wrong in [["--batches", "0"], ["--duration", "1ms"], ["--repeat", "0"]] {
            assert!(
                Options::try_parse_from(["stress log"].iter().chain(&wrong)).is_err(),
                "{wrong:?}"
            );
        }
    }
}
