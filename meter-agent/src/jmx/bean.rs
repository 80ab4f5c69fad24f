//! What a bean is: its description, and what stands behind it.

use super::{facts::Facts, name::ObjectName, open_type::OpenType, value::Value};

/// Something that JMX reports by throwing it: the class of the exception, and its message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {message}")]
pub struct Exception {
    /// The Java class.
    pub class: &'static str,
    /// What is wrong, in the words of the Java platform.
    pub message: String,
}

impl Exception {
    /// Makes an exception.
    pub fn new(class: &'static str, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// There is no such bean.
    pub fn no_bean(message: impl Into<String>) -> Self {
        Self::new("javax.management.InstanceNotFoundException", message)
    }

    /// The bean has no such attribute, or not for this use.
    pub fn no_attribute(message: impl Into<String>) -> Self {
        Self::new("javax.management.AttributeNotFoundException", message)
    }

    /// The bean has no such operation.
    pub fn no_operation(name: impl Into<String>) -> Self {
        Self::new("java.lang.NoSuchMethodException", name)
    }

    /// The call or a name makes no sense.
    pub fn illegal_argument(message: impl Into<String>) -> Self {
        Self::new("java.lang.IllegalArgumentException", message)
    }

    /// Something that must be there is null.
    #[must_use]
    pub fn null_pointer() -> Self {
        let class = "java.lang.NullPointerException";
        Self::new(class, class)
    }
}

/// What a bean says of itself: its MBeanInfo.
#[derive(Debug, PartialEq, Eq)]
pub struct BeanInfo {
    /// The Java class that it says it is of.
    pub class: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// The Java interface that it implements.
    pub interface: &'static str,
    /// What can be read. Nothing can be written.
    pub attributes: &'static [AttributeInfo],
    /// What can be called.
    pub operations: &'static [OperationInfo],
}

/// The type of an attribute, a parameter or a result, as Java code has it.
///
/// An MXBean's long is of the primitive type `long` in its interface and of the open type `java.lang.Long`; what is no
/// MXBean has no open types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JavaType {
    /// The name of the type: `long`, `java.lang.String`, `[Ljava.lang.String;`.
    pub name: &'static str,
    /// The open type.
    pub open: Option<OpenType>,
}

/// An attribute.
#[derive(Debug, PartialEq, Eq)]
pub struct AttributeInfo {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub of: JavaType,
    /// Whether the Java method that reads it begins with `is`.
    pub is: bool,
}

/// An operation. Several may have one name, and then differ in their parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct OperationInfo {
    /// Its name.
    pub name: &'static str,
    /// The types of its parameters, which are named `p0`, `p1` …: an MXBean's names are lost in compilation.
    pub parameters: &'static [JavaType],
    /// The type of its result.
    pub returns: JavaType,
}

impl OperationInfo {
    /// Returns its parameters' types, separated by commas.
    #[must_use]
    pub fn signature(&self) -> String {
        self.parameters.iter().map(|of| of.name).collect::<Vec<_>>().join(",")
    }
}

/// What gives a bean's values.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// Reads one of the attributes that the bean's information has.
    fn read(&self, attribute: &str, facts: &Facts) -> Value;

    /// Calls one of the operations that the bean's information has, with as many arguments as it has parameters.
    ///
    /// # Errors
    ///
    /// What the operation says.
    fn invoke(
        &self,
        operation: &OperationInfo,
        arguments: &[Value],
        facts: &Facts,
    ) -> Result<Value, Exception>;
}

/// A bean.
#[derive(Debug)]
pub struct Bean {
    /// Its name.
    pub name: ObjectName,
    /// What it says of itself.
    pub info: &'static BeanInfo,
    description: Option<String>,
    source: Box<dyn Source>,
}

impl Bean {
    /// Makes a bean.
    #[must_use]
    pub fn new(name: ObjectName, info: &'static BeanInfo, source: impl Source + 'static) -> Self {
        Self { name, info, description: None, source: Box::new(source) }
    }

    /// Says what it is about, where that is not the same for all beans with this information.
    #[must_use]
    pub fn described(self, description: &str) -> Self {
        Self { description: Some(description.to_owned()), ..self }
    }

    /// Returns what the bean is about.
    #[must_use]
    pub fn description(&self) -> &str {
        self.description.as_deref().unwrap_or(self.info.description)
    }

    /// Reads an attribute.
    ///
    /// # Errors
    ///
    /// That there is none of this name.
    pub fn read(&self, attribute: &str, facts: &Facts) -> Result<Value, Exception> {
        let known = self.attribute(attribute)?;
        Ok(self.source.read(known.name, facts))
    }

    /// Refuses to write an attribute: no bean of this agent can be written.
    #[must_use]
    pub fn write(&self, attribute: &str) -> Exception {
        match self.attribute(attribute) {
            Ok(_) => Exception::no_attribute(format!("Can't write attribute: {attribute}")),
            Err(exception) => exception,
        }
    }

    fn attribute(&self, name: &str) -> Result<&'static AttributeInfo, Exception> {
        let mut attributes = self.info.attributes.iter();
        attributes
            .find(|attribute| attribute.name == name)
            .ok_or_else(|| Exception::no_attribute(format!("No such attribute: {name}")))
    }

    /// Calls one of [`Self::operation`]'s, with as many arguments as it has parameters.
    ///
    /// # Errors
    ///
    /// That there are more or fewer, or what the operation says.
    pub fn invoke(
        &self,
        operation: &OperationInfo,
        arguments: &[Value],
        facts: &Facts,
    ) -> Result<Value, Exception> {
        if operation.parameters.len() != arguments.len() {
            return Err(Exception::illegal_argument(format!(
                "Invalid number of operation arguments. Operation {} on {} requires {} parameters, not {} as given",
                operation.name,
                self.name,
                operation.parameters.len(),
                arguments.len()
            )));
        }
        self.source.invoke(operation, arguments, facts)
    }

    /// Finds an operation, named alone or with its signature: `getMeter(java.lang.String)`.
    ///
    /// # Errors
    ///
    /// That there is none, none with this signature, or that the name alone doesn't tell which one is meant.
    pub fn operation(&self, wanted: &str) -> Result<&'static OperationInfo, Exception> {
        let (name, signature) = match wanted.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')')),
            None => (wanted, None),
        };
        let named: Vec<_> = self.info.operations.iter().filter(|known| known.name == name).collect();
        let signatures = || {
            let all: Vec<_> = named.iter().map(|known| format!("({})", known.signature())).collect();
            all.join(",")
        };
        match (named.as_slice(), wanted.contains('(')) {
            ([], _) => Err(Exception::no_operation(wanted)),
            ([only], false) => Ok(only),
            (_, false) => Err(Exception::illegal_argument(format!(
                "Operation {wanted} on MBean {} is overloaded. Signatures found: {}. Use a signature when specifying \
                 the operation.",
                self.name,
                signatures()
            ))),
            (several, true) => several
                .iter()
                .find(|known| signature.is_some_and(|text| text == known.signature()))
                .copied()
                .ok_or_else(|| {
                    Exception::illegal_argument(format!(
                        "No operation {wanted} on MBean {} exists. Known signatures: {}",
                        self.name,
                        signatures()
                    ))
                }),
        }
    }
}
