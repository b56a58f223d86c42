//! Behaviours of a region, as scripts in `tests/scripts/`, one a behaviour.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p region --test scripts` writes the outputs anew; read the
//! difference before believing it.
//!
//! | command | does |
//! |---|---|
//! | `cluster voters=3 learners=0 …` | starts stores 1, 2, 3 …; any setting of `RegionConfig` |
//! | `campaign 1` | campaigns |
//! | `tick 1 [n]` | lets n ticks pass |
//! | `chill 1` | a peer that sleeps is taken apart and made anew |
//! | `presume 2 1 [passed=20]` | 2, just started, takes 1 for its leader; so many ticks of its promise have passed |
//! | `wake 1 [silent]`, `lost 1 2` | wakes a peer after so many silent ticks; tells it that store 2 is lost |
//! | `propose 1 a b c [size=n] [conf_ver=n] [version=n]` | one batch of commands |
//! | `fill 1 n [prefix=p]` | n commands in one batch |
//! | `collect 1` | takes Readys, prints their effects |
//! | `persist 1 [n]` | carries out n writes, or all |
//! | `apply 1` | applies all batches |
//! | `deliver [from=1] [to=2] [type=Append]` | delivers messages under way now |
//! | `lose [from=1] [to=2]` | loses them |
//! | `stabilize [1 2]` | all of that among these stores until nothing moves |
//! | `cut 1`, `heal` | takes a store off the network, puts all back |
//! | `restart 1`, `crash 1` | ends the process in order, or not, and starts it again |
//! | `kill 1`, `start 1` | the two halves of a crash |
//! | `flush 1`, `compact 1` | makes applied state durable; cuts the log if asked to |
//! | `break-reads 1`, `damage 1 index` | makes the disk fail; spoils an entry on it |
//! | `shutdown 1` | ends the region |
//! | `spare 4` | a store whose peer 4 knows nothing of the region |
//! | `change 1 name add=4 learner=5 promote=5 demote=2 remove=3` | asks for other peers |
//! | `split 1 name k m [right=true]` | asks for a split; children are regions 10, 11 … |
//! | `transfer 1 name [to=2]` | asks for another leader |
//! | `snapshot 1` | makes a snapshot that is wanted |
//! | `arrived 1 2`, `failed 1 2` | tells 1 what became of its snapshot for 2 |
//! | `status [1]`, `reads 1`, `machine 1` | prints figures, disk reads, applied commands |
//! | `read 1 a b c [mode=leader] [at=n] [conf_ver=n] [version=n]` | reads in one turn; `at` makes them stale ones |
//! | `serving 1` | prints the lease and what else readers may know |
//! | `send 1 2 type=Heartbeat …` | makes up a message; questions for reads take `entries=n bytes=n` |

mod harness;

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Runner};
use harness::{default_config, print, Cluster, CLUSTER, REGION};
use raft::eraftpb::{Entry, Message, MessageType};
use region::*;

type Output = Result<String, Box<dyn Error>>;

#[derive(Default)]
struct Script {
    cluster: Option<Cluster>,
}

fn position(args: &mut ArgumentConsumer<'_>) -> Result<u64, Box<dyn Error>> {
    args.next_pos().ok_or("a number is missing")?.parse()
}

fn short_type(message: &Message) -> String {
    let name = format!("{:?}", message.get_msg_type());
    name.trim_start_matches("Msg").replace("Request", "")
}

impl Script {
    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.get_or_insert_with(|| Cluster::new(3, 0, default_config()))
    }

    fn start_cluster(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let mut config = default_config();
        let voters = args.lookup_parse("voters")?.unwrap_or(3);
        let learners = args.lookup_parse("learners")?.unwrap_or(0);
        for argument in args.rest_key() {
            let value: usize = argument.parse()?;
            match argument.key.as_deref().unwrap_or_default() {
                "max_size_per_msg_bytes" => config.max_size_per_msg_bytes = value,
                "max_inflight_msgs" => config.max_inflight_msgs = value,
                "max_proposal_bytes" => config.max_proposal_bytes = value,
                "max_pending_proposals" => config.max_pending_proposals = value,
                "max_uncommitted_bytes" => config.max_uncommitted_bytes = value,
                "max_unapplied_bytes" => config.max_unapplied_bytes = value,
                "max_committed_bytes_per_ready" => config.max_committed_bytes_per_ready = value,
                "entry_cache_bytes" => config.entry_cache_bytes = value,
                "unknown_after_ticks" => config.unknown_after_ticks = value,
                "compact_after_entries" => config.compact_after_entries = value as u64,
                "compact_keep_entries" => config.compact_keep_entries = value as u64,
                "spare_entries" => config.spare_entries = value as u64,
                "lease_ms" => config.lease = Duration::from_millis(value as u64),
                "sleep_after_ticks" => config.sleep_after_ticks = value,
                "write_stall_ticks" => config.write_stall_ticks = value,
                other => return Err(format!("unknown setting {other}").into()),
            }
        }
        self.cluster = Some(Cluster::new(voters, learners, config));
        Ok(String::new())
    }

    fn rouse(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        if name == "lost" {
            let store = StoreId::new(position(args)?);
            return Ok(format!("{:?}\n", self.cluster().region(id).leader_lost(store)));
        }
        if name == "chill" {
            let text = if self.cluster().chill(id) { "made anew" } else { "it does not sleep" };
            return Ok(format!("{text}\n"));
        }
        if name == "presume" {
            let leader = PeerId::new(position(args)?);
            let region = self.cluster().region(id);
            region.count_as_passed(args.lookup_parse("passed")?.unwrap_or(0));
            region.presume_leader(leader);
            return Ok(String::new());
        }
        let silent = args.next_pos().map_or(Ok(0), |argument| argument.parse())?;
        self.cluster().region(id).wake(silent);
        Ok(String::new())
    }

    fn propose(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let size: usize = args.lookup_parse("size")?.unwrap_or(0);
        let (conf_ver, version) = (args.lookup_parse("conf_ver")?, args.lookup_parse("version")?);
        let epoch = (conf_ver.is_some() || version.is_some()).then(|| RegionEpoch {
            conf_ver: conf_ver.unwrap_or(1),
            version: version.unwrap_or(1),
        });
        let batch = args.rest_pos().into_iter().map(|argument| {
            let name = argument.value.clone();
            let mut payload = name.clone().into_bytes();
            payload.resize(payload.len().max(size), b'.');
            (name, Bytes::from(payload), epoch)
        });
        let batch = batch.collect();
        self.cluster().propose(id, batch);
        Ok(String::new())
    }

    fn read(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let mode: Option<String> = args.lookup_parse("mode")?;
        let at: Option<u64> = args.lookup_parse("at")?;
        let (conf_ver, version) = (args.lookup_parse("conf_ver")?, args.lookup_parse("version")?);
        let epoch = (conf_ver.is_some() || version.is_some()).then(|| RegionEpoch {
            conf_ver: conf_ver.unwrap_or(1),
            version: version.unwrap_or(1),
        });
        let mode = match (mode.as_deref(), at) {
            (Some("leader"), None) => ReadMode::LeaderOnly,
            (None, Some(at)) => ReadMode::Stale { at_least: Index::new(at) },
            (None, None) => ReadMode::Linearizable,
            _ => return Err("no such mode".into()),
        };
        let names: Vec<String> = args.rest_pos().into_iter().map(|a| a.value.clone()).collect();
        self.cluster().read(id, &names, mode, epoch);
        Ok(String::new())
    }

    fn fill(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let (id, count) = (position(args)?, position(args)?);
        let prefix: String = args.lookup_parse("prefix")?.unwrap_or("c".into());
        let names = (1..=count).map(|n| format!("{prefix}{n}"));
        let batch = names.map(|name| (name.clone(), Bytes::from(name), None)).collect();
        self.cluster().propose(id, batch);
        Ok(String::new())
    }

    fn deliver(&mut self, args: &mut ArgumentConsumer<'_>, lose: bool) -> Output {
        let (from, to): (Option<u64>, Option<u64>) =
            (args.lookup_parse("from")?, args.lookup_parse("to")?);
        let kind: Option<String> = args.lookup_parse("type")?;
        let matches = |envelope: &Envelope| {
            from.is_none_or(|from| envelope.from.store.get() == from)
                && to.is_none_or(|to| envelope.to.store.get() == to)
                && kind.as_ref().is_none_or(|kind| short_type(&envelope.message) == *kind)
        };
        let mut out = String::new();
        let cluster = self.cluster();
        if lose {
            cluster.network.retain(|envelope| !matches(envelope));
            return Ok(out);
        }
        while cluster.deliver(matches, &mut out).is_some() {}
        Ok(out)
    }

    fn send(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let (from, to) = (position(args)?, position(args)?);
        let kind: String = args.lookup_parse("type")?.ok_or("type is missing")?;
        let msg_type = match kind.as_str() {
            "Heartbeat" => MessageType::MsgHeartbeat,
            "Append" => MessageType::MsgAppend,
            "AppendResponse" => MessageType::MsgAppendResponse,
            "Snapshot" => MessageType::MsgSnapshot,
            "Hup" => MessageType::MsgHup,
            "ReadIndex" => MessageType::MsgReadIndex,
            "ReadIndexResp" => MessageType::MsgReadIndexResp,
            "PreVoteResponse" => MessageType::MsgRequestPreVoteResponse,
            "HeartbeatResponse" => MessageType::MsgHeartbeatResponse,
            other => return Err(format!("unknown type {other}").into()),
        };
        let entries: usize = args.lookup_parse("entries")?.unwrap_or(0);
        let data = Bytes::from(vec![b'.'; args.lookup_parse("bytes")?.unwrap_or(0)]);
        let entry = || Entry { data: data.clone(), ..Entry::default() };
        let message = Message {
            msg_type,
            entries: (0..entries).map(|_| entry()).collect::<Vec<_>>().into(),
            from,
            to,
            term: args.lookup_parse("term")?.unwrap_or(6),
            index: args.lookup_parse("index")?.unwrap_or(0),
            log_term: args.lookup_parse("log_term")?.unwrap_or(0),
            commit: args.lookup_parse("commit")?.unwrap_or(0),
            reject: args.lookup_parse("reject")?.unwrap_or(false),
            reject_hint: args.lookup_parse("hint")?.unwrap_or(0),
            ..Message::default()
        };
        let peer = |id| Peer::voter(PeerId::new(id), StoreId::new(id));
        let envelope = Envelope {
            cluster_id: args.lookup_parse("cluster")?.unwrap_or(CLUSTER),
            region_id: REGION,
            from: peer(from),
            to: peer(to),
            epoch: RegionEpoch { conf_ver: 1, version: 1 },
            message,
            description: None,
        };
        match self.cluster().region(to).step(Box::new(envelope)) {
            Ok(()) => Ok("accepted\n".into()),
            Err(rejection) => Ok(format!("rejected: {rejection}\n")),
        }
    }

    fn change(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let name = args.next_pos().ok_or("a name is missing")?.value.clone();
        let mut changes = Vec::new();
        for argument in args.rest_key() {
            let value: u64 = argument.parse()?;
            let (peer, store) = (PeerId::new(value), StoreId::new(value));
            changes.push(match argument.key.as_deref().unwrap_or_default() {
                "add" => PeerChange::Add(Peer::voter(peer, store)),
                "learner" => PeerChange::Add(Peer::learner(peer, store)),
                "promote" => PeerChange::Promote(peer),
                "demote" => PeerChange::Demote(peer),
                "remove" => PeerChange::Remove(peer),
                other => return Err(format!("unknown change {other}").into()),
            });
        }
        self.cluster().admin(id, &name, &AdminCommand::ChangePeers(changes), None);
        Ok(String::new())
    }

    fn split(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let name = args.next_pos().ok_or("a name is missing")?.value.clone();
        let parent_is_right = args.lookup_parse("right")?.unwrap_or(false);
        let peers = self.cluster().region(id).description().peers.clone();
        let keys: Vec<Bytes> =
            args.rest_pos().into_iter().map(|key| Bytes::from(key.value.clone())).collect();
        let regions = (0..keys.len() as u64).map(|at| NewRegion {
            id: RegionId::new(10 + at),
            peers: peers.iter().map(|p| PeerId::new(100 * (at + 1) + p.store.get())).collect(),
        });
        let regions = regions.collect();
        let request = SplitRequest { keys, regions, parent_is_right };
        self.cluster().admin(id, &name, &AdminCommand::Split(request), None);
        Ok(String::new())
    }

    fn membership(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Output {
        match name {
            "change" => return self.change(args),
            "split" => return self.split(args),
            _ => {}
        }
        let id = position(args)?;
        let cluster = self.cluster();
        match name {
            "spare" => {
                let nothing = RegionDescription::uninitialised(REGION, 0);
                cluster.create(id, &RegionRecord::new(nothing, PeerId::new(id)));
            }
            "transfer" => {
                let name = args.next_pos().ok_or("a name is missing")?.value.clone();
                let target: Option<u64> = args.lookup_parse("to")?;
                cluster.transfer(id, &name, target.map(PeerId::new));
            }
            "snapshot" => {
                cluster.make_snapshot(id);
            }
            _ => {
                let to = PeerId::new(position(args)?);
                cluster.region(id).snapshot_sent(to, name == "arrived");
            }
        }
        Ok(String::new())
    }

    fn status(&mut self, args: &mut ArgumentConsumer<'_>) -> Output {
        let mut ids: Vec<u64> = Vec::new();
        for argument in args.rest_pos() {
            ids.push(argument.parse()?);
        }
        let mut out = String::new();
        let cluster = self.cluster();
        if ids.is_empty() {
            ids = cluster.ids();
        }
        for id in ids {
            match &cluster.store(id).region {
                Some(region) => writeln!(out, "{id} {}", print::status(region))?,
                None => writeln!(out, "{id} down")?,
            }
        }
        Ok(out)
    }

    fn life(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let cluster = self.cluster();
        match name {
            "kill" => cluster.stop(id, true),
            "crash" => {
                cluster.stop(id, true);
                cluster.start(id)?;
            }
            "restart" => {
                cluster.stop(id, false);
                cluster.start(id)?;
            }
            "start" => cluster.start(id)?,
            _ => {
                let mut effects = Effects::default();
                cluster.region(id).shutdown(&mut effects);
                effects.answers.drain(..).for_each(|(callback, answer)| callback.call(answer));
                effects.reads.drain(..).for_each(|(callback, answer)| callback.call(answer));
                assert!(effects.is_empty());
            }
        }
        Ok(String::new())
    }

    fn work(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Output {
        let id = position(args)?;
        let most = args.next_pos().map(|argument| argument.parse()).transpose()?;
        let mut out = String::new();
        let cluster = self.cluster();
        match name {
            "collect" => while cluster.collect(id, &mut out) {},
            "persist" => {
                let most: usize = most.unwrap_or(usize::MAX);
                for _ in 0..most {
                    if !cluster.persist(id, &mut out) {
                        break;
                    }
                }
            }
            "apply" => while cluster.apply(id) {},
            "flush" => cluster.store(id).flushed = cluster.store(id).machine.clone(),
            "break-reads" => cluster.store(id).disk.fail_reads(true),
            "damage" => cluster.store(id).disk.damage(most.ok_or("index is missing")? as u64),
            "reads" => writeln!(out, "{}", cluster.store(id).disk.take_reads())?,
            "machine" => {
                for (index, payload) in &cluster.store(id).machine.commands {
                    write!(out, "{index} {} ", String::from_utf8_lossy(payload))?;
                }
                out = out.trim_end().into();
            }
            _ => {
                cluster.compact(id, &mut out);
            }
        }
        Ok(out)
    }
}

impl Runner for Script {
    fn run(&mut self, command: &Command) -> Output {
        let mut args = command.consume_args();
        let args = &mut args;
        let mut out = match command.name.as_str() {
            "cluster" => self.start_cluster(args)?,
            "campaign" => {
                let id = position(args)?;
                format!("{:?}\n", self.cluster().region(id).campaign())
            }
            "tick" => {
                let id = position(args)?;
                let count = args.next_pos().map_or(Ok(1), |argument| argument.parse())?;
                (0..count).for_each(|_: u64| self.cluster().tick(id));
                String::new()
            }
            name @ ("wake" | "lost" | "chill" | "presume") => self.rouse(name, args)?,
            "propose" => self.propose(args)?,
            "fill" => self.fill(args)?,
            "read" => self.read(args)?,
            "serving" => {
                let id = position(args)?;
                format!("{}\n", print::serving(self.cluster().region(id)))
            }
            "deliver" => self.deliver(args, false)?,
            "lose" => self.deliver(args, true)?,
            "send" => self.send(args)?,
            "stabilize" => {
                let mut ids: Vec<u64> = Vec::new();
                for argument in args.rest_pos() {
                    ids.push(argument.parse()?);
                }
                let cluster = self.cluster();
                let ids = if ids.is_empty() { cluster.ids() } else { ids };
                let mut out = String::new();
                cluster.stabilize(&ids, &mut out);
                out
            }
            "cut" => {
                let id = position(args)?;
                self.cluster().cut.insert(id);
                String::new()
            }
            "heal" => {
                self.cluster().cut.clear();
                String::new()
            }
            "status" => self.status(args)?,
            name @ ("kill" | "crash" | "restart" | "start" | "shutdown") => {
                self.life(name, args)?
            }
            name @ ("collect" | "persist" | "apply" | "flush" | "compact" | "break-reads"
            | "damage" | "reads" | "machine") => self.work(name, args)?,
            name @ ("spare" | "change" | "split" | "transfer" | "snapshot" | "arrived"
            | "failed") => self.membership(name, args)?,
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_rest()?;
        for (name, answer) in self.cluster().take_answers() {
            writeln!(out, "answer {}", print::answer(&name, &answer))?;
        }
        for (name, answer) in self.cluster().take_reads() {
            writeln!(out, "read {}", print::read(&name, &answer))?;
        }
        Ok(out)
    }

    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        self.cluster().finish();
        Ok(())
    }
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let path = concat!("tests/scripts/", stringify!($name), ".txt");
                goldenscript::run(&mut Script::default(), path).unwrap();
            }
        )*

        #[test]
        fn every_script_is_run() {
            let listed = [$(stringify!($name)),*];
            for file in std::fs::read_dir("tests/scripts").unwrap() {
                let name = file.unwrap().file_name().into_string().unwrap();
                assert!(listed.contains(&name.trim_end_matches(".txt")), "{name} is not run");
            }
        }
    };
}

scripts! {
    append_response_waits_for_persist
    backlog_drops_appends_and_catches_up
    backpressure_busy
    busy_region_sends_few_heartbeats
    campaign_postponed_until_applied
    campaign_under_a_live_leader_is_refused
    compaction_waits_for_slow_follower
    crash_between_record_and_split_replays_the_split
    crash_loses_unpersisted_tail
    damaged_entry_quarantines_the_region
    disk_that_hangs_loses_leadership
    election_by_prevote
    epoch_mismatch_refused
    failed_read_quarantines_the_region
    follower_read_waits_for_apply
    idle_region_keeps_no_entries
    lagging_follower_served_from_log
    late_refusal_of_a_pre_vote_breaks_no_promise
    late_rejection_does_not_need_what_is_cut
    leader_steps_down_without_quorum
    leader_that_should_leave_hands_over_first
    lease_off_during_transfer
    lease_off_while_peers_or_range_change
    lease_renewed_by_commits
    lone_voter_holds_messages_until_term_is_durable
    lone_voter_stands_at_once_after_a_restart
    malformed_read_index_rejected
    many_proposals_one_append
    message_only_ready_waits_behind_unpersisted_write
    peers_are_added_promoted_and_replaced
    presumed_leader_that_asks_for_votes_is_helped
    read_answered_on_shutdown
    read_index_shared
    read_waits_for_own_term
    removed_peer_that_was_cut_off_learns_it_when_it_asks_for_votes
    removal_waits_for_a_split_under_way
    snapshot_replaces_a_longer_log
    split_is_applied_after_its_records_are_durable
    transfer_of_leadership
    transfer_that_is_lost_times_out
    one_leader_per_term_after_hard_state_persist
    replication_one_proposal
    restart_replays_committed
    restarted_voter_among_others_waits
    shutdown_answers_everything
    cold_peers_go_on_as_they_were
    sleep_is_agreed_upon
    sleeping_peers_wake_each_other
    sleeping_followers_elect_when_the_leaders_store_is_lost
    stale_proposal_answered_after_overwrite
    stale_reads_wait_for_their_index_only
    strange_messages_are_rejected
    too_large_refused
    unknown_after_long_partition
}
