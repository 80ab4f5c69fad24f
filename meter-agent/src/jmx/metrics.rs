//! The domain `metrics`: the agent's own health, in the form in which dropwizard's JmxReporter shows metrics.
//!
//! Under MidoNet's names stands what is the same thing here; a *flow* of MidoNet's datapath is an entry of the kernel's
//! tables of tunnels, one for each direction, encapsulation, VNI and pair of addresses. What else there is has names of
//! its own, which begin with `meter-agent.`. Counts that live in pinned maps go on over restarts of the agent; rates begin
//! with it.

mod table;

use std::{fmt, sync::Arc, time::Duration};

pub use self::table::all;
use super::{
    activity::Activity,
    bean::{AttributeInfo, Bean, BeanInfo, Exception, JavaType, OperationInfo, Source},
    facts::Facts,
    name::ObjectName,
    rates::Rates,
    value::Value,
};
use crate::snapshot::Snapshot;

/// Reads a number of a snapshot.
pub type Read = Box<dyn Fn(&Snapshot) -> u64 + Send + Sync>;

/// A metric.
pub struct Metric {
    /// Its full name.
    pub name: String,
    /// What it says, in one sentence.
    pub help: String,
    /// What it is, and where its number comes from.
    pub kind: Kind,
}

/// What a metric is.
pub enum Kind {
    /// A number that goes up and down.
    Gauge(Read),
    /// A number of events or units.
    Counter(Read),
    /// A number of events, with their rates.
    Meter(Read),
    /// The requests of JMX clients: their rates, and how long they took.
    Requests,
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Metric {
    /// Returns how many events there have been, of which the rates are; 0 where there are none.
    #[must_use]
    pub fn events(&self, snapshot: &Snapshot) -> u64 {
        match &self.kind {
            Kind::Meter(read) => read(snapshot),
            Kind::Gauge(_) | Kind::Counter(_) | Kind::Requests => 0,
        }
    }

    const fn info(&self) -> &'static BeanInfo {
        match self.kind {
            Kind::Gauge(_) => &GAUGE,
            Kind::Counter(_) => &COUNTER,
            Kind::Meter(_) => &METER,
            Kind::Requests => &TIMER,
        }
    }
}

/// Makes a bean of each metric. Their places in `metrics` are those of their rates in `activity`.
pub fn beans<'a>(metrics: &'a Arc<[Metric]>, activity: &'a Arc<Activity>) -> impl Iterator<Item = Bean> + 'a {
    metrics.iter().enumerate().map(|(index, metric)| {
        let source = Reported { metrics: Arc::clone(metrics), index, activity: Arc::clone(activity) };
        let name = ObjectName::of("metrics", "name", metric.name.as_str());
        Bean::new(name, metric.info(), source).described(&metric.help)
    })
}

const LONG: JavaType = JavaType { name: "long", open: None };
const DOUBLE: JavaType = JavaType { name: "double", open: None };
const STRING: JavaType = JavaType { name: "java.lang.String", open: None };

const fn attribute(name: &'static str, of: JavaType) -> AttributeInfo {
    AttributeInfo { name, of, is: false }
}

const DESCRIPTION: &str = "Information on the management interface of the MBean";

static GAUGE: BeanInfo = BeanInfo {
    class: "com.codahale.metrics.JmxReporter$JmxGauge",
    description: DESCRIPTION,
    interface: "com.codahale.metrics.JmxReporter$JmxGaugeMBean",
    attributes: &[attribute("Value", JavaType { name: "java.lang.Object", open: None })],
    operations: &[],
};

static COUNTER: BeanInfo = BeanInfo {
    class: "com.codahale.metrics.JmxReporter$JmxCounter",
    description: DESCRIPTION,
    interface: "com.codahale.metrics.JmxReporter$JmxCounterMBean",
    attributes: &[attribute("Count", LONG)],
    operations: &[],
};

static METER: BeanInfo = BeanInfo {
    class: "com.codahale.metrics.JmxReporter$JmxMeter",
    description: DESCRIPTION,
    interface: "com.codahale.metrics.JmxReporter$JmxMeterMBean",
    attributes: &[
        attribute("Count", LONG),
        attribute("MeanRate", DOUBLE),
        attribute("OneMinuteRate", DOUBLE),
        attribute("FiveMinuteRate", DOUBLE),
        attribute("FifteenMinuteRate", DOUBLE),
        attribute("RateUnit", STRING),
    ],
    operations: &[],
};

static TIMER: BeanInfo = BeanInfo {
    class: "com.codahale.metrics.JmxReporter$JmxTimer",
    description: DESCRIPTION,
    interface: "com.codahale.metrics.JmxReporter$JmxTimerMBean",
    attributes: &[
        attribute("Count", LONG),
        attribute("MeanRate", DOUBLE),
        attribute("OneMinuteRate", DOUBLE),
        attribute("FiveMinuteRate", DOUBLE),
        attribute("FifteenMinuteRate", DOUBLE),
        attribute("RateUnit", STRING),
        attribute("Min", DOUBLE),
        attribute("Max", DOUBLE),
        attribute("Mean", DOUBLE),
        attribute("StdDev", DOUBLE),
        attribute("50thPercentile", DOUBLE),
        attribute("75thPercentile", DOUBLE),
        attribute("95thPercentile", DOUBLE),
        attribute("98thPercentile", DOUBLE),
        attribute("99thPercentile", DOUBLE),
        attribute("999thPercentile", DOUBLE),
        attribute("DurationUnit", STRING),
    ],
    operations: &[OperationInfo {
        name: "values",
        parameters: &[],
        returns: JavaType { name: "[J", open: None },
    }],
};

/// One metric as a bean reads it.
#[derive(Debug)]
struct Reported {
    metrics: Arc<[Metric]>,
    index: usize,
    activity: Arc<Activity>,
}

impl Source for Reported {
    fn read(&self, attribute: &str, facts: &Facts) -> Value {
        match &self.metrics[self.index].kind {
            Kind::Gauge(read) | Kind::Counter(read) => Value::count(read(facts.snapshot())),
            Kind::Meter(read) => {
                let rates = self.activity.rates(self.index);
                metered(attribute, read(facts.snapshot()), &rates, facts.now())
            }
            Kind::Requests => self.timed(attribute, facts.now()),
        }
    }

    /// Calls `values`, the only operation there is.
    fn invoke(&self, _: &OperationInfo, _: &[Value], _: &Facts) -> Result<Value, Exception> {
        let nanoseconds = self.activity.requests().durations.nanoseconds();
        Ok(Value::List(nanoseconds.into_iter().map(Value::Long).collect()))
    }
}

impl Reported {
    fn timed(&self, attribute: &str, now: Duration) -> Value {
        let requests = self.activity.requests();
        let durations = requests.durations.distribution();
        match attribute {
            "Min" => Value::Double(durations.min()),
            "Max" => Value::Double(durations.max()),
            "Mean" => Value::Double(durations.mean()),
            "StdDev" => Value::Double(durations.deviation()),
            "50thPercentile" => Value::Double(durations.quantile(500)),
            "75thPercentile" => Value::Double(durations.quantile(750)),
            "95thPercentile" => Value::Double(durations.quantile(950)),
            "98thPercentile" => Value::Double(durations.quantile(980)),
            "99thPercentile" => Value::Double(durations.quantile(990)),
            "999thPercentile" => Value::Double(durations.quantile(999)),
            "DurationUnit" => Value::text("milliseconds"),
            other => metered(other, requests.count, &requests.rates, now),
        }
    }
}

fn metered(attribute: &str, count: u64, rates: &Rates, now: Duration) -> Value {
    let [one, five, fifteen] = rates.averages();
    match attribute {
        "Count" => Value::count(count),
        "MeanRate" => Value::Double(rates.mean(count, now)),
        "OneMinuteRate" => Value::Double(one),
        "FiveMinuteRate" => Value::Double(five),
        "FifteenMinuteRate" => Value::Double(fifteen),
        // RateUnit.
        _ => Value::text("events/second"),
    }
}
