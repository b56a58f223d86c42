//! What becomes of messages: late, lost, doubled, out of order, cut off.

use crate::faults::{FaultKind, Fired};
use crate::plan::NetworkPlan;
use crate::random::Random;
use crate::transport::Packet;
use std::collections::BTreeMap;

/// Old packets kept for a late replay.
const MUSEUM: usize = 32;

/// Packets on one link; more are lost.
const MAX_ON_LINK: u64 = 4096;

#[derive(Debug, Default)]
struct Link {
    /// Cuts in force, by kind.
    cuts: Vec<FaultKind>,
    /// Added to every delay.
    slow_us: u64,
    on_the_way: u64,
    sent: u64,
    /// The latest packet delivered.
    delivered: u64,
    /// When the last one arrives, for links that keep the order.
    last_us: u64,
}

/// A packet that will arrive.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// When, in microseconds.
    pub at_us: u64,
    /// Its number on its link.
    pub number: u64,
    /// The messages.
    pub packet: Packet,
}

/// The network between the stores.
#[derive(Debug)]
pub(crate) struct Network {
    plan: NetworkPlan,
    random: Random,
    links: BTreeMap<(u64, u64), Link>,
    /// Added to the plan's chance to lose a message.
    extra_drop_pm: u64,
    museum: Vec<Packet>,
    /// What has struck.
    pub fired: Fired,
}

impl Network {
    /// A healthy one.
    pub(crate) fn new(plan: &NetworkPlan, random: Random) -> Self {
        Self {
            plan: plan.clone(),
            random,
            links: BTreeMap::new(),
            extra_drop_pm: 0,
            museum: Vec::new(),
            fired: Fired::default(),
        }
    }

    /// Cuts a link, or heals the cut of this kind.
    pub(crate) fn cut(&mut self, from: u64, to: u64, kind: FaultKind, cut: bool) {
        let cuts = &mut self.links.entry((from, to)).or_default().cuts;
        match cut {
            true => cuts.push(kind),
            false => {
                if let Some(at) = cuts.iter().position(|known| *known == kind) {
                    cuts.remove(at);
                }
            }
        }
    }

    /// Makes a link slower by so much, or as it was with 0.
    pub(crate) fn slow(&mut self, from: u64, to: u64, by_us: u64) {
        self.links.entry((from, to)).or_default().slow_us = by_us;
    }

    /// Loses more messages on all links.
    pub(crate) fn lose(&mut self, extra_drop_pm: u64) {
        self.extra_drop_pm = extra_drop_pm;
    }

    /// All is well from now on.
    pub(crate) fn heal(&mut self) {
        self.extra_drop_pm = 0;
        self.plan.drop_pm = 0;
        for link in self.links.values_mut() {
            link.cuts.clear();
            link.slow_us = 0;
        }
    }

    /// Takes a packet over: what of it arrives, and when.
    pub(crate) fn take(&mut self, now_us: u64, mut packet: Packet) -> Vec<Arrival> {
        let link = self.links.entry((packet.from, packet.to)).or_default();
        if let Some(kind) = link.cuts.first() {
            self.fired.note_many(*kind, packet.len() as u64);
            return Vec::new();
        }
        let (random, drop_pm) = (&mut self.random, self.plan.drop_pm + self.extra_drop_pm);
        let before = packet.len();
        packet.messages.retain(|_| !random.chance(drop_pm));
        packet.snapshot = packet.snapshot.take().filter(|_| !random.chance(drop_pm));
        packet.ping = packet.ping.take().filter(|_| !random.chance(drop_pm));
        let left = packet.len();
        self.fired.note_many(FaultKind::MessageDropped, (before - left) as u64);
        if left == 0 || link.on_the_way >= MAX_ON_LINK {
            return Vec::new();
        }
        if self.random.chance(20) {
            let at = self.random.index(MUSEUM);
            match self.museum.get_mut(at) {
                Some(old) => *old = packet.clone(),
                None => self.museum.push(packet.clone()),
            }
        }
        let mut arrivals = Vec::new();
        if self.random.chance(self.plan.duplicate_pm) {
            self.fired.note(FaultKind::MessageDuplicated);
            arrivals.push(self.send(now_us, packet.clone()));
        }
        arrivals.push(self.send(now_us, packet));
        arrivals
    }

    /// Sends old packets once more.
    pub(crate) fn replay(&mut self, now_us: u64, count: u64) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for _ in 0..count {
            if self.museum.is_empty() {
                break;
            }
            let packet = self.random.pick(&self.museum).clone();
            self.fired.note(FaultKind::MessageReplayed);
            arrivals.push(self.send(now_us, packet));
        }
        arrivals
    }

    /// A packet arrives, unless its link was cut meanwhile.
    pub(crate) fn arrive(&mut self, number: u64, packet: &Packet) -> bool {
        let link = self.links.entry((packet.from, packet.to)).or_default();
        link.on_the_way -= 1;
        if let Some(kind) = link.cuts.first() {
            self.fired.note_many(*kind, packet.len() as u64);
            return false;
        }
        if number < link.delivered {
            self.fired.note(FaultKind::MessageReordered);
        }
        link.delivered = link.delivered.max(number);
        true
    }

    fn send(&mut self, now_us: u64, packet: Packet) -> Arrival {
        let link = self.links.entry((packet.from, packet.to)).or_default();
        let (min, max) = self.plan.delay_us;
        let mut delay_us = self.random.within(min..max + 1);
        if self.random.chance(self.plan.straggler_pm) {
            delay_us += self.random.within(max..20 * max + 1);
        }
        if link.slow_us > 0 {
            self.fired.note(FaultKind::SlowLink);
            delay_us += link.slow_us;
        }
        let mut at_us = now_us + delay_us;
        if self.plan.in_order {
            at_us = at_us.max(link.last_us);
        }
        link.last_us = at_us;
        link.sent += 1;
        link.on_the_way += 1;
        Arrival { at_us, number: link.sent, packet }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::{Bytes, Envelope};

    fn packet() -> Packet {
        let envelope = Envelope::decode(&Bytes::new()).expect("an empty one");
        Packet { from: 1, to: 2, messages: vec![Box::new(envelope)], snapshot: None, ping: None }
    }

    fn network(plan: NetworkPlan) -> Network {
        Network::new(&plan, Random::new(1))
    }

    #[test]
    fn a_cut_stops_what_is_sent_and_what_is_under_way() {
        let mut network = network(NetworkPlan::default());
        let arrival = network.take(0, packet()).pop().expect("it is healthy");
        network.cut(1, 2, FaultKind::PartitionOneWay, true);
        assert!(network.take(0, packet()).is_empty());
        assert!(!network.arrive(arrival.number, &arrival.packet));
        assert_eq!(network.fired.count(FaultKind::PartitionOneWay), 2);
        network.cut(1, 2, FaultKind::PartitionOneWay, false);
        assert_eq!(network.take(0, packet()).len(), 1);
    }

    #[test]
    fn links_in_order_keep_it_and_others_do_not() {
        for in_order in [true, false] {
            let plan = NetworkPlan { in_order, delay_us: (10, 1000), ..NetworkPlan::default() };
            let mut network = network(plan);
            let times: Vec<u64> =
                (0..100).map(|now| network.take(now, packet())[0].at_us).collect();
            assert_eq!(times.is_sorted(), in_order);
        }
    }

    #[test]
    fn lost_and_doubled_messages_are_counted() {
        let plan = NetworkPlan { drop_pm: 500, duplicate_pm: 500, ..NetworkPlan::default() };
        let mut network = network(plan);
        let arrivals: usize = (0..1000).map(|_| network.take(0, packet()).len()).sum();
        let dropped = network.fired.count(FaultKind::MessageDropped) as usize;
        let doubled = network.fired.count(FaultKind::MessageDuplicated) as usize;
        assert_eq!(arrivals, 1000 - dropped + doubled);
        assert!((400..600).contains(&dropped) && (150..350).contains(&doubled));
    }
}
