//! `java.lang:type=Runtime` and `java.lang:type=Memory`, which generic clients look at first.
//!
//! They have the attributes of Java 17's interfaces, and values that are true of this process; what only a Java virtual
//! machine has is empty, and says so. Left out is `BootClassPath`, which no longer can be read in Java either.

use std::sync::Arc;

use super::{
    Identity,
    bean::{AttributeInfo, Bean, BeanInfo, Exception, JavaType, OperationInfo, Source},
    facts::Facts,
    name::ObjectName,
    open_type::{CompositeType, OpenType, TableType},
    value::Value,
};

const DOMAIN: &str = "java.lang";
const OBJECT_NAME: &str = "ObjectName";

static MEMORY_USAGE: CompositeType = CompositeType {
    name: "java.lang.management.MemoryUsage",
    items: &[
        ("committed", OpenType::Long),
        ("init", OpenType::Long),
        ("max", OpenType::Long),
        ("used", OpenType::Long),
    ],
};

const PROPERTIES: &str = "java.util.Map<java.lang.String, java.lang.String>";
static PROPERTIES_ROW: CompositeType =
    CompositeType { name: PROPERTIES, items: &[("key", OpenType::Text), ("value", OpenType::Text)] };
static PROPERTIES_TABLE: TableType = TableType { name: PROPERTIES, row: &PROPERTIES_ROW };
static TEXT: OpenType = OpenType::Text;

const BOOLEAN: JavaType = JavaType { name: "boolean", open: Some(OpenType::Boolean) };
const INT: JavaType = JavaType { name: "int", open: Some(OpenType::Integer) };
const LONG: JavaType = JavaType { name: "long", open: Some(OpenType::Long) };
const STRING: JavaType = JavaType { name: "java.lang.String", open: Some(OpenType::Text) };
const STRINGS: JavaType = JavaType { name: "[Ljava.lang.String;", open: Some(OpenType::Array(&TEXT)) };
const NAME: JavaType = JavaType { name: "javax.management.ObjectName", open: Some(OpenType::Name) };
const USAGE: JavaType = JavaType {
    name: "javax.management.openmbean.CompositeData",
    open: Some(OpenType::Composite(&MEMORY_USAGE)),
};
const TABLE: JavaType = JavaType {
    name: "javax.management.openmbean.TabularData",
    open: Some(OpenType::Table(&PROPERTIES_TABLE)),
};

const fn attribute(name: &'static str, of: JavaType) -> AttributeInfo {
    AttributeInfo { name, of, is: false }
}

static RUNTIME: BeanInfo = BeanInfo {
    class: "meter-agent",
    description: "The process of the agent, which is no Java virtual machine",
    interface: "java.lang.management.RuntimeMXBean",
    attributes: &[
        AttributeInfo { name: "BootClassPathSupported", of: BOOLEAN, is: true },
        attribute("ClassPath", STRING),
        attribute("InputArguments", STRINGS),
        attribute("LibraryPath", STRING),
        attribute("ManagementSpecVersion", STRING),
        attribute("Name", STRING),
        attribute(OBJECT_NAME, NAME),
        attribute("Pid", LONG),
        attribute("SpecName", STRING),
        attribute("SpecVendor", STRING),
        attribute("SpecVersion", STRING),
        attribute("StartTime", LONG),
        attribute("SystemProperties", TABLE),
        attribute("Uptime", LONG),
        attribute("VmName", STRING),
        attribute("VmVendor", STRING),
        attribute("VmVersion", STRING),
    ],
    operations: &[],
};

static MEMORY: BeanInfo = BeanInfo {
    class: "meter-agent",
    description: "The memory of the agent: what is in RAM stands for the heap",
    interface: "java.lang.management.MemoryMXBean",
    attributes: &[
        attribute("HeapMemoryUsage", USAGE),
        attribute("NonHeapMemoryUsage", USAGE),
        attribute("ObjectPendingFinalizationCount", INT),
        attribute(OBJECT_NAME, NAME),
        AttributeInfo { name: "Verbose", of: BOOLEAN, is: true },
    ],
    operations: &[OperationInfo {
        name: "gc",
        parameters: &[],
        returns: JavaType { name: "void", open: Some(OpenType::Void) },
    }],
};

/// Makes `java.lang:type=Runtime`.
#[must_use]
pub fn runtime(identity: Arc<Identity>) -> Bean {
    Bean::new(ObjectName::of(DOMAIN, "type", "Runtime"), &RUNTIME, Runtime { identity })
}

/// Makes `java.lang:type=Memory`.
#[must_use]
pub fn memory() -> Bean {
    Bean::new(ObjectName::of(DOMAIN, "type", "Memory"), &MEMORY, Memory)
}

#[derive(Debug)]
struct Runtime {
    identity: Arc<Identity>,
}

impl Source for Runtime {
    fn read(&self, attribute: &str, facts: &Facts) -> Value {
        let Identity { host, pid, version } = &*self.identity;
        // 0, which Java never has, where the kernel doesn't tell.
        let started = facts.process().start_time;
        let milliseconds =
            |time: std::time::Duration| Value::Long(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        match attribute {
            "BootClassPathSupported" => Value::Bool(false),
            "InputArguments" => Value::List(Vec::new()),
            // Of the interface's attributes, not of anything that stands behind them.
            "ManagementSpecVersion" => Value::text("4.0"),
            "Name" => Value::text(format!("{pid}@{host}")),
            OBJECT_NAME => Value::Name(format!("{DOMAIN}:type=Runtime")),
            "Pid" => Value::Long(i64::from(*pid)),
            "SpecName" => Value::text("no Java virtual machine"),
            "SpecVendor" | "VmVendor" | "VmName" => Value::text("meter-agent"),
            "SpecVersion" | "VmVersion" => Value::text(version.as_str()),
            "StartTime" => milliseconds(started.unwrap_or_default()),
            "SystemProperties" => Value::Table(
                &PROPERTIES_TABLE,
                vec![
                    ("os.arch".to_owned(), Value::text(std::env::consts::ARCH)),
                    ("os.name".to_owned(), Value::text("Linux")),
                ],
            ),
            "Uptime" => {
                milliseconds(started.map(|start| facts.now().saturating_sub(start)).unwrap_or_default())
            }
            // ClassPath and LibraryPath.
            _ => Value::text(""),
        }
    }

    fn invoke(&self, operation: &OperationInfo, _: &[Value], _: &Facts) -> Result<Value, Exception> {
        Err(Exception::no_operation(operation.name))
    }
}

#[derive(Debug)]
struct Memory;

impl Source for Memory {
    fn read(&self, attribute: &str, facts: &Facts) -> Value {
        match attribute {
            "HeapMemoryUsage" => usage(facts.process().resident_bytes.unwrap_or_default()),
            "NonHeapMemoryUsage" => usage(0),
            "ObjectPendingFinalizationCount" => Value::Int(0),
            OBJECT_NAME => Value::Name(format!("{DOMAIN}:type=Memory")),
            // Verbose.
            _ => Value::Bool(false),
        }
    }

    /// Collects no garbage: there is none.
    fn invoke(&self, _: &OperationInfo, _: &[Value], _: &Facts) -> Result<Value, Exception> {
        Ok(Value::Null)
    }
}

/// Makes a use of memory without a limit, which Java writes as -1.
fn usage(used: u64) -> Value {
    let used = Value::count(used);
    Value::Composite(&MEMORY_USAGE, vec![used.clone(), Value::Long(0), Value::Long(-1), used])
}
