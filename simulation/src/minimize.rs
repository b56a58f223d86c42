//! From a plan that breaks a rule to a smaller one that breaks the same rule.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the plan's actions, after a few simplifications
//! of everything else. Leaving an action out changes what follows, since the generators are drawn from
//! in another order; so a smaller plan is another run, and counts only if it breaks the same rule.

use crate::plan::{LoadPlan, NetworkPlan, Plan, Timed};
use crate::run::run;

/// Shrinks a plan that breaks `rule`. `tell` hears of each plan that is smaller.
pub fn minimize(plan: &Plan, rule: &str, mut tell: impl FnMut(&Plan)) -> Plan {
    let breaks =
        |plan: &Plan| run(plan, false).violation.is_some_and(|violation| violation.rule == rule);
    let mut best = plan.clone();
    for simpler in simplifications(&best) {
        let candidate = simpler(&best);
        if candidate != best && breaks(&candidate) {
            tell(&candidate);
            best = candidate;
        }
    }
    let mut parts = 2;
    while best.actions.len() > 1 {
        let size = best.actions.len().div_ceil(parts);
        let smaller = (0..best.actions.len()).step_by(size).find_map(|from| {
            let mut actions: Vec<Timed> = best.actions.clone();
            actions.drain(from..(from + size).min(best.actions.len()));
            let candidate = Plan { actions, ..best.clone() };
            breaks(&candidate).then_some(candidate)
        });
        match smaller {
            Some(candidate) => {
                tell(&candidate);
                best = candidate;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (2 * parts).min(best.actions.len()),
        }
    }
    let none = Plan { actions: Vec::new(), ..best.clone() };
    if !best.actions.is_empty() && breaks(&none) {
        tell(&none);
        best = none;
    }
    best
}

type Simplification = Box<dyn Fn(&Plan) -> Plan>;

/// In the order in which they are tried.
fn simplifications(plan: &Plan) -> Vec<Simplification> {
    let mut all: Vec<Simplification> = Vec::new();
    for part in [8, 4, 2] {
        let duration_us = plan.duration_us / part;
        all.push(Box::new(move |plan| {
            let actions = plan.actions.iter().filter(|timed| timed.at_us < duration_us);
            Plan {
                duration_us: duration_us.min(plan.duration_us),
                actions: actions.cloned().collect(),
                ..plan.clone()
            }
        }));
    }
    for regions in [1, 2, 3] {
        all.push(Box::new(move |plan| {
            let mut plan = plan.clone();
            plan.cluster.regions = regions.min(plan.cluster.regions);
            let regions = plan.cluster.regions;
            plan.actions
                .retain(|timed| timed.action.region().is_none_or(|region| region <= regions));
            plan
        }));
    }
    all.push(Box::new(|plan| Plan { network: NetworkPlan::default(), ..plan.clone() }));
    all.push(Box::new(|plan| {
        let mut plan = plan.clone();
        plan.load.clients = 1;
        plan
    }));
    // One kind of reads after the other.
    let kinds: [fn(&mut LoadPlan) -> &mut u64; 4] = [
        |load| &mut load.stale_read_pm,
        |load| &mut load.any_read_pm,
        |load| &mut load.leader_read_pm,
        |load| &mut load.read_pm,
    ];
    for kind in kinds {
        all.push(Box::new(move |plan| {
            let mut plan = plan.clone();
            *kind(&mut plan.load) = 0;
            plan
        }));
    }
    all.push(Box::new(|plan| {
        let mut plan = plan.clone();
        plan.cluster.pollers = 1;
        plan.cluster.apply_pollers = 0;
        plan
    }));
    all
}
