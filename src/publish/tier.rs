//! The whole tier in one process, as `up` runs it: a publisher, clusters, and their subscribers.

use std::sync::Arc;

use tokio::sync::watch;

use super::members::MemberState;
use super::{
    Cluster, Heart, Members, Poster, Publisher, Registrations, Settings, Subscriber, moves, serve_registered,
};
use crate::log::program::ProgramView;
use crate::log::{self, Log, LogError};
use crate::shutdown::Tasks;

/// One publisher, `clusters` clusters (`cluster-1` …) and as many subscribers each (`subscriber-1` …).
pub struct Tier {
    publisher: Arc<Publisher>,
    clusters: Vec<Arc<Cluster>>,
    subscribers: Vec<Arc<Subscriber>>,
    heart: Arc<Heart>,
    members: Members,
    registrations: Registrations,
    failure: watch::Receiver<Option<LogError>>,
}

impl Tier {
    /// Starts everything; clients reach all subscribers at `url`.
    pub fn start(
        log: &Arc<dyn Log>,
        program: watch::Receiver<Arc<ProgramView>>,
        url: &str,
        settings: &Settings,
        tasks: &Tasks,
    ) -> Self {
        let publisher = Publisher::new(Arc::clone(log), program);
        let failure = run_publisher(Arc::clone(&publisher), tasks);
        let heart = Heart::start(Arc::clone(log), tasks);
        let members = Members::follow(Arc::clone(log), tasks);
        let registrations = Registrations::follow(Arc::clone(log), tasks);
        let poster = Poster::new(settings);
        let cluster = |n| {
            let cluster = run_cluster(Cluster::new(Arc::clone(log), &format!("cluster-{n}")), &heart, tasks);
            move_registered(&cluster, &members, &registrations, tasks);
            cluster
        };
        let clusters: Vec<_> = (1..=settings.clusters).map(cluster).collect();
        let subscriber = |cluster: &Arc<Cluster>, n: usize| {
            let name = format!("subscriber-{n}");
            let subscriber =
                Subscriber::start(Arc::clone(log), cluster.name(), &name, url, settings, &heart, tasks);
            subscriber.drain_when_asked(members.clone());
            serve_registered(&subscriber, &registrations, &members, &poster, tasks);
            subscriber
        };
        // By number first, so that clients spread over the clusters before they double up in one.
        let subscribers = (1..=settings.subscribers_per_cluster)
            .flat_map(|n| clusters.iter().map(move |cluster| (cluster, n)))
            .map(|(cluster, n)| subscriber(cluster, n))
            .collect();
        Self { publisher, clusters, subscribers, heart, members, registrations, failure }
    }

    /// The subscribers, for [`super::live_router`].
    pub fn subscribers(&self) -> Vec<Arc<Subscriber>> {
        self.subscribers.clone()
    }

    /// Everyone who is there, in other processes too.
    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// Everyone who is registered.
    pub fn registrations(&self) -> Registrations {
        self.registrations.clone()
    }

    /// Whether the publisher has recovered and all clusters and subscribers are live members.
    ///
    /// # Errors
    /// Says what is missing first.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(error) = &*self.failure.borrow() {
            return Err(format!("the publisher stopped: {error}"));
        }
        self.publisher.ready()?;
        self.clusters.iter().try_for_each(|cluster| cluster.ready())?;
        self.subscribers.iter().try_for_each(|subscriber| subscriber.ready())?;
        self.registrations.ready()?;
        self.heart.ready()?;
        let alive = self.members.alive();
        self.subscribers.iter().try_for_each(|subscriber| {
            let (cluster, name) = subscriber.key();
            let is_it = |member: &MemberState| {
                member.cluster == cluster
                    && member.subscriber.as_deref() == Some(name)
                    && member.state != "starting"
            };
            match alive.iter().any(is_it) {
                true => Ok(()),
                false => {
                    Err(format!("nobody has heard yet that subscriber {name} of cluster {cluster} is live"))
                }
            }
        })
    }

    /// Why the publisher stopped, once it did: another one took over, and this process should end.
    pub fn failure(&self) -> watch::Receiver<Option<LogError>> {
        self.failure.clone()
    }
}

/// Runs a publisher that stands by for nobody as one of the process's tasks; what it returns says why it stopped, once it did.
pub fn run_publisher(publisher: Arc<Publisher>, tasks: &Tasks) -> watch::Receiver<Option<LogError>> {
    let (failed, failure) = watch::channel(None);
    let stop = tasks.clone();
    tasks.spawn(async move {
        if let Err(error) = publisher.run(log::alone().as_ref(), &stop).await {
            tracing::error!(%error, "the publisher stopped");
            failed.send_replace(Some(error));
        }
    });
    failure
}

/// Runs a cluster as one of the process's tasks, and makes it a member.
pub fn run_cluster(cluster: Arc<Cluster>, heart: &Heart, tasks: &Tasks) -> Arc<Cluster> {
    let (running, stop) = (Arc::clone(&cluster), tasks.clone());
    tasks.spawn(async move { running.run(&stop).await });
    let pulse = Arc::clone(&cluster);
    heart.add(move || MemberState::of_cluster(pulse.name(), pulse.ready().is_ok()));
    cluster
}

/// Lets a cluster move its registered clients away from subscribers that die or drain, as one of the process's tasks.
pub fn move_registered(cluster: &Cluster, members: &Members, registrations: &Registrations, tasks: &Tasks) {
    moves::run(cluster.name().to_owned(), members.clone(), registrations.clone(), tasks);
}
