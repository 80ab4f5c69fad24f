//! The bean that MidoNet's agent had: `org.midonet.midolman:type=Metering`.
//!
//! MidoNet kept one registry of meters for each worker. This agent has one set of totals, shown as one registry with
//! index 0, and, as there, once more under index -1, where MidoNet added its registries up.

use super::{
    bean::{AttributeInfo, Bean, BeanInfo, Exception, JavaType, OperationInfo, Source},
    facts::{Facts, Registry},
    name::ObjectName,
    open_type::{CompositeType, OpenType, TableType},
    value::Value,
};
use crate::meter::{FlowStats, MeterKey};

/// The bean's name.
pub const NAME: &str = "org.midonet.midolman:type=Metering";
/// The operation that returns every meter's name.
pub const LIST_METERS: &str = "listMeters";
/// The operation that returns one meter's packets and bytes.
pub const GET_METER: &str = "getMeter";

static FLOW_STATS: CompositeType = CompositeType {
    name: "org.midonet.management.FlowStats",
    items: &[("bytes", OpenType::Long), ("packets", OpenType::Long)],
};

const METERS: &str = "java.util.Map<java.lang.String, org.midonet.management.FlowStats>";
static METERS_ROW: CompositeType = CompositeType {
    name: METERS,
    items: &[("key", OpenType::Text), ("value", OpenType::Composite(&FLOW_STATS))],
};
static METERS_TABLE: TableType = TableType { name: METERS, row: &METERS_ROW };

static FLOW_METERS: CompositeType = CompositeType {
    name: "org.midonet.management.FlowMeters",
    items: &[("index", OpenType::Integer), ("meters", OpenType::Table(&METERS_TABLE))],
};
static ONE_REGISTRY: OpenType = OpenType::Composite(&FLOW_METERS);
static TEXT: OpenType = OpenType::Text;

const COMPOSITE: &str = "javax.management.openmbean.CompositeData";

static INFO: BeanInfo = BeanInfo {
    class: "org.midonet.midolman.management.Metering$",
    description: "Information on the management interface of the MBean",
    interface: "org.midonet.management.MeteringMXBean",
    attributes: &[
        AttributeInfo {
            name: "Meters",
            of: JavaType {
                name: "[Ljavax.management.openmbean.CompositeData;",
                open: Some(OpenType::Array(&ONE_REGISTRY)),
            },
            is: false,
        },
        AttributeInfo {
            name: "ConsolidatedMeters",
            of: JavaType { name: COMPOSITE, open: Some(OpenType::Composite(&FLOW_METERS)) },
            is: false,
        },
    ],
    operations: &[
        OperationInfo {
            name: LIST_METERS,
            parameters: &[],
            returns: JavaType { name: "[Ljava.lang.String;", open: Some(OpenType::Array(&TEXT)) },
        },
        OperationInfo {
            name: GET_METER,
            parameters: &[JavaType { name: "java.lang.String", open: Some(OpenType::Text) }],
            returns: JavaType { name: COMPOSITE, open: Some(OpenType::Composite(&FLOW_STATS)) },
        },
    ],
};

/// Makes the bean.
#[must_use]
pub fn bean() -> Bean {
    Bean::new(ObjectName::of("org.midonet.midolman", "type", "Metering"), &INFO, Metering)
}

#[derive(Debug)]
struct Metering;

impl Source for Metering {
    fn read(&self, attribute: &str, facts: &Facts) -> Value {
        match attribute {
            "Meters" => {
                Value::List((0..).zip(facts.registries()).map(|(index, meters)| one(index, meters)).collect())
            }
            _ => one(-1, facts.meters()),
        }
    }

    /// Returns zeros for a name that no meter has, malformed ones included, as MidoNet did.
    fn invoke(
        &self,
        operation: &OperationInfo,
        arguments: &[Value],
        facts: &Facts,
    ) -> Result<Value, Exception> {
        if operation.name == LIST_METERS {
            return Ok(Value::List(facts.meters().keys().map(|key| Value::text(key.to_string())).collect()));
        }
        match arguments {
            [Value::Text(name)] => {
                let stats = name.parse::<MeterKey>().ok().and_then(|key| facts.meters().get(&key).copied());
                Ok(flow_stats(stats.unwrap_or_default()))
            }
            [Value::Null] => Err(Exception::null_pointer()),
            _ => Ok(flow_stats(FlowStats::default())),
        }
    }
}

fn one(index: i32, meters: &Registry) -> Value {
    let rows = meters.iter().map(|(key, &stats)| (key.to_string(), flow_stats(stats))).collect();
    Value::Composite(&FLOW_METERS, vec![Value::Int(index), Value::Table(&METERS_TABLE, rows)])
}

fn flow_stats(stats: FlowStats) -> Value {
    Value::Composite(&FLOW_STATS, vec![Value::count(stats.bytes), Value::count(stats.packets)])
}
