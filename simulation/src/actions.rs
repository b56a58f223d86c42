//! What the actions of a plan do. A new kind of action is an arm here, one in [`end`] if it is taken
//! back, and a place in a scenario.

use crate::check::Kind;
use crate::clients::{FIRST_BURST_KEY, NOBODY};
use crate::faults::FaultKind;
use crate::moves;
use crate::plan::Action;
use crate::trace::Event;
use crate::world::World;
use raftstore::RegionId;

/// An action begins.
pub(crate) fn begin(world: &mut World, action: &Action) {
    world.record(0, 0, &Event::Action { text: format!("{action:?}") });
    match action {
        Action::Crash { .. }
        | Action::CrashInside { .. }
        | Action::Restart { .. }
        | Action::Pause { .. }
        | Action::JumpClock { .. }
        | Action::DriftClock { .. } => begin_of_process(world, action),
        Action::Partition { .. }
        | Action::CutOneWay { .. }
        | Action::CutBetween { .. }
        | Action::SlowLink { .. }
        | Action::FullPipe { .. }
        | Action::Lose { .. }
        | Action::Replay { .. } => network(world, action, true),
        Action::FailWrite { .. }
        | Action::FailSync { .. }
        | Action::FillDisk { .. }
        | Action::SlowDisk { .. }
        | Action::HangDisk { .. }
        | Action::DamageLog { .. } => begin_of_disk(world, action),
        Action::Flush { store } => {
            let regions = world.process(*store).machine.lock().flush();
            world.record(*store, 0, &Event::Flushed { regions });
        }
        Action::Reclaim { store } => {
            if let Some(running) = &mut world.process(*store).running {
                running.store.reclaim();
            }
            world.settle(*store);
        }
        Action::Burst { store, region, count } => burst(world, *store, *region, *count),
        Action::Campaign { store, region } => {
            if let Some(running) = &world.process(*store).running {
                running.store.handle().campaign(RegionId::new(*region));
            }
            world.arrange(*store);
        }
        Action::ChangePeers { region, choice } => moves::change_peers(world, *region, *choice),
        Action::Split { region, choice } => moves::split(world, *region, *choice),
        Action::Transfer { region, choice } => moves::transfer(world, *region, *choice),
        Action::Add { region, choice } => moves::add(world, *region, *choice),
        Action::Uproot => moves::uproot(world),
        Action::Stall { store, thread, for_us } => world.stall(*store, *thread, *for_us),
        Action::Ambush { sight, strike } => world.ambushes.lay(*sight, *strike),
        Action::ExpectLeaders { without, within_us, deaf } => {
            world.expect_leaders((*without, *deaf), *within_us);
        }
        Action::ExpectService { within_us } => world.expect_service(*within_us),
    }
}

/// An action is taken back.
pub(crate) fn end(world: &mut World, action: &Action) {
    world.record(0, 0, &Event::Action { text: format!("end of {action:?}") });
    match action {
        Action::Pause { store, .. } => {
            world.process(*store).paused = false;
            world.arrange(*store);
        }
        Action::DriftClock { store, .. } => {
            let now_us = world.agenda.now_us();
            let process = world.process(*store);
            process.set_clock(now_us);
            process.speed_pm = 1000;
        }
        Action::FillDisk { store, .. } => fill(world, *store, false),
        Action::SlowDisk { store, .. } => world.process(*store).disk_slow_us = 0,
        Action::DamageLog { store, .. } => repair(world, *store),
        _ => network(world, action, false),
    }
}

fn begin_of_process(world: &mut World, action: &Action) {
    let now_us = world.agenda.now_us();
    match action {
        Action::Crash { store, down_us } => {
            if world.bury(*store) {
                world.fired.note(FaultKind::Crash);
                world.start_in(*store, *down_us);
            }
        }
        Action::CrashInside { store, calls, .. } => {
            if let Some(running) = &world.process(*store).running {
                running.life.end_after(*calls);
            }
        }
        Action::Restart { store, down_us } => {
            if world.shut_down(*store) {
                world.fired.note(FaultKind::CleanRestart);
                world.start_in(*store, *down_us);
            }
        }
        Action::Pause { store, .. } => {
            let process = world.process(*store);
            if process.is_awake() {
                process.paused = true;
                world.fired.note(FaultKind::Pause);
            }
        }
        Action::JumpClock { store, by_us } => {
            let process = world.process(*store);
            process.set_clock(now_us);
            process.leap(*by_us);
            world.fired.note(FaultKind::ClockJump);
        }
        Action::DriftClock { store, speed_pm, .. } => {
            let process = world.process(*store);
            process.set_clock(now_us);
            process.speed_pm = (*speed_pm).max(1);
            world.fired.note(FaultKind::ClockDrift);
        }
        _ => unreachable!("{action:?} is not of a process"),
    }
}

fn network(world: &mut World, action: &Action, begins: bool) {
    let network = &mut world.network;
    match action {
        Action::Partition { side, .. } => {
            for one in side {
                for other in (1..=world.plan.cluster.stores).filter(|store| !side.contains(store)) {
                    network.cut(*one, other, FaultKind::PartitionSymmetric, begins);
                    network.cut(other, *one, FaultKind::PartitionSymmetric, begins);
                }
            }
        }
        Action::CutOneWay { from, to, .. } => {
            network.cut(*from, *to, FaultKind::PartitionOneWay, begins);
        }
        Action::CutBetween { one, other, .. } => {
            network.cut(*one, *other, FaultKind::PartitionPartial, begins);
            network.cut(*other, *one, FaultKind::PartitionPartial, begins);
        }
        Action::SlowLink { from, to, by_us, .. } => {
            network.slow(*from, *to, if begins { *by_us } else { 0 });
        }
        Action::FullPipe { from, to, .. } => {
            let full = &mut world.around.outgoing.lock().full;
            match begins {
                true => full.insert((*from, *to)),
                false => full.remove(&(*from, *to)),
            };
        }
        Action::Lose { drop_pm, .. } => network.lose(if begins { *drop_pm } else { 0 }),
        Action::Replay { count } => {
            let now_us = world.agenda.now_us();
            for arrival in world.network.replay(now_us, *count) {
                let at_us = arrival.at_us;
                world.agenda.add(at_us, crate::agenda::Occasion::Arrive(arrival));
            }
        }
        _ => {}
    }
}

fn begin_of_disk(world: &mut World, action: &Action) {
    let now_us = world.agenda.now_us();
    match action {
        Action::FailWrite { store } => {
            world.process(*store).device.troubles.lock().fail_write = true
        }
        Action::FailSync { store } => world.process(*store).device.troubles.lock().fail_sync = true,
        Action::FillDisk { store, .. } => fill(world, *store, true),
        Action::SlowDisk { store, by_us, .. } => world.process(*store).disk_slow_us = *by_us,
        Action::HangDisk { store, for_us } => {
            world.process(*store).disk_hangs_until_us = now_us + for_us;
            world.fired.note(FaultKind::HungDisk);
        }
        Action::DamageLog { store, down_us, .. } => {
            // With raft-engine in order: after a crash its note of what is synced may be behind, and what
            // rots then in the last file passes for a torn write.
            let ended = match world.process(*store).files.is_some() {
                true => world.shut_down(*store),
                false => world.bury(*store),
            };
            if ended {
                damage(world, *store);
                world.start_in(*store, *down_us);
            }
        }
        _ => unreachable!("{action:?} is not of a disk"),
    }
}

/// A store's disk is full from now on, or no more.
fn fill(world: &mut World, store: u64, full: bool) {
    let process = world.process(store);
    process.device.troubles.lock().full = full;
    if let Some(files) = &process.files {
        files.files.set_capacity(full.then(|| files.files.used_bytes()));
    }
}

/// A bit flips on the disk of a store that does not run.
fn damage(world: &mut World, store: u64) {
    let process = &mut world.processes[store as usize - 1];
    if let Some(files) = &mut process.files {
        if files.flip.is_none() {
            files.flip = files.files.flip_bit(&mut world.damage);
            process.device.troubles.lock().flipped = files.flip.is_some();
        }
        return;
    }
    let disk = process.device.disk.lock();
    let regions: Vec<RegionId> = disk.current().regions.keys().copied().collect();
    let damaged = (!regions.is_empty()).then(|| *world.damage.pick(&regions));
    process.device.troubles.lock().damaged = damaged;
}

/// The damaged log is as it was before, and the store starts with it.
pub(crate) fn repair(world: &mut World, store: u64) {
    let troubles = world.process(store).device.troubles.clone();
    let is_damaged = troubles.lock().damaged.is_some() || troubles.lock().flipped;
    if !is_damaged {
        return;
    }
    let ran = world.shut_down(store);
    let process = world.process(store);
    if let Some(files) = &mut process.files {
        if let Some(flip) = files.flip.take() {
            files.files.undo(&flip);
        }
    }
    let was_broken = std::mem::take(&mut process.broken);
    let mut troubles = troubles.lock();
    (troubles.damaged, troubles.flipped) = (None, false);
    drop(troubles);
    if ran || was_broken {
        world.start(store);
    }
}

/// More proposals at once than a mailbox holds.
fn burst(world: &mut World, store: u64, region: u64, count: u64) {
    let now_us = world.agenda.now_us();
    let table = world.table_of(region);
    for number in 0..count {
        let value = world.clients.records().len() as u64;
        let key = FIRST_BURST_KEY + number % 8;
        let operation =
            world.clients.record(now_us, NOBODY, (table, region, store), key, Kind::Write(value));
        let process = &world.processes[store as usize - 1];
        world.clients.ask(operation, process.running.as_ref());
    }
    world.settle(store);
}
