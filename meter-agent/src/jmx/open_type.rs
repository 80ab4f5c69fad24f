//! Open types: what the values of MXBeans are made of, and how Java names it.

use std::fmt;

/// The type of a value, as `javax.management.openmbean` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenType {
    /// No value: what an operation returns that returns nothing.
    Void,
    /// `java.lang.Boolean`.
    Boolean,
    /// `java.lang.Integer`.
    Integer,
    /// `java.lang.Long`.
    Long,
    /// `java.lang.Double`.
    Double,
    /// `java.lang.String`.
    Text,
    /// `javax.management.ObjectName`.
    Name,
    /// An array of one dimension.
    Array(&'static Self),
    /// Named items.
    Composite(&'static CompositeType),
    /// Rows under texts: what an MXBean makes of a `Map<String, …>`.
    Table(&'static TableType),
}

/// The type of a composite.
#[derive(Debug, PartialEq, Eq)]
pub struct CompositeType {
    /// The Java class that it is made of.
    pub name: &'static str,
    /// Its items, in the order of their names.
    pub items: &'static [(&'static str, OpenType)],
}

/// The type of a table. Its rows have the items `key` and `value`, and `key` is its index.
#[derive(Debug, PartialEq, Eq)]
pub struct TableType {
    /// The Java type that it is made of.
    pub name: &'static str,
    /// The type of a row, which has the same name.
    pub row: &'static CompositeType,
}

/// The item that a table's rows are found by.
pub const KEY: &str = "key";
/// The item that holds what a table's row is about.
pub const VALUE: &str = "value";

impl TableType {
    /// Returns the type of what a row holds beside its key.
    #[must_use]
    pub fn value(&self) -> OpenType {
        self.row.items.iter().find(|(name, _)| *name == VALUE).map_or(OpenType::Void, |(_, item)| *item)
    }
}

impl OpenType {
    /// Returns the class of the type's values: `java.lang.Long`, `[Ljava.lang.String;`.
    #[must_use]
    pub fn class(&self) -> String {
        match self {
            Self::Void => "java.lang.Void".to_owned(),
            Self::Boolean => "java.lang.Boolean".to_owned(),
            Self::Integer => "java.lang.Integer".to_owned(),
            Self::Long => "java.lang.Long".to_owned(),
            Self::Double => "java.lang.Double".to_owned(),
            Self::Text => "java.lang.String".to_owned(),
            Self::Name => "javax.management.ObjectName".to_owned(),
            Self::Array(element) => format!("[L{};", element.class()),
            Self::Composite(_) => "javax.management.openmbean.CompositeData".to_owned(),
            Self::Table(_) => "javax.management.openmbean.TabularData".to_owned(),
        }
    }

    /// Returns the type's own name, which for composites and tables is that of what they are made of.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Array(element) => format!("[L{};", element.name()),
            Self::Composite(composite) => composite.name.to_owned(),
            Self::Table(table) => table.name.to_owned(),
            simple => simple.class(),
        }
    }
}

/// Writes a type as Java's `toString` does.
impl fmt::Display for OpenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(element) => write!(
                f,
                "javax.management.openmbean.ArrayType(name={},dimension=1,elementType={element},primitiveArray=false)",
                self.class()
            ),
            Self::Composite(composite) => composite.fmt(f),
            Self::Table(table) => table.fmt(f),
            simple => write!(f, "javax.management.openmbean.SimpleType(name={})", simple.class()),
        }
    }
}

impl fmt::Display for CompositeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "javax.management.openmbean.CompositeType(name={},items=(", self.name)?;
        for (index, (name, item)) in self.items.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}(itemName={name},itemType={item})")?;
        }
        f.write_str("))")
    }
}

impl fmt::Display for TableType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, row } = self;
        write!(f, "javax.management.openmbean.TabularType(name={name},rowType={row},indexNames=({KEY}))")
    }
}
