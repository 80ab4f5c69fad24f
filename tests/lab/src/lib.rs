//! Hosts, guests and wires made of network namespaces.
