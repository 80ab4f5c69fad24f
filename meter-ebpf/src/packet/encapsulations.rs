//! Which packets are tunnels': what the walk asks the configuration.

use super::ETH_TEB;
use crate::abi::{GENEVE_PORTS, Settings, VXLAN_PORTS};

/// What the walk needs to know of the configuration.
///
/// A trait, since a program reads each number from memory that user space fills and the verifier treats as constant,
/// while everything else has [`Settings`] at hand.
pub trait Encapsulations {
    /// Returns one of the VXLAN ports, 0 behind the last.
    fn vxlan_port(&self, index: usize) -> u16;
    /// Returns one of the GENEVE ports, 0 behind the last.
    fn geneve_port(&self, index: usize) -> u16;
    /// Returns whether GRE packets that carry Ethernet are NVGRE.
    fn nvgre(&self) -> bool;

    /// Returns whether UDP packets to this port are VXLAN.
    #[inline(always)]
    fn is_vxlan(&self, port: u16) -> bool {
        for index in 0..VXLAN_PORTS {
            match self.vxlan_port(index) {
                0 => return false,
                known if known == port => return true,
                _ => {}
            }
        }
        false
    }

    /// Returns whether UDP packets to this port are GENEVE.
    #[inline(always)]
    fn is_geneve(&self, port: u16) -> bool {
        for index in 0..GENEVE_PORTS {
            match self.geneve_port(index) {
                0 => return false,
                known if known == port => return true,
                _ => {}
            }
        }
        false
    }

    /// Returns the VNI of a GRE packet; 0 where it has no key.
    #[inline(always)]
    fn gre_vni(&self, gre_ethertype: u16, key: Option<u32>) -> u32 {
        match key {
            None => 0,
            Some(key) if self.nvgre() && gre_ethertype == ETH_TEB => key >> 8,
            Some(key) => key,
        }
    }
}

impl Encapsulations for Settings {
    fn vxlan_port(&self, index: usize) -> u16 {
        self.vxlan_ports[index]
    }

    fn geneve_port(&self, index: usize) -> u16 {
        self.geneve_ports[index]
    }

    fn nvgre(&self) -> bool {
        self.nvgre != 0
    }
}
