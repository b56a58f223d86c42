//! What a store tells Prometheus. Every name begins with `raftstore_` and carries the label `store`;
//! no label names a region.

use crate::write_path::Stage;
use crossbeam::utils::CachePadded;
use prometheus::core::Collector;
use prometheus::local::{LocalHistogram, LocalIntCounter};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use raft::eraftpb::MessageType;
use region::{Answer, ReadError, ReadWay, Role, RoleChange, StoreId};
use rustc_hash::FxHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Pollers publish what they counted at most this often.
const FLUSH_EVERY: Duration = Duration::from_millis(10);

/// Message types of raft 0.7 are numbered from 0 to below this.
const MESSAGE_TYPES: usize = 19;

/// Counters of reads lie this far apart, and threads take turns.
const READ_STRIPES: usize = 16;

thread_local! {
    /// Where this thread counts its reads.
    static STRIPE: usize = {
        let mut hasher = FxHasher::default();
        std::thread::current().id().hash(&mut hasher);
        (hasher.finish() >> 32) as usize % READ_STRIPES
    };
}

/// The metrics of one store.
pub(crate) struct Metrics {
    stage: HistogramVec,
    schedule_wait: Histogram,
    round_regions: Histogram,
    mailbox_messages: Histogram,
    log_write: Histogram,
    log_write_regions: Histogram,
    log_bytes: IntCounter,
    proposals: IntCounter,
    applied: IntCounter,
    answers: IntCounterVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    dropped: IntCounterVec,
    regions: IntGaugeVec,
    leader_changes: IntCounter,
    snapshots: IntCounterVec,
    snapshot_bytes: IntCounterVec,
    splits: IntCounter,
    transfers: IntCounterVec,
    created: IntCounterVec,
    destroyed: IntCounter,
    description_changes: IntCounter,
    /// By way, and by thread: readers must not wait for each other's caches.
    reads: Vec<CachePadded<[AtomicU64; 4]>>,
    reads_refused: IntCounterVec,
    operators: IntCounterVec,
    placement_failures: IntCounter,
}

impl Metrics {
    /// Registers everything with `registry`.
    pub(crate) fn register(registry: &Registry, store: StoreId) -> prometheus::Result<Self> {
        let store = store.to_string();
        let opts = |name: &str, help: &str| {
            Opts::new(format!("raftstore_{name}"), help).const_label("store", &store)
        };
        let seconds = |name: &str, help: &str| {
            let buckets = prometheus::exponential_buckets(1e-6, 2.0, 24).expect("sound");
            HistogramOpts::from(opts(name, help)).buckets(buckets)
        };
        let counts = |name: &str, help: &str| {
            let buckets = prometheus::exponential_buckets(1.0, 2.0, 13).expect("sound");
            HistogramOpts::from(opts(name, help)).buckets(buckets)
        };
        let counter = |name: &str, help: &str| IntCounter::with_opts(opts(name, help));
        let counters = |(name, help): (&str, &str), labels: &[&str]| {
            IntCounterVec::new(opts(name, help), labels)
        };
        let metrics = Self {
            stage: HistogramVec::new(
                seconds("stage_seconds", "Time in each station of the write path, of the oldest proposal of a region and round."),
                &["stage"],
            )?,
            schedule_wait: Histogram::with_opts(seconds(
                "schedule_wait_seconds",
                "Longest wait, in a round, of a region that had mail for its poller.",
            ))?,
            round_regions: Histogram::with_opts(counts("round_regions", "Regions handled in a round."))?,
            mailbox_messages: Histogram::with_opts(counts(
                "mailbox_messages",
                "Messages found in a region's mailbox when its turn came.",
            ))?,
            log_write: Histogram::with_opts(seconds("log_write_seconds", "Writing and syncing one log batch."))?,
            log_write_regions: Histogram::with_opts(counts("log_write_regions", "Regions in one log batch."))?,
            log_bytes: counter("log_written_bytes_total", "Bytes written to the log.")?,
            proposals: counter("proposals_total", "Proposals taken from mailboxes.")?,
            applied: counter("applied_commands_total", "Commands applied.")?,
            answers: counters(("answers_total", "Answers to proposals."), &["outcome"])?,
            sent: counters(("raft_messages_sent_total", "Raft messages given to the transport."), &["type"])?,
            received: counters(("raft_messages_received_total", "Raft messages taken from mailboxes."), &["type"])?,
            dropped: counters(("raft_messages_dropped_total", "Raft messages dropped."), &["reason"])?,
            regions: IntGaugeVec::new(opts("regions", "Regions by what their peer is here."), &["role"])?,
            leader_changes: counter("leader_changes_total", "Times a region here became or ceased to be the leader.")?,
            snapshots: counters(("snapshots_total", "Snapshots by what became of them."), &["outcome"])?,
            snapshot_bytes: counters(("snapshot_bytes_total", "Bytes of snapshots sent."), &["direction"])?,
            splits: counter("splits_total", "Regions split off here.")?,
            transfers: counters(("leader_transfers_total", "Transfers of leadership that a leader here began, by what became of them."), &["outcome"])?,
            created: counters(("peers_created_total", "Peers created here, by what brought them."), &["by"])?,
            destroyed: counter("peers_destroyed_total", "Peers that left this store.")?,
            description_changes: counter("description_changes_total", "Times a region here got other peers or another range.")?,
            reads: (0..READ_STRIPES).map(|_| CachePadded::default()).collect(),
            reads_refused: counters(("reads_refused_total", "Reads that were not answered."), &["reason"])?,
            operators: counters(("operators_total", "Operators of the placement by what became of them."), &["operator", "outcome"])?,
            placement_failures: counter("placement_failures_total", "Calls of the placement that panicked.")?,
        };
        metrics.register_all(registry)?;
        Ok(metrics)
    }

    fn register_all(&self, registry: &Registry) -> prometheus::Result<()> {
        for collector in self.collectors() {
            registry.register(collector)?;
        }
        for role in ["leader", "follower", "candidate", "new"] {
            self.regions.with_label_values(&[role]).set(0);
        }
        Ok(())
    }

    /// Takes everything off `registry`; what is not there is passed over.
    pub(crate) fn unregister(&self, registry: &Registry) {
        for collector in self.collectors() {
            let _ = registry.unregister(collector);
        }
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.stage.clone()),
            Box::new(self.schedule_wait.clone()),
            Box::new(self.round_regions.clone()),
            Box::new(self.mailbox_messages.clone()),
            Box::new(self.log_write.clone()),
            Box::new(self.log_write_regions.clone()),
            Box::new(self.log_bytes.clone()),
            Box::new(self.proposals.clone()),
            Box::new(self.applied.clone()),
            Box::new(self.answers.clone()),
            Box::new(self.sent.clone()),
            Box::new(self.received.clone()),
            Box::new(self.dropped.clone()),
            Box::new(self.regions.clone()),
            Box::new(self.leader_changes.clone()),
            Box::new(self.snapshots.clone()),
            Box::new(self.snapshot_bytes.clone()),
            Box::new(self.splits.clone()),
            Box::new(self.transfers.clone()),
            Box::new(self.created.clone()),
            Box::new(self.destroyed.clone()),
            Box::new(self.description_changes.clone()),
            Box::new(self.reads_refused.clone()),
            Box::new(self.operators.clone()),
            Box::new(self.placement_failures.clone()),
        ]
    }

    /// How many regions this store leads.
    pub(crate) fn leaders(&self) -> u64 {
        u64::try_from(self.regions.with_label_values(&["leader"]).get()).unwrap_or(0)
    }

    /// Times a region here became or ceased to be the leader.
    pub(crate) fn leader_changes(&self) -> u64 {
        self.leader_changes.get()
    }

    pub(crate) fn count_dropped(&self, reason: &str, count: u64) {
        self.dropped.with_label_values(&[reason]).inc_by(count);
    }

    /// What became of a snapshot.
    pub(crate) fn snapshot(&self, outcome: &str) {
        self.snapshots.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn snapshot_bytes(&self, direction: &str, bytes: usize) {
        self.snapshot_bytes.with_label_values(&[direction]).inc_by(bytes as u64);
    }

    pub(crate) fn count_splits(&self, children: usize) {
        self.splits.inc_by(children as u64);
    }

    pub(crate) fn count_transfer(&self, done: bool) {
        self.transfers.with_label_values(&[if done { "done" } else { "failed" }]).inc();
    }

    pub(crate) fn count_created(&self, by: &str) {
        self.created.with_label_values(&[by]).inc();
    }

    pub(crate) fn count_destroyed(&self) {
        self.destroyed.inc();
    }

    /// A read has looked.
    pub(crate) fn count_read(&self, way: ReadWay) {
        let stripe = STRIPE.with(|stripe| *stripe);
        self.reads[stripe][way as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many reads have looked, by way.
    pub(crate) fn reads(&self, way: ReadWay) -> u64 {
        self.reads.iter().map(|ways| ways[way as usize].load(Ordering::Relaxed)).sum()
    }

    /// A read was refused; gives the reason back.
    pub(crate) fn count_refused_read(&self, error: ReadError) -> ReadError {
        self.reads_refused.with_label_values(&[error.label()]).inc();
        error
    }

    pub(crate) fn count_description_change(&self) {
        self.description_changes.inc();
    }

    pub(crate) fn count_operator(&self, operator: &str, outcome: &str) {
        self.operators.with_label_values(&[operator, outcome]).inc();
    }

    pub(crate) fn count_placement_failure(&self) {
        self.placement_failures.inc();
    }

    pub(crate) fn region_added(&self, known: Option<Role>) {
        self.regions.with_label_values(&[role_name(known)]).inc();
    }

    pub(crate) fn region_gone(&self, known: Option<Role>) {
        self.regions.with_label_values(&[role_name(known)]).dec();
    }

    /// A thread's own counters, which cost no shared write until they are flushed.
    pub(crate) fn local(self: &Arc<Self>) -> LocalMetrics {
        let by_type = |family: &IntCounterVec| -> Vec<LocalIntCounter> {
            let counter = |number| family.with_label_values(&[type_name(number)]).local();
            (0..MESSAGE_TYPES).map(counter).collect()
        };
        LocalMetrics {
            schedule_wait: self.schedule_wait.local(),
            round_regions: self.round_regions.local(),
            mailbox_messages: self.mailbox_messages.local(),
            log_write: self.log_write.local(),
            log_write_regions: self.log_write_regions.local(),
            log_bytes: self.log_bytes.local(),
            proposals: self.proposals.local(),
            applied: self.applied.local(),
            answered_ok: self.answers.with_label_values(&["ok"]).local(),
            stages: Stage::ALL.map(|stage| self.stage.with_label_values(&[stage.name()]).local()),
            sent: by_type(&self.sent),
            received: by_type(&self.received),
            flushed: Duration::ZERO,
            metrics: self.clone(),
        }
    }
}

/// One thread's share of the metrics.
pub(crate) struct LocalMetrics {
    pub(crate) schedule_wait: LocalHistogram,
    round_regions: LocalHistogram,
    pub(crate) mailbox_messages: LocalHistogram,
    log_write: LocalHistogram,
    log_write_regions: LocalHistogram,
    log_bytes: LocalIntCounter,
    pub(crate) proposals: LocalIntCounter,
    pub(crate) applied: LocalIntCounter,
    answered_ok: LocalIntCounter,
    stages: [LocalHistogram; 6],
    sent: Vec<LocalIntCounter>,
    received: Vec<LocalIntCounter>,
    flushed: Duration,
    metrics: Arc<Metrics>,
}

impl LocalMetrics {
    pub(crate) fn observe(&self, stage: Stage, took: Duration) {
        self.stages[stage as usize].observe(took.as_secs_f64());
    }

    pub(crate) fn round(&self, regions: usize) {
        self.round_regions.observe(regions as f64);
    }

    pub(crate) fn log_written(&self, took: Duration, bytes: u64, regions: usize) {
        self.log_write.observe(took.as_secs_f64());
        self.log_write_regions.observe(regions as f64);
        self.log_bytes.inc_by(bytes);
    }

    pub(crate) fn count_sent(&self, kind: MessageType) {
        self.sent[kind as usize].inc();
    }

    pub(crate) fn count_received(&self, kind: MessageType) {
        self.received[kind as usize].inc();
    }

    pub(crate) fn count_dropped(&self, reason: &str, count: u64) {
        self.metrics.count_dropped(reason, count);
    }

    pub(crate) fn count_answer(&self, answer: &Answer) {
        match answer {
            Ok(_) => self.answered_ok.inc(),
            Err(error) => self.metrics.answers.with_label_values(&[error.label()]).inc(),
        }
    }

    pub(crate) fn role_changed(&self, known: &mut Option<Role>, change: RoleChange) {
        if *known == Some(change.role) {
            return;
        }
        let regions = &self.metrics.regions;
        regions.with_label_values(&[role_name(*known)]).dec();
        regions.with_label_values(&[role_name(Some(change.role))]).inc();
        if change.role == Role::Leader || *known == Some(Role::Leader) {
            self.metrics.leader_changes.inc();
        }
        *known = Some(change.role);
    }

    pub(crate) fn flush_if_due(&mut self, now: Duration) {
        if now.saturating_sub(self.flushed) >= FLUSH_EVERY {
            self.flushed = now;
            self.flush();
        }
    }

    fn flush(&self) {
        let histograms = [
            &self.schedule_wait,
            &self.round_regions,
            &self.mailbox_messages,
            &self.log_write,
            &self.log_write_regions,
        ];
        histograms.into_iter().chain(&self.stages).for_each(LocalHistogram::flush);
        for counter in [&self.log_bytes, &self.proposals, &self.applied, &self.answered_ok] {
            counter.flush();
        }
        self.sent.iter().chain(&self.received).for_each(LocalIntCounter::flush);
    }
}

impl Drop for LocalMetrics {
    fn drop(&mut self) {
        self.flush();
    }
}

fn role_name(role: Option<Role>) -> &'static str {
    match role {
        None => "new",
        Some(Role::Leader) => "leader",
        Some(Role::Follower) => "follower",
        Some(Role::PreCandidate | Role::Candidate) => "candidate",
    }
}

fn type_name(number: usize) -> &'static str {
    const NAMES: [&str; MESSAGE_TYPES] = [
        "hup",
        "beat",
        "propose",
        "append",
        "append_response",
        "request_vote",
        "request_vote_response",
        "snapshot",
        "heartbeat",
        "heartbeat_response",
        "unreachable",
        "snap_status",
        "check_quorum",
        "transfer_leader",
        "timeout_now",
        "read_index",
        "read_index_resp",
        "request_pre_vote",
        "request_pre_vote_response",
    ];
    NAMES[number]
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::ProtobufEnum;

    #[test]
    fn every_message_type_has_its_name() {
        for kind in MessageType::values() {
            let spelled = format!("{kind:?}").to_lowercase();
            let name = type_name(*kind as usize).replace('_', "");
            assert_eq!(spelled, format!("msg{name}"));
        }
        assert_eq!(MessageType::values().len(), MESSAGE_TYPES);
    }
}
