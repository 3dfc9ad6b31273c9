//! Metrics in the text format of Prometheus, version 0.0.4, which node_exporter's textfile collector reads too.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{Metric, MetricValues};

/// The content type of [`render`]'s text.
pub(super) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The metrics as text; `label` is on each value.
pub(super) fn render(metrics: Vec<Metric>, label: Option<(&'static str, String)>) -> String {
    let labels = label.map(|(name, value)| (Cow::from(name), Cow::from(value)));
    let mut registry = Registry::with_labels(labels.into_iter());
    registry.register_collector(Box::new(Encoded(metrics)));
    let mut text = String::new();
    // A String takes everything.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Encoded(Vec<Metric>);

impl Collector for Encoded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, values } in &self.0 {
            match values {
                MetricValues::Counters(values) => {
                    // The encoder adds the ending.
                    let stem = name.strip_suffix("_total").unwrap_or(name);
                    let mut metric =
                        encoder.encode_descriptor(stem, help, None, MetricType::Counter)?;
                    for (labels, value) in values {
                        let mut one = metric.encode_family(labels)?;
                        one.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                MetricValues::Gauges(values) => {
                    let mut metric =
                        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    for (labels, value) in values {
                        metric.encode_family(labels)?.encode_gauge(value)?;
                    }
                }
                MetricValues::Histograms(values) => {
                    let mut metric =
                        encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
                    for (labels, value) in values {
                        let steps: Vec<_> = value.steps().collect();
                        let sum = value.sum().as_secs_f64();
                        let mut one = metric.encode_family(labels)?;
                        one.encode_histogram::<NoLabelSet>(sum, value.count(), &steps, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::histogram::Histogram;
    use crate::metrics::{counters, gauge};

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut times = Histogram::default();
        times.observe(Duration::from_millis(500));
        times.observe(Duration::from_secs(100));
        let metrics = vec![
            counters("ebsfs_a_total", "As", "kind", [("x", u64::MAX), ("y", 0)]),
            gauge("ebsfs_b_seconds", "A \\ b", 1.5),
            Metric {
                name: "ebsfs_c_seconds",
                help: "Cs",
                values: MetricValues::Histograms(vec![(vec![("of", "z")], times)]),
            },
        ];
        let text = render(metrics, Some(("name", "a\"b".to_owned())));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines.get(..7),
            Some(
                &[
                    "# HELP ebsfs_a_total As",
                    "# TYPE ebsfs_a_total counter",
                    "ebsfs_a_total{name=\"a\\\"b\",kind=\"x\"} 18446744073709551615",
                    "ebsfs_a_total{name=\"a\\\"b\",kind=\"y\"} 0",
                    "# HELP ebsfs_b_seconds A \\\\ b",
                    "# TYPE ebsfs_b_seconds gauge",
                    "ebsfs_b_seconds{name=\"a\\\"b\"} 1.5",
                ][..]
            )
        );
        for line in [
            "ebsfs_c_seconds_bucket{name=\"a\\\"b\",of=\"z\",le=\"0.25\"} 0",
            "ebsfs_c_seconds_bucket{name=\"a\\\"b\",of=\"z\",le=\"0.5\"} 1",
            "ebsfs_c_seconds_bucket{name=\"a\\\"b\",of=\"z\",le=\"+Inf\"} 2",
            "ebsfs_c_seconds_sum{name=\"a\\\"b\",of=\"z\"} 100.5",
            "ebsfs_c_seconds_count{name=\"a\\\"b\",of=\"z\"} 2",
        ] {
            assert!(lines.contains(&line), "{line}: {text}");
        }
        assert_eq!(render(Vec::new(), None), "");
    }
}
