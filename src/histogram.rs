//! [`Histogram`]: how often something took how long, in fixed steps.

use std::time::Duration;

/// The upper ends of the steps, in seconds: from an answer out of memory to one that waits for many retries.
pub(crate) const STEPS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Counts of durations by their length.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    /// Durations of at most each step of [`STEPS`] and more than the step before.
    counts: [u64; STEPS.len()],
    /// Durations beyond the last step.
    longer: u64,
    sum: Duration,
}

impl Histogram {
    /// Counts one duration.
    pub(crate) fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let step = STEPS.iter().position(|end| seconds <= *end);
        match step.and_then(|step| self.counts.get_mut(step)) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.sum = self.sum.saturating_add(took);
    }

    /// The steps: the upper end of each in seconds, and the durations in it alone. The last one has no end.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let ends = STEPS.into_iter().chain([f64::INFINITY]);
        ends.zip(self.counts.iter().copied().chain([self.longer]))
    }

    /// How many durations there are.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }

    /// All durations together.
    pub(crate) fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_step_that_reaches_it() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 2, 60_000, 60_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let steps: Vec<_> = histogram.steps().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            steps,
            [(0.001, 2), (0.005, 1), (60.0, 1), (f64::INFINITY, 1)]
        );
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.sum(), Duration::from_millis(120_004));
    }
}
