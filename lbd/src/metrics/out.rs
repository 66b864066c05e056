//! Metrics, each with its series.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Unit,
};

pub(super) type Encoded = Result<(), fmt::Error>;

/// Where they go.
pub(super) struct Out<'a>(pub(super) DescriptorEncoder<'a>);

impl Out<'_> {
    pub(super) fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> Encoded {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> Encoded {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// In seconds.
    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> Encoded {
        histogram.encode(self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?)
    }

    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> Encoded {
        let described = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        family(described, series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> Encoded {
        let described = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family(described, series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    /// Counters that are no whole numbers.
    pub(super) fn sums<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> Encoded {
        let described = self.0.encode_descriptor(name, help, Some(unit), MetricType::Counter)?;
        family(described, series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
    }
}

fn family<L: EncodeLabelSet, M: EncodeMetric>(
    mut described: MetricEncoder<'_>,
    series: impl Iterator<Item = (L, M)>,
) -> Encoded {
    for (labels, metric) in series {
        metric.encode(described.encode_family(&labels)?)?;
    }
    Ok(())
}
