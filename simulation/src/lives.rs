//! How stores begin and end.

use crate::agenda::Occasion;
use crate::ambush::Sight;
use crate::faults::FaultKind;
use crate::process::Running;
use crate::trace::Event;
use crate::world::World;
use std::sync::Arc;

impl World {
    /// Starts a store that does not run.
    pub(crate) fn start(&mut self, store: u64) {
        let now_us = self.agenda.now_us();
        let process = &mut self.processes[store as usize - 1];
        process.set_clock(now_us);
        let started = process.start(&self.around, &mut self.random);
        let event = match (&started, &process.running) {
            (Ok(()), Some(running)) => {
                let handle = running.store.handle();
                Event::Started {
                    regions: handle.region_count(),
                    set_aside: handle.set_aside().len(),
                }
            }
            // It was killed while it started.
            (Ok(()), None) => {
                self.fired.note(FaultKind::CrashInsideStep);
                self.lose(store);
                self.start_in(store, 100_000);
                Event::Crashed
            }
            (Err(_), _) => Event::Refused,
        };
        if started.is_err() && self.process(store).device.troubles.lock().flipped {
            // As it should: it is damaged. It waits for its repair.
            self.process(store).broken = true;
            self.fired.note(FaultKind::FlippedBit);
        } else if started.is_err() && self.process(store).device.troubles.lock().full {
            // A log may need room to begin a file. Somebody tries again.
            self.fired.note(FaultKind::DiskFull);
            self.start_in(store, 200_000);
        } else if let Err(error) = started {
            let text = format!("store {store}: {error}");
            self.around.ledger.lock().violate("stores start", text);
        }
        self.record(store, 0, &event);
        self.ambush_store(store, Sight::Starts);
        self.settle(store);
    }

    /// Puts the next start of a store on the agenda.
    pub(crate) fn start_in(&mut self, store: u64, in_us: u64) {
        let lives = self.process(store).lives;
        self.agenda.add_in(in_us, Occasion::Start { store, lives });
    }

    /// A store's process ends at once, if it runs.
    pub(crate) fn bury(&mut self, store: u64) -> bool {
        let Some(running) = self.process(store).running.take() else { return false };
        running.life.end();
        let callbacks = running.callbacks.clone();
        if let Some(files) = &self.process(store).files {
            files.files.freeze();
        }
        drop(running);
        self.check_callbacks(store, &callbacks);
        self.clients.orphan(store);
        self.lose(store);
        self.record(store, 0, &Event::Crashed);
        true
    }

    /// What a crash takes away.
    fn lose(&mut self, store: u64) {
        let process = &mut self.processes[store as usize - 1];
        process.paused = false;
        process.wake_at_us = None;
        match &process.files {
            // What is left of it, the next start will find.
            Some(files) => files.files.crash(&mut self.damage),
            None => {
                let mut disk = process.device.disk.lock();
                let kept = self.damage.index(disk.unsynced() + 1);
                self.fired.note_many(FaultKind::UnsyncedLost, u64::from(kept < disk.unsynced()));
                disk.crash(kept);
            }
        }
        process.machine.lock().crash(&mut self.damage, &mut self.fired);
    }

    /// A store is shut down in order, if it runs. Everybody who waits for it is answered.
    pub(crate) fn shut_down(&mut self, store: u64) -> bool {
        let Some(running) = self.process(store).running.take() else { return false };
        let process = self.process(store);
        process.paused = false;
        process.wake_at_us = None;
        let Running { store: stopping, life, callbacks, .. } = running;
        stopping.shutdown();
        self.check_files(store);
        if !life.is_alive() {
            // Killed while it shut down.
            self.fired.note(FaultKind::CrashInsideStep);
            self.clients.orphan(store);
            self.lose(store);
            self.record(store, 0, &Event::Crashed);
            return true;
        }
        life.end();
        self.clients.directory.forget_leader(store);
        self.settle(store);
        self.check_callbacks(store, &callbacks);
        if let Some(record) = self.clients.unanswered(store) {
            let text = format!("store {store} was shut down and left {record:?}");
            self.around.ledger.lock().violate("one answer", text);
        }
        self.record(store, 0, &Event::Stopped);
        true
    }

    /// Every file of a store that has ended is closed.
    fn check_files(&mut self, store: u64) {
        let open = self.process(store).files.as_ref().map_or(0, |files| files.files.open_handles());
        if open > 0 {
            let text = format!("store {store} has ended, and {open} files are still open");
            self.around.ledger.lock().violate("no file leaks", text);
        }
    }

    /// Every callback of a store that has ended is gone.
    fn check_callbacks(&mut self, store: u64, callbacks: &Arc<()>) {
        let left = Arc::strong_count(callbacks) - 1;
        if left > 0 {
            let text = format!("store {store} has ended, and {left} callbacks are still held");
            self.around.ledger.lock().violate("no callback leaks", text);
        }
    }
}
