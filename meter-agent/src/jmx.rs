//! The beans: what a JMX client sees of the agent, in whichever protocol it asks.
//!
//! | domain | beans |
//! |---|---|
//! | `org.midonet.midolman` | [`metering`]: the bean that MidoNet's agent had |
//! | `metrics` | [`metrics`]: the agent's own health, under MidoNet's names where the same thing exists here |
//! | `java.lang` | [`platform`]: what generic clients look at first |
//!
//! A [`bean::Bean`] is a name, a description and a source of values; [`value`] and [`open_type`] are Java's values and
//! types. Nothing here knows a protocol: a request is answered by [`BeanServer::get`] or [`BeanServer::matching`], and
//! what the bean then says. All values of one request come from one [`facts::Facts`]. Nothing can be written, and no
//! operation changes anything.

pub mod activity;
pub mod bean;
pub mod durations;
pub mod facts;
pub mod metering;
pub mod metrics;
pub mod name;
pub mod open_type;
pub mod platform;
pub mod rates;
pub mod value;

use std::{sync::Arc, time::Duration};

use self::{
    activity::Activity,
    bean::{Bean, Exception},
    metrics::Metric,
    name::ObjectName,
};
use crate::snapshot::Snapshot;

/// Which agent it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The agent's version.
    pub version: String,
}

/// Every bean of this agent. The set never changes.
#[derive(Debug)]
pub struct BeanServer {
    identity: Arc<Identity>,
    since: Duration,
    activity: Arc<Activity>,
    metrics: Arc<[Metric]>,
    beans: Vec<Bean>,
}

impl BeanServer {
    /// Makes the beans. `now` is the time since the Unix epoch.
    #[must_use]
    pub fn new(identity: Identity, now: Duration) -> Self {
        let identity = Arc::new(identity);
        let metrics: Arc<[Metric]> = metrics::all().into();
        let activity = Arc::new(Activity::new(metrics.len()));
        let mut beans = vec![metering::bean(), platform::runtime(Arc::clone(&identity)), platform::memory()];
        beans.extend(metrics::beans(&metrics, &activity));
        Self { identity, since: now, activity, metrics, beans }
    }

    /// Returns which agent it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns since when there are these beans: the time since the Unix epoch.
    #[must_use]
    pub const fn since(&self) -> Duration {
        self.since
    }

    /// Returns the bean of a name.
    ///
    /// # Errors
    ///
    /// That there is none.
    pub fn get(&self, name: &ObjectName) -> Result<&Bean, Exception> {
        let found = self.beans.iter().find(|bean| bean.name == *name);
        found.ok_or_else(|| Exception::no_bean(name.to_string()))
    }

    /// Returns the beans that a name or a pattern matches.
    pub fn matching(&self, pattern: &ObjectName) -> impl Iterator<Item = &Bean> {
        self.beans.iter().filter(|bean| pattern.matches(&bean.name))
    }

    /// Adds a bean.
    #[cfg(test)]
    pub(crate) fn add(&mut self, bean: Bean) {
        self.beans.push(bean);
    }

    /// Moves the rates on; to be called every [`rates::TICK`]. `now` is the time since the Unix epoch.
    ///
    /// Before the first reading they stay: the counts in pinned maps would seem to have come all at once.
    pub fn tick(&self, snapshot: &Snapshot, now: Duration) {
        if snapshot.generation == 0 {
            return;
        }
        self.activity.tick(self.metrics.iter().map(|metric| metric.events(snapshot)), now);
    }

    /// Notes how long a request took to answer.
    pub fn answered_in(&self, took: Duration) {
        self.activity.request(took);
    }
}

#[cfg(test)]
mod tests;
