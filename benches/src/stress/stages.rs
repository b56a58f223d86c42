//! How long writes were at each station, from the stores' own histograms.

use prometheus::proto::MetricFamily;
use prometheus::Registry;

use super::report::{StageLatency, Stages, STATIONS};

const FAMILY: &str = "raftstore_stage_seconds";

/// The histograms of all stations at one moment, all stores together.
#[derive(Clone, Debug, Default)]
pub struct StageSample(Vec<Buckets>);

/// Upper bound in seconds, and how many observations were not above it.
type Buckets = Vec<(f64, u64)>;

impl StageSample {
    /// Samples now.
    pub fn take(registry: &Registry) -> Self {
        let families = registry.gather();
        let family = families.iter().find(|family| family.get_name() == FAMILY);
        Self(STATIONS.map(|station| family.map_or(Vec::new(), |f| sum(f, station))).into())
    }

    /// The time at each station of what was observed since `before`.
    pub fn since(&self, before: &Self) -> Stages {
        let none = Vec::new();
        let stages = STATIONS.iter().enumerate().map(|(number, station)| {
            let buckets = difference(&self.0[number], before.0.get(number).unwrap_or(&none));
            let at = |quantile| quantile_ms(&buckets, quantile);
            (*station, StageLatency { p50_ms: at(0.5), p99_ms: at(0.99) })
        });
        Stages(stages.collect())
    }
}

fn sum(family: &MetricFamily, station: &str) -> Buckets {
    let mut total = Buckets::new();
    for metric in family.get_metric() {
        if !metric.get_label().iter().any(|label| label.get_value() == station) {
            continue;
        }
        for (number, bucket) in metric.get_histogram().get_bucket().iter().enumerate() {
            let (bound, count) = (bucket.get_upper_bound(), bucket.get_cumulative_count());
            match total.get_mut(number) {
                Some(sum) => sum.1 += count,
                None => total.push((bound, count)),
            }
        }
    }
    total
}

fn difference(after: &Buckets, before: &Buckets) -> Buckets {
    let earlier = |number: usize| before.get(number).map_or(0, |(_, count)| *count);
    let pairs = after.iter().enumerate();
    pairs.map(|(number, (bound, count))| (*bound, count - earlier(number))).collect()
}

/// Within the bucket that holds it, a quantile is placed by its share of the bucket's count.
fn quantile_ms(buckets: &Buckets, quantile: f64) -> f64 {
    let Some((_, total)) = buckets.last() else { return 0.0 };
    let wanted = quantile * *total as f64;
    let mut below = (0.0, 0);
    for (bound, count) in buckets {
        if *count as f64 >= wanted && *count > below.1 {
            let share = (wanted - below.1 as f64) / (count - below.1) as f64;
            return 1e3 * (below.0 + (bound - below.0) * share);
        }
        below = (*bound, *count);
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let buckets = vec![(0.001, 10), (0.002, 90), (0.004, 100)];
        assert!((quantile_ms(&buckets, 0.5) - 1.5).abs() < 1e-9);
        assert!((quantile_ms(&buckets, 0.99) - 3.8).abs() < 1e-9);
        assert_eq!(quantile_ms(&Vec::new(), 0.5), 0.0);
        assert_eq!(quantile_ms(&vec![(0.001, 0)], 0.5), 0.0);
    }

    #[test]
    fn only_what_came_between_counts() {
        let before = vec![(0.001, 10), (0.002, 10)];
        let after = vec![(0.001, 10), (0.002, 20)];
        assert_eq!(difference(&after, &before), vec![(0.001, 0), (0.002, 10)]);
    }
}
