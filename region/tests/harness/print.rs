//! Effects, readably.

use raft::eraftpb::{Entry, Message, MessageType};
use region::*;

pub fn role_change(change: &RoleChange) -> String {
    let leader = change.leader.map_or("none".into(), |leader| leader.to_string());
    format!("is {:?} in term {}, leader {leader}", change.role, change.term)
}

fn entry(entry: &Entry) -> String {
    let what = match Command::decode(RegionId::new(1), entry.clone()) {
        Ok(Command::Empty) => "-".into(),
        Ok(Command::User { payload, .. }) => payload_text(&payload),
        Ok(Command::Split { request, .. }) => format!("split at {:?}", request.keys),
        Ok(Command::ChangePeers { change, .. }) => {
            let changes = change.changes.iter();
            let changes = changes.map(|c| format!("{:?} {}", c.get_change_type(), c.node_id));
            format!("change {}", changes.collect::<Vec<_>>().join(", "))
        }
        Ok(Command::LeaveJoint) => "leave joint".into(),
        Ok(Command::CompactLog { index, .. }) => format!("compact({index})"),
        Err(_) => "?".into(),
    };
    format!("{}/{} {what}", entry.index, entry.term)
}

fn payload_text(payload: &[u8]) -> String {
    match payload.len() {
        0..=12 => String::from_utf8_lossy(payload).into_owned(),
        long => {
            let name: Vec<u8> = payload.iter().copied().take_while(|byte| *byte != b'.').collect();
            format!("{}({long} bytes)", String::from_utf8_lossy(&name))
        }
    }
}

fn entries(list: &[Entry]) -> String {
    if let [first, .., last] = list {
        if list.len() > 4 {
            return format!("[{} .. {}]", entry(first), entry(last));
        }
    }
    format!("[{}]", list.iter().map(entry).collect::<Vec<_>>().join(", "))
}

pub fn envelope(envelope: &Envelope) -> String {
    if envelope.message.from == 0 {
        let said = match &envelope.description {
            Some(told) => format!("tells: {}", region(told)),
            None => "asks".into(),
        };
        return format!("{}→{} {said}", envelope.from.id, envelope.to.id);
    }
    let text = message(&envelope.message);
    format!("{}→{} {text}", envelope.from.id, envelope.to.id)
}

fn message(message: &Message) -> String {
    use MessageType::*;
    let m = message;
    let answer = if m.reject { "no" } else { "yes" };
    match m.get_msg_type() {
        MsgAppend => format!(
            "Append term={} after {}/{} commit={} {}",
            m.term,
            m.index,
            m.log_term,
            m.commit,
            entries(&m.entries)
        ),
        MsgAppendResponse if m.reject => format!(
            "AppendResponse term={} no to {}, try {}/{}",
            m.term, m.index, m.reject_hint, m.log_term
        ),
        MsgAppendResponse => format!("AppendResponse term={} has {}", m.term, m.index),
        MsgHeartbeat if m.context.len() == 24 => {
            format!("Heartbeat term={} commit={} for {}", m.term, m.commit, question(&m.context))
        }
        MsgHeartbeatResponse if m.context.len() == 24 => {
            format!("HeartbeatResponse term={} for {}", m.term, question(&m.context))
        }
        MsgReadIndex => format!("ReadIndex {}", question(&m.entries[0].data)),
        MsgReadIndexResp => {
            format!("ReadIndexResp term={} {} at {}", m.term, question(&m.entries[0].data), m.index)
        }
        MsgHeartbeat => {
            format!("Heartbeat term={} commit={}{}", m.term, m.commit, sleep(&m.context))
        }
        MsgHeartbeatResponse => format!("HeartbeatResponse term={}{}", m.term, sleep(&m.context)),
        MsgRequestPreVote => format!("PreVote term={} log={}/{}", m.term, m.index, m.log_term),
        MsgRequestVote => format!("Vote term={} log={}/{}", m.term, m.index, m.log_term),
        MsgRequestPreVoteResponse => format!("PreVoteResponse term={} {answer}", m.term),
        MsgRequestVoteResponse => format!("VoteResponse term={} {answer}", m.term),
        MsgSnapshot => {
            let metadata = m.get_snapshot().get_metadata();
            format!("Snapshot term={} of {}/{}", m.term, metadata.index, metadata.term)
        }
        other => format!("{other:?}"),
    }
}

/// What a heartbeat says about sleep.
fn sleep(context: &[u8]) -> String {
    if context.len() != 25 {
        return String::new();
    }
    let index = u64::from_be_bytes(context[8..16].try_into().unwrap());
    match context[24] {
        1 => format!(" sleep at {index}?"),
        _ => format!(" sleeps at {index}"),
    }
}

/// A question for reads, by peer and number.
fn question(context: &[u8]) -> String {
    let word = |at: usize| u64::from_be_bytes(context[at..at + 8].try_into().unwrap());
    format!("{}#{}", word(0), word(16))
}

pub fn read(name: &str, answer: &ReadAnswer) -> String {
    match answer {
        Ok(point) => {
            let RegionEpoch { conf_ver, version } = point.epoch;
            format!(
                "{name}: by {} at {}, epoch {conf_ver}.{version}",
                point.way.label(),
                point.applied
            )
        }
        Err(error) => format!("{name}: {error}"),
    }
}

pub fn serving(region: &Region) -> String {
    let serving = region.serving();
    let until = serving.lease_until.map_or("none".into(), |until| format!("until {until:?}"));
    format!("lease {until}, applied {}, contents {}", serving.applied, serving.contents)
}

pub fn region(description: &RegionDescription) -> String {
    let key = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    let role = |role| match role {
        PeerRole::Voter => "",
        PeerRole::Learner => " learner",
        PeerRole::IncomingVoter => " incoming",
        PeerRole::DemotingVoter => " demoting",
        PeerRole::LeavingVoter => " leaving",
    };
    let peers = description.peers.iter().map(|peer| format!("{}{}", peer.id, role(peer.role)));
    format!(
        "region {} [{}..{}) epoch {}.{} peers {}{}",
        description.id,
        key(&description.start_key),
        key(&description.end_key),
        description.epoch.conf_ver,
        description.epoch.version,
        peers.collect::<Vec<_>>().join(","),
        if description.joint { " joint" } else { "" },
    )
}

pub fn write(write: &LogWrite) -> String {
    let mut parts = vec![format!("#{}", write.number)];
    if let Some(hard_state) = &write.hard_state {
        let (term, vote, commit) = (hard_state.term, hard_state.vote, hard_state.commit);
        parts.push(format!("term={term} vote={vote} commit={commit}"));
    }
    if !write.entries.is_empty() {
        parts.push(entries(&write.entries));
    }
    if let Some(snapshot) = &write.snapshot {
        parts.push(format!("begins after {}/{}", snapshot.index, snapshot.term));
    }
    for record in &write.records {
        parts.push(format!("record of {}", region(&record.description)));
    }
    if write.is_empty() {
        parts.push("nothing".into());
    }
    if write.needs_sync() {
        parts.push("sync".into());
    }
    parts.join(" ")
}

pub fn batch(batch: &ApplyBatch) -> String {
    let commands: Vec<_> = batch
        .commands
        .iter()
        .map(|command| {
            let mine = if command.callback.is_some() { "*" } else { "" };
            format!("{}/{} {}{mine}", command.index, command.term, payload_text(&command.payload))
        })
        .collect();
    let commands = match commands.as_slice() {
        [first, .., last] if commands.len() > 4 => format!("{first} .. {last}"),
        _ => commands.join(", "),
    };
    let change = match &batch.change {
        Some(RegionChange::Split { children, .. }) => {
            format!("split off {} ", children.iter().map(region).collect::<Vec<_>>().join(", "))
        }
        Some(RegionChange::Install) => "install ".into(),
        None => format!("[{commands}] "),
    };
    format!("{change}up to {}/{}", batch.applied.index, batch.applied.term)
}

pub fn answer(name: &str, answer: &Answer) -> String {
    match answer {
        Ok(response) => {
            let regions = regions_of_answer(response).unwrap_or_default();
            let regions = regions.iter().map(|it| format!("; {}", region(it)));
            let regions = regions.collect::<String>();
            format!("{name}: ok at {}/{}{regions}", response.index, response.term)
        }
        Err(error) => format!("{name}: {error}"),
    }
}

pub fn status(region: &Region) -> String {
    let s = region.status();
    let leader = s.leader.map_or("none".into(), |leader| leader.to_string());
    let mut text = format!(
        "{:?} term={} leader={leader} truncated={} applied={} committed={} persisted={} last={}",
        s.role, s.term, s.truncated, s.applied, s.committed, s.persisted, s.last
    );
    text += &format!(" waiting={} cached={}", s.pending_proposals, s.cached_entries);
    if s.asleep {
        text += " asleep";
    }
    if !s.matched.is_empty() {
        let matched: Vec<_> = s.matched.iter().map(|(id, index)| format!("{id}:{index}")).collect();
        text += &format!(" matched={}", matched.join(","));
    }
    text
}
