//! Metrics that are read off the store when they are asked for, instead of being counted on the way.

use crate::error::StartError;
use crate::handle::HandleInner;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use region::ReadWay;
use std::sync::Arc;

/// All of them.
#[derive(Clone)]
pub(crate) struct Figures {
    inner: Arc<HandleInner>,
}

/// A metric's name, its help, and its value now.
type Figure = (&'static str, &'static str, u64);

impl Figures {
    pub(crate) fn new(inner: &Arc<HandleInner>) -> Self {
        Self { inner: inner.clone() }
    }

    /// They are gathered while the store runs.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), StartError> {
        let registered = self.each().try_for_each(|figure| registry.register(figure));
        registered.map_err(|cause| StartError::Metrics { store: self.inner.store_id, cause })
    }

    /// What is not there is passed over.
    pub(crate) fn unregister(&self, registry: &Registry) {
        self.each().for_each(|figure| drop(registry.unregister(figure)));
    }

    /// A collector each: `prometheus` tells collectors of several metrics apart by the sum of hashes that
    /// differ in few bits where only the store does, and takes some pairs of stores for one.
    fn each(&self) -> impl Iterator<Item = Box<dyn Collector>> + '_ {
        let count = self.counters().len() + self.gauges().len() + 1;
        (0..count).map(|at| {
            let description = self.metric(at).desc()[0].clone();
            Box::new(OneFigure { figures: self.clone(), at, description }) as Box<dyn Collector>
        })
    }

    fn counters(&self) -> [Figure; 9] {
        let stats = self.inner.router.stats().snapshot();
        [
            ("rounds_total", "Rounds of all pollers.", stats.rounds),
            ("region_runs_total", "Times a region was handled in a round.", stats.runs),
            ("mailbox_messages_total", "Messages taken from mailboxes.", stats.messages),
            ("stolen_total", "Regions taken over from another poller.", stats.stolen),
            ("poller_sleeps_total", "Times a poller went to sleep.", stats.sleeps),
            ("mailbox_refusals_total", "Messages refused by full mailboxes.", stats.refused),
            ("mailbox_forced_total", "Messages sent by force.", stats.forced),
            ("region_panics_total", "Regions quarantined after a panic.", stats.panics),
            (
                "woken_regions_total",
                "Times a sleeping region was woken because the store that led it was lost.",
                self.inner.liveness.figures().woken,
            ),
        ]
    }

    fn gauges(&self) -> [Figure; 14] {
        let router = &self.inner.router;
        let scheduled: usize = router.waiting().iter().sum();
        let depths = self.inner.queues.depths(scheduled);
        let snapshots = self.inner.queues.snapshots();
        let liveness = self.inner.liveness.figures();
        let healthy = !self.inner.health.has_failed();
        [
            ("scheduled_regions", "Regions that wait for a poller.", scheduled as u64),
            ("pollers", "Poller threads.", router.pollers() as u64),
            (
                "batch_size",
                "Regions that a poller handles in a round at most.",
                router.batch_size() as u64,
            ),
            ("mailboxes", "Mailboxes registered.", router.alive() as u64),
            (
                "mailboxes_leaked",
                "Closed mailboxes that somebody still holds.",
                router.leaked() as u64,
            ),
            ("log_queue_bytes", "Bytes waiting for log writers.", depths.log_bytes as u64),
            ("apply_queue_bytes", "Bytes waiting for apply threads.", depths.apply_bytes as u64),
            ("snapshots_sending", "Snapshots on their way out.", snapshots.sending as u64),
            ("snapshots_receiving", "Snapshots on their way in.", snapshots.receiving as u64),
            (
                "regions_set_aside",
                "Regions that are damaged or quarantined.",
                self.inner.set_aside.lock().len() as u64,
            ),
            ("regions_asleep", "Regions that sleep.", liveness.asleep),
            (
                "regions_cold",
                "Regions that have given back their memory.",
                self.inner.cold.len() as u64,
            ),
            ("stores_lost", "Stores with regions of this one that do not answer.", liveness.lost),
            ("healthy", "1, or 0 after the store had to stop.", u64::from(healthy)),
        ]
    }

    fn reads(&self) -> IntCounterVec {
        let opts = self.opts("reads_total", "Reads by how it became known that they may look.");
        let reads = IntCounterVec::new(opts, &["way"]).expect("names and helps are sound");
        for way in ReadWay::ALL {
            reads.with_label_values(&[way.label()]).inc_by(self.inner.metrics.reads(way));
        }
        reads
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("raftstore_{name}"), help)
            .const_label("store", self.inner.store_id.to_string())
    }

    /// The metric of this number, with its value now.
    fn metric(&self, at: usize) -> Box<dyn Collector> {
        let sound = "names and helps are fixed and sound";
        let (counters, gauges) = (self.counters(), self.gauges());
        if let Some((name, help, value)) = counters.get(at) {
            let counter = IntCounter::with_opts(self.opts(name, help)).expect(sound);
            counter.inc_by(*value);
            return Box::new(counter);
        }
        match gauges.get(at - counters.len()) {
            Some((name, help, value)) => {
                let gauge = IntGauge::with_opts(self.opts(name, help)).expect(sound);
                gauge.set(*value as i64);
                Box::new(gauge)
            }
            None => Box::new(self.reads()),
        }
    }
}

/// One of them.
struct OneFigure {
    figures: Figures,
    at: usize,
    description: Desc,
}

impl Collector for OneFigure {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.figures.metric(self.at).collect()
    }
}
