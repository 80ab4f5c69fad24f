//! The bean that MidoNet's agent had: `org.midonet.midolman:type=Metering`.
//!
//! MidoNet kept one registry of meters for each worker. This agent has one set of totals, shown as one registry with
//! index 0, and, as there, once more under index -1, where MidoNet added its registries up.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::{
    bean::{Attribute, Bean, Operation, Totals},
    response::{Failure, Value},
};
use crate::meter::{FlowStats, MeterKey};

/// The bean.
pub const METERING: Bean = Bean {
    name: "org.midonet.midolman:type=Metering",
    attributes: &[
        Attribute {
            name: "Meters",
            java_type: "[Ljavax.management.openmbean.CompositeData;",
            read: |totals| Value::List(vec![flow_meters(0, totals)]),
        },
        Attribute {
            name: "ConsolidatedMeters",
            java_type: "javax.management.openmbean.CompositeData",
            read: |totals| flow_meters(-1, totals),
        },
    ],
    operations: &[
        Operation {
            name: LIST_METERS,
            parameters: &[],
            returns: "[Ljava.lang.String;",
            call: |totals, _| Ok(list_meters(totals)),
        },
        Operation {
            name: GET_METER,
            parameters: &["java.lang.String"],
            returns: "javax.management.openmbean.CompositeData",
            call: |totals, arguments| get_meter(totals, arguments),
        },
    ],
};

/// The operation that returns every meter's name.
pub const LIST_METERS: &str = "listMeters";
/// The operation that returns one meter's packets and bytes.
pub const GET_METER: &str = "getMeter";

fn list_meters(totals: &Totals) -> Value {
    Value::List(totals.meters().keys().map(|key| Value::Text(key.to_string())).collect())
}

/// Returns zeros for a name that no meter has, malformed ones included, as MidoNet did.
fn get_meter(totals: &Totals, arguments: &[Json]) -> Result<Value, Failure> {
    let name = match arguments {
        [] | [Json::Null, ..] => return Err(Failure::null_argument()),
        [Json::String(name), ..] => Cow::Borrowed(name.as_str()),
        [other, ..] => Cow::Owned(other.to_string()),
    };
    let stats = name.parse::<MeterKey>().ok().and_then(|key| totals.meters().get(&key).copied());
    Ok(flow_stats(stats.unwrap_or_default()))
}

fn flow_meters(index: i32, totals: &Totals) -> Value {
    let rows = totals.meters().iter().map(|(key, &stats)| (Cow::Owned(key.to_string()), flow_stats(stats)));
    Value::composite([("index", Value::Int(index)), ("meters", Value::Map(rows.collect()))])
}

fn flow_stats(stats: FlowStats) -> Value {
    Value::composite([("bytes", Value::Long(stats.bytes)), ("packets", Value::Long(stats.packets))])
}
