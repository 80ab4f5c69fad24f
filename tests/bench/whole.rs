//! A whole agent on a datapath of memory, and a scrape of it from the request to the last byte.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use hyper::{HeaderMap, Method, header::HeaderValue};
use meter_agent::{
    agent::{Agent, Configured, Event},
    binding::Bindings,
    connections::Selection,
    datapath::{
        AttachError, Attachment, Capture, Datapath, HookKind, Lost, MetersError, PortReading, ReadError,
        Reading, Target, TunnelReading,
    },
    definitions::state::{Found, State},
    http::{
        Request,
        prometheus::Options,
        routes::{self, Pages},
    },
    netdev::{
        Kind, NamespaceId, Netdev, NetdevEvent, NetdevId, NetdevTable,
        namespaces::{Entrance, Identity},
    },
    publish::SnapshotReader,
    roles::Rules,
    rules::MeterSet,
    snapshot::Snapshot,
    survey::Policy,
    totals::Totals,
};
use meter_ebpf::abi::{Direction, SlotCounters};
use uuid::Uuid;

/// Attaches everything, and reads the same totals each time.
struct Memory {
    reading: Reading,
    attached: BTreeMap<NetdevId, Attachment>,
}

impl Datapath for Memory {
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        &self.attached
    }

    fn unpinned(&self) -> Option<&str> {
        None
    }

    fn prepare(&mut self, _: &[Target]) {}
    fn enter(&mut self, _: Identity, _: Entrance) -> Result<NamespaceId, AttachError> {
        Ok(NamespaceId(1))
    }

    fn leave(&mut self, _: NamespaceId) {}

    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        if let Some(port) = self.reading.ports.iter_mut().find(|port| port.port == target.port) {
            port.netdev = Some(target.id);
        }
        let (target, tcx) = (target.clone(), HookKind::Tcx);
        self.attached.insert(target.id, Attachment::new(target, [tcx; 2]));
        Ok(())
    }

    fn exchange(&mut self, _targets: &[Target]) -> Result<(), AttachError> {
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        Vec::new()
    }

    fn detach(&mut self, _: NetdevId) -> Result<(), AttachError> {
        Ok(())
    }

    fn tend(&mut self) {}

    fn set_meters(&mut self, _: &MeterSet) -> Result<(), MetersError> {
        Ok(())
    }

    fn capture_in_force(&self) -> bool {
        true
    }

    fn meters_in_force(&self) -> bool {
        true
    }

    fn set_capture(&mut self, _: &Capture) -> Result<(), MetersError> {
        Ok(())
    }

    fn totals(&mut self) -> Result<Totals, ReadError> {
        Ok(Totals::default())
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        Ok(self.reading.clone())
    }
}

/// A running agent with the host of a snapshot.
pub(crate) struct Whole {
    pages: Pages,
    runtime: tokio::runtime::Runtime,
    events: mpsc::Sender<Event>,
}

impl Whole {
    /// Starts it, and waits until every netdev is attached.
    pub(crate) fn start(host: &Snapshot, options: Options) -> Result<Self> {
        let (events, channel) = mpsc::channel();
        let latest = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let policy = Policy {
            bindings: Bindings { configured: Vec::new(), host_id: Uuid::from_u128(1) },
            rules: Rules::default(),
            connections: Selection::default(),
        };
        let datapath = Memory { reading: reading(host), attached: BTreeMap::new() };
        let configured = Configured { policy, meters: MeterSet::default(), read_s: 0 };
        let added = Found { state: State::nowhere(), meters: Vec::new(), trouble: None };
        let agent =
            Agent::new(datapath, configured, added, "compute1".to_owned(), false, Arc::clone(&latest));
        thread::spawn(move || agent.run(&channel));
        let netdevs = host.ports.iter().filter_map(netdev).map(|netdev| (netdev.ifindex, netdev)).collect();
        let table = NetdevTable { netdevs, ..NetdevTable::default() };
        events.send(Event::Netdev(NetdevEvent::All(table))).ok().context("the agent ended")?;
        let reader = SnapshotReader::new(latest, {
            let events = events.clone();
            move |wish| drop(events.send(Event::Refresh(wish)))
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ready = runtime.block_on(async {
            let mut snapshot = reader.fresh().await;
            while !snapshot.health.ready {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                snapshot = reader.fresh().await;
            }
            snapshot
        });
        let carried = ready.ports.iter().filter(|port| port.carrier.is_some()).count();
        ensure!(carried == host.ports.len(), "{carried} ports of {} are carried", host.ports.len());
        Ok(Self { pages: Pages::new(reader, options, true), runtime, events })
    }

    /// Scrapes it as Prometheus does; returns how many bytes come.
    pub(crate) fn scrape(&self, gzip: bool) -> usize {
        let mut headers = HeaderMap::new();
        if gzip {
            headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
        }
        let request = Request {
            method: Method::GET,
            path: "/metrics".to_owned(),
            query: None,
            headers,
            body: <_>::default(),
        };
        self.runtime.block_on(routes::answer(&self.pages, request)).body.len()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        drop(self.events.send(Event::Shutdown));
    }
}

/// Returns what the maps hold where a snapshot is like this.
fn reading(host: &Snapshot) -> Reading {
    let ports = host.ports.iter().map(|port| PortReading {
        port: port.port,
        class: port.class,
        netdev: None,
        device: port.device,
        created_ns: port.created_ns,
        totals: SlotCounters { hooks: [port.ingress, port.egress] },
    });
    let tunnels = [(Direction::Ingress, &host.tunnels_receive), (Direction::Egress, &host.tunnels_transmit)];
    let tunnels = tunnels.into_iter().flat_map(|(direction, tunnels)| {
        tunnels.iter().map(move |(id, totals)| TunnelReading {
            uplink: host.ports[0].port,
            direction,
            src: id.src,
            dst: id.dst,
            vni: id.vni,
            encap: id.encap,
            packets: totals.packets,
            inner_bytes: totals.inner_bytes,
            outer_bytes: totals.outer_bytes,
        })
    });
    Reading {
        ports: ports.collect(),
        devices: host.devices.iter().map(|(&id, &stats)| (id, stats)).collect(),
        tunnels: tunnels.collect(),
        ..Reading::default()
    }
}

/// Returns the netdev that carries a port; its alias says which.
fn netdev(port: &meter_agent::snapshot::Port) -> Option<Netdev> {
    let carrier = port.carrier.as_ref()?;
    Some(Netdev {
        ifindex: carrier.id.ifindex,
        name: carrier.netdev.clone(),
        kind: Kind::Tap,
        driver: None,
        mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        alias: Some(port.port.to_string()),
        altnames: Vec::new(),
        master: None,
        lower: None,
        up: true,
        mtu: 1500,
    })
}
