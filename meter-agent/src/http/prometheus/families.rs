//! Metric families, written sample by sample: the only part that speaks to the encoder.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabel as _, EncodeLabelSet,
        EncodeLabelValue, LabelSetEncoder, LabelValueEncoder, MetricEncoder, NoLabelSet,
    },
    metrics::MetricType,
    registry::Unit,
};
use uuid::Uuid;

use super::lines::Created;

/// What is said of a family once, before its samples.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name without the unit, and without `_total` or `_info`.
    pub(super) name: String,
    /// Its unit, the last word of its name.
    pub(super) unit: Option<Unit>,
    /// What an operator must know of it, in sentences without quotes and backslashes: they need escapes that the two
    /// formats don't share.
    pub(super) help: String,
}

impl Family {
    pub(super) fn new(name: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name: name.into(), unit: None, help: help.into() }
    }

    pub(super) fn bytes(name: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name: name.into(), unit: Some(Unit::Bytes), help: help.into() }
    }

    pub(super) fn seconds(name: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name: name.into(), unit: Some(Unit::Seconds), help: help.into() }
    }
}

/// The value of a label.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// Any text; empty is the same as no label.
    Text(&'a str),
    /// An identity.
    Uuid(Uuid),
    /// An address.
    Address(IpAddr),
    /// A number.
    Number(u32),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: Option<&'a str>) -> Self {
        Self::Text(text.unwrap_or_default())
    }
}

impl EncodeLabelValue for Value<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => encoder.write_str(text),
            Self::Uuid(uuid) => encoder.write_str(uuid.as_hyphenated().encode_lower(&mut [0; 36])),
            Self::Address(address) => write!(encoder, "{address}"),
            Self::Number(number) => EncodeLabelValue::encode(number, encoder),
        }
    }
}

/// The labels of one sample.
#[derive(Debug)]
pub(super) struct Labels<'a, const N: usize>(pub(super) [(&'static str, Value<'a>); N]);

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for label in self.0.iter().filter(|(_, value)| !matches!(value, Value::Text(""))) {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// Writes families. One without samples is left out.
#[derive(Debug)]
pub(super) struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
    /// Where a counter's beginning goes; `None` where the format has no room for it.
    created: Option<Created>,
}

impl<'a> Families<'a> {
    pub(super) const fn new(encoder: DescriptorEncoder<'a>, created: Option<Created>) -> Self {
        Self { encoder, created }
    }

    /// Writes counters that began at a time that nobody knows.
    pub(super) fn counters<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> fmt::Result {
        self.counters_since(family, samples.into_iter().map(|(labels, value)| (labels, value, 0)))
    }

    /// Writes counters with the time when they began: nanoseconds since the Unix epoch, 0 where that is not known.
    pub(super) fn counters_since<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V, u64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let created = self.created.clone();
        let mut encoder = self.describe(family, MetricType::Counter)?;
        for (labels, value, created_ns) in samples {
            if let Some(created) = &created {
                created.set(created_ns);
            }
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, V, f64>(&value, None)?;
        }
        Ok(())
    }

    /// Writes gauges.
    pub(super) fn gauges<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.describe(family, MetricType::Gauge)?;
        for (labels, value) in samples {
            encoder.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Writes descriptions, to join with by their first label.
    pub(super) fn infos<'l, const N: usize>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = Labels<'l, N>>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.describe(family, MetricType::Info)?;
        for labels in samples {
            encoder.encode_info(&labels)?;
        }
        Ok(())
    }

    /// Writes one counter without labels, with the time when it began: see [`Families::counters_since`].
    pub(super) fn counter_since<V: EncodeCounterValue>(
        &mut self,
        family: &Family,
        value: V,
        created_ns: u64,
    ) -> fmt::Result {
        let created = self.created.clone();
        let mut encoder = self.describe(family, MetricType::Counter)?;
        if let Some(created) = &created {
            created.set(created_ns);
        }
        encoder.encode_counter::<NoLabelSet, V, f64>(&value, None)
    }

    /// Writes one gauge without labels.
    pub(super) fn gauge<V: EncodeGaugeValue>(&mut self, family: &Family, value: V) -> fmt::Result {
        let mut encoder = self.describe(family, MetricType::Gauge)?;
        encoder.encode_gauge(&value)
    }

    fn describe<'f>(
        &'f mut self,
        family: &'f Family,
        kind: MetricType,
    ) -> Result<MetricEncoder<'f>, fmt::Error> {
        let Family { name, unit, help } = family;
        self.encoder.encode_descriptor(name, help, unit.as_ref(), kind)
    }
}
