//! Which driver a physical netdev has: `/sys`.

use std::{fs, path::Path};

use super::parse::{Link, Parent};
use crate::netdev::{Kind, Netdev};

/// Where sysfs is mounted.
pub(super) const SYS: &str = "/sys";

/// Returns the netdev with its driver, where it is a physical one and has one.
pub(super) fn complete(sys: &Path, link: Link) -> Netdev {
    let Link { mut netdev, parent } = link;
    if netdev.kind == Kind::Physical {
        netdev.driver = match parent {
            Some(parent) => driver_of_device(sys, &parent),
            None => driver_of_netdev(sys, &netdev),
        };
    }
    netdev
}

/// Devices are the same in every network namespace.
fn driver_of_device(sys: &Path, parent: &Parent) -> Option<String> {
    let (bus, name) = (file_name(&parent.bus)?, file_name(&parent.name)?);
    target(&sys.join("bus").join(bus).join("devices").join(name).join("driver"))
}

/// For kernels before 5.14. `/sys/class/net` shows the network namespace in which it was mounted, which may not be the
/// netdev's own: the number and the address must agree.
fn driver_of_netdev(sys: &Path, netdev: &Netdev) -> Option<String> {
    let directory = sys.join("class/net").join(file_name(&netdev.name)?);
    let read = |file| fs::read_to_string(directory.join(file)).ok();
    let [a, b, c, d, e, f] = netdev.mac?;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let agrees = read("ifindex")?.trim() == netdev.ifindex.to_string() && read("address")?.trim() == mac;
    if agrees { target(&directory.join("device/driver")) } else { None }
}

/// Returns the last part of where a symbolic link leads.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Returns a name that stays in its directory.
fn file_name(name: &str) -> Option<&str> {
    (!name.contains('/') && name != "." && name != "..").then_some(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn physical(name: &str, ifindex: u32) -> Netdev {
        Netdev { mac: Some([2, 0, 0, 0, 0, 0xab]), ..Netdev::bare(ifindex, name, Kind::Physical) }
    }

    #[test]
    fn driver_is_the_parents_or_that_of_the_same_netdev_in_sys() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/virtio/devices/virtio2");
        fs::create_dir_all(&device).unwrap();
        symlink("../../../../bus/virtio/drivers/virtio_net", device.join("driver")).unwrap();
        let class = sys.path().join("class/net/eth0");
        fs::create_dir_all(class.join("device")).unwrap();
        fs::write(class.join("ifindex"), "4\n").unwrap();
        fs::write(class.join("address"), "02:00:00:00:00:ab\n").unwrap();
        symlink("../../../../bus/pci/drivers/e1000", class.join("device/driver")).unwrap();

        let parent = |bus: &str, name: &str| Some(Parent { bus: bus.to_owned(), name: name.to_owned() });
        let other_mac = Netdev { mac: Some([2; 6]), ..physical("eth0", 4) };
        let tap = Netdev { kind: Kind::Tap, ..physical("eth0", 4) };
        for (what, netdev, parent, driver) in [
            ("by parent", physical("eth0", 4), parent("virtio", "virtio2"), Some("virtio_net")),
            ("parent without driver", physical("eth0", 4), parent("virtio", "virtio3"), None),
            ("parent outside", physical("eth0", 4), parent("..", "virtio2"), None),
            ("by name", physical("eth0", 4), None, Some("e1000")),
            ("another number", physical("eth0", 5), None, None),
            ("another address", other_mac, None, None),
            ("name outside", physical("..", 4), None, None),
            ("not physical", tap, parent("virtio", "virtio2"), None),
        ] {
            let expected = Netdev { driver: driver.map(str::to_owned), ..netdev.clone() };
            assert_eq!(complete(sys.path(), Link { netdev, parent }), expected, "{what}");
        }
    }
}
