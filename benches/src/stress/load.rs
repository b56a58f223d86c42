//! The clients: a fixed number of writes outstanding, each answered write followed by the next.
//!
//! A client is no thread. Its next write is proposed from the callback of the last one, on the store's
//! own poller, so that what is measured is the store and not the waking of client threads. Only a
//! refused write goes through a thread, which tries it again a little later.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{unbounded, Receiver, Sender};

use super::ledger::{encode, KEYS_PER_REGION};
use super::options::KeyChoice;
use super::recorder::Recorder;
use super::subject::{Outcome, Target, Whom};

/// A refused write is tried again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// About how many threads record latencies.
const RECORDERS: usize = 16;

/// What clients were told about one region.
#[derive(Debug, Default)]
pub struct Told {
    /// Writes answered with success.
    pub count: AtomicU64,
    /// Exclusive-or of their identities.
    pub identities: AtomicU64,
    /// Writes of which nobody knows whether they happened.
    pub unknown: AtomicU64,
}

/// The load on stores that take writes by `T`.
pub struct Load<T> {
    target: T,
    /// By region: which store is believed to lead it.
    leaders: Vec<AtomicU8>,
    told: Vec<Told>,
    recorder: Recorder,
    chooser: Chooser,
    payload: usize,
    stopping: AtomicBool,
    outstanding: AtomicU64,
    retries: Sender<Client>,
}

/// One client, on its way from answer to next write.
struct Client {
    random: Random,
    /// Identity of its next write: its number in the upper bits, its writes counted in the lower.
    identity: u64,
    /// The write to try again: region, bytes, and when it was first proposed.
    again: Option<(u64, Bytes, Instant)>,
}

/// A small fast generator (splitmix64): runs with equal seeds choose equal keys.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Of so many regions, ranked by how often they are written to, the last one is among the coldest.
const COLDEST_OF: u64 = 10;

/// Chooses regions.
#[derive(Debug)]
enum Chooser {
    Uniform(u64),
    /// Cumulative weights of Zipf's law with exponent 0.99, as in YCSB.
    Zipfian {
        cumulative: Vec<f64>,
        /// By region, from 0: whether it is in the coldest tenth.
        cold: Vec<bool>,
    },
}

impl Chooser {
    fn new(keys: KeyChoice, regions: u64) -> Self {
        if keys == KeyChoice::Uniform {
            return Chooser::Uniform(regions);
        }
        let mut sum = 0.0;
        let cumulative = (1..=regions).map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        });
        let cumulative = cumulative.collect();
        let mut cold = vec![false; regions as usize];
        for rank in regions - regions / COLDEST_OF..regions {
            cold[(spread(rank, regions) - 1) as usize] = true;
        }
        Chooser::Zipfian { cumulative, cold }
    }

    /// A region, counted from 1.
    fn choose(&self, random: &mut Random) -> u64 {
        match self {
            Chooser::Uniform(regions) => 1 + random.below(*regions),
            Chooser::Zipfian { cumulative, .. } => {
                let point = random.unit() * cumulative.last().copied().unwrap_or(1.0);
                let rank = cumulative.partition_point(|sum| *sum < point) as u64;
                let regions = cumulative.len() as u64;
                spread(rank.min(regions - 1), regions)
            }
        }
    }

    /// Whether a region is in the coldest tenth, which there is only where keys are skewed.
    fn is_cold(&self, region: u64) -> bool {
        match self {
            Chooser::Uniform(_) => false,
            Chooser::Zipfian { cold, .. } => cold[(region - 1) as usize],
        }
    }
}

/// The region of a rank: hot regions are not neighbours on one store. Each has one rank, since the factor is
/// prime and larger than any number of regions.
fn spread(rank: u64, regions: u64) -> u64 {
    1 + rank.wrapping_mul(0x9E37_79B1) % regions
}

/// A running load; see [`Load::start`].
pub struct Running<T> {
    load: Arc<Load<T>>,
    retrier: JoinHandle<()>,
}

impl<T: Target> Load<T> {
    /// Starts `outstanding` clients on regions whose leaders are `leaders` (by region, from 0).
    pub fn start(
        target: T,
        leaders: Vec<u8>,
        keys: KeyChoice,
        outstanding: u64,
        payload: usize,
        seed: u64,
    ) -> Running<T> {
        let (retries, retrying) = unbounded();
        let load = Arc::new(Load {
            chooser: Chooser::new(keys, leaders.len() as u64),
            told: leaders.iter().map(|_| Told::default()).collect(),
            leaders: leaders.into_iter().map(AtomicU8::new).collect(),
            recorder: match keys {
                KeyChoice::Uniform => Recorder::new(RECORDERS),
                KeyChoice::Zipfian => Recorder::with_cold(RECORDERS),
            },
            target,
            payload,
            stopping: AtomicBool::new(false),
            outstanding: AtomicU64::new(outstanding),
            retries,
        });
        let retrier = {
            let load = load.clone();
            std::thread::spawn(move || load.retry(&retrying))
        };
        for number in 0..outstanding {
            let random = Random::new(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
            load.next(Client { random, identity: (number + 1) << 32, again: None });
        }
        Running { load, retrier }
    }

    /// Proposes a client's next write.
    fn next(self: &Arc<Self>, mut client: Client) {
        let (region, bytes, start) = match client.again.take() {
            Some(again) => again,
            None if self.stopping.load(Ordering::Relaxed) => return self.client_done(),
            None => {
                client.identity += 1;
                let region = self.chooser.choose(&mut client.random);
                let key = client.random.below(KEYS_PER_REGION);
                (region, encode(key, client.identity, self.payload), Instant::now())
            }
        };
        let load = self.clone();
        let retained = bytes.clone();
        let store = self.leaders[(region - 1) as usize].load(Ordering::Relaxed);
        self.target.submit(usize::from(store), region, bytes, move |outcome| {
            load.answered(client, region, retained, start, outcome);
        });
    }

    fn answered(
        self: &Arc<Self>,
        mut client: Client,
        region: u64,
        bytes: Bytes,
        start: Instant,
        outcome: Outcome,
    ) {
        let told = &self.told[(region - 1) as usize];
        match outcome {
            Outcome::Applied => {
                told.count.fetch_add(1, Ordering::Relaxed);
                told.identities.fetch_xor(client.identity, Ordering::Relaxed);
                self.recorder.record(start.elapsed(), self.chooser.is_cold(region));
                self.next(client);
            }
            Outcome::Again(whom) if !self.stopping.load(Ordering::Relaxed) => {
                self.recorder.record_error();
                self.follow(region, whom);
                client.again = Some((region, bytes, start));
                self.retry_later(client);
            }
            Outcome::Again(_) | Outcome::Refused => {
                self.recorder.record_error();
                self.retry_later(client);
            }
            Outcome::Unknown => {
                self.recorder.record_error();
                told.unknown.fetch_add(1, Ordering::Relaxed);
                self.retry_later(client);
            }
        }
    }

    /// Learns who leads a region.
    fn follow(&self, region: u64, whom: Whom) {
        let known = &self.leaders[(region - 1) as usize];
        match whom {
            Whom::Same => {}
            Whom::Store(store) => known.store(store as u8, Ordering::Relaxed),
            Whom::Next => {
                let next = (known.load(Ordering::Relaxed) + 1) % self.target.stores() as u8;
                known.store(next, Ordering::Relaxed);
            }
        }
    }

    fn retry_later(&self, client: Client) {
        if self.retries.send(client).is_err() {
            self.client_done();
        }
    }

    fn client_done(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    fn retry(self: &Arc<Self>, retrying: &Receiver<Client>) {
        while self.outstanding.load(Ordering::Acquire) > 0 {
            if let Ok(client) = retrying.recv_timeout(RETRY_PAUSE) {
                std::thread::sleep(RETRY_PAUSE);
                self.next(client);
                retrying.try_iter().for_each(|client| self.next(client));
            }
        }
    }
}

impl<T: Target> Running<T> {
    /// Where latencies go.
    pub fn recorder(&self) -> &Recorder {
        &self.load.recorder
    }

    /// What clients were told about a region, counted from 1.
    pub fn told(&self, region: u64) -> &Told {
        &self.load.told[(region - 1) as usize]
    }

    /// Starts no more writes. [`outstanding`](Self::outstanding) falls to 0.
    pub fn stop(&self) {
        self.load.stopping.store(true, Ordering::Relaxed);
    }

    /// Clients that still wait for an answer.
    pub fn outstanding(&self) -> u64 {
        self.load.outstanding.load(Ordering::Acquire)
    }

    /// Ends the retrying thread, once nothing is outstanding.
    pub fn join(self) {
        self.retrier.join().expect("the retrier does not panic");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coldest_tenth_is_the_one_that_is_chosen_least() {
        let chooser = Chooser::new(KeyChoice::Zipfian, 50);
        let mut random = Random::new(7);
        let mut chosen = [0_u64; 50];
        for _ in 0..400_000 {
            chosen[(chooser.choose(&mut random) - 1) as usize] += 1;
        }
        let mean = |cold: bool, count: usize| -> u64 {
            let regions: Vec<u64> = (1..=50).filter(|r| chooser.is_cold(*r) == cold).collect();
            assert_eq!(regions.len(), count);
            regions.iter().map(|region| chosen[(region - 1) as usize]).sum::<u64>() / count as u64
        };
        let (cold, warm) = (mean(true, 5), mean(false, 45));
        assert!(cold > 0 && cold * 3 < warm, "{cold} {warm}");
        assert!(!Chooser::new(KeyChoice::Uniform, 50).is_cold(1));
    }

    #[test]
    fn each_rank_has_a_region_of_its_own() {
        for regions in [1, 2, 10, 1_000, 9_999] {
            let mut found: Vec<u64> = (0..regions).map(|rank| spread(rank, regions)).collect();
            found.sort_unstable();
            assert!(found.into_iter().eq(1..=regions), "{regions}");
        }
    }
}
