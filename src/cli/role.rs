//! One stage per process, on Kafka: `ingest`, `publish`, `cluster`, `subscribe`, `query`; `engine` is in its own file.

use std::sync::Arc;

use super::logs::connect_kafka;
use super::serve::{self, LogPlace, ServeArgs, Serving, Start, log_failure, never};
use super::{Failure, rows};
use crate::http::{MethodFilter, Origins, not_built_router};
use crate::ingest::{self, Ingest};
use crate::log::program::{self, ProgramView};
use crate::publish::{
    self, Cluster, Front, Heart, Members, Poster, Publisher, Registrations, Subscriber, standby, tier,
};
use crate::query::{self, Query};
use tokio::sync::watch;

/// Take rows over HTTP into the log (one role of `up`, on Kafka)
///
/// Learns its tables from the running program, which the engine writes; /readyz says when it is not there yet.
#[derive(Debug, clap::Args)]
pub struct IngestArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

/// Put closed windows into one order, and send viewers to subscribers (one role of `up`, on Kafka)
///
/// Any number of them may run: all send viewers to subscribers, and one of them puts windows into order; when it dies,
/// another one goes on within seconds.
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

/// Copy the live messages for one region (one role of `up`, on Kafka)
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// The region's name
    name: String,
    /// The region's own Kafka, where its subscribers are [default: the same]
    ///
    /// The properties under [log.kafka] count for both.
    #[arg(long, value_name = "HOST:PORT")]
    region_kafka: Option<String>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Hold viewers' connections (one role of `up`, on Kafka)
#[derive(Debug, clap::Args)]
pub struct SubscribeArgs {
    /// The region whose messages it shows; may be given several times
    #[arg(long, value_name = "NAME", required = true)]
    cluster: Vec<String>,
    /// Its name in the cluster [default: host and port of --advertise]
    #[arg(long)]
    name: Option<String>,
    /// Where viewers reach it [default: the address it listens on]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Answer for closed windows, tables and queries (one role of `up`, on Kafka)
#[derive(Debug, clap::Args)]
pub struct QueryArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

/// What `query` will answer later.
pub(super) const LATER_QUERY_CALLS: [(MethodFilter, &str); 4] = [
    (MethodFilter::GET, "/"),
    (MethodFilter::POST, "/v1/sql"),
    (MethodFilter::GET, "/docs"),
    (MethodFilter::GET, "/openapi.json"),
];

/// Runs stage 1.
///
/// # Errors
/// As [`serve::run`].
pub fn ingest(args: IngestArgs) -> Result<(), Failure> {
    let settings = args.serve.load()?.settings;
    let ingest = settings.ingest.clone();
    let origins = Origins::new(&settings.http.origins);
    run(args.serve, settings, "127.0.0.1:8081", "ingest", |start| async move {
        let program = follow(&start).await?;
        let stage = Ingest::start(Arc::clone(&start.log), program, ingest, &start.process.stages);
        let ready = Arc::clone(&stage);
        start.readiness.add("ingest", move || ready.not_ready().map_or(Ok(()), Err));
        let posts = ingest::routes::router(Arc::clone(&stage)).layer(origins.cors());
        Ok((ingest::routes::with_sockets(posts, stage, origins), never()))
    })
}

/// Runs the publisher.
///
/// # Errors
/// As [`serve::run`].
pub fn publish(args: PublishArgs) -> Result<(), Failure> {
    let settings = args.serve.load()?.settings;
    run(args.serve, settings.clone(), "127.0.0.1:8083", "publish", |start| async move {
        let publisher = Publisher::new(Arc::clone(&start.log), follow(&start).await?);
        standby::stand(Arc::clone(&publisher), Arc::clone(&start.log), &start.process.stages);
        let note = Arc::clone(&publisher);
        start.readiness.say(move || {
            note.stands_by().then(|| {
                "publish: another process puts windows into order; this one places clients and stands by"
                    .to_owned()
            })
        });
        start.readiness.add("publish", move || publisher.ready());
        let members = Members::follow(Arc::clone(&start.log), &start.process.stages);
        let registrations = Registrations::follow(Arc::clone(&start.log), &start.process.stages);
        let known = registrations.clone();
        start.readiness.add("publish", move || known.ready());
        let origins = Origins::new(&settings.http.origins);
        let front = Front::new(members, registrations, &settings.publish, origins);
        Ok((publish::publish_router(front), never()))
    })
}

/// Runs a cluster.
///
/// # Errors
/// As [`serve::run`].
pub fn cluster(args: ClusterArgs) -> Result<(), Failure> {
    let settings = args.serve.load()?.settings;
    let ClusterArgs { name, region_kafka, serve } = args;
    run(serve, settings.clone(), "127.0.0.1:8084", "cluster", |start| async move {
        let heart = Heart::start(Arc::clone(&start.log), &start.process.stages);
        let region = match &region_kafka {
            Some(bootstrap) => {
                let mut regional = settings.clone();
                regional.log.kafka.bootstrap_servers.clone_from(bootstrap);
                Some(connect_kafka(&regional).await?)
            }
            None => None,
        };
        let own = region.clone().unwrap_or_else(|| Arc::clone(&start.log));
        let cluster = Cluster::between(Arc::clone(&start.log), own, &name);
        let cluster = tier::run_cluster(cluster, &heart, &start.process.stages);
        let moving = Arc::clone(&cluster);
        start.readiness.add("cluster", move || cluster.ready());
        start.readiness.add("members", move || heart.ready());
        let members = Members::follow(Arc::clone(&start.log), &start.process.stages);
        let registrations = Registrations::follow(Arc::clone(&start.log), &start.process.stages);
        tier::move_registered(&moving, &members, &registrations, &start.process.stages);
        if let Some(region) = &region {
            publish::region::run(&name, &start.log, region, &registrations, &start.process.stages);
        }
        let origins = Origins::new(&settings.http.origins);
        let front = Front::new(members, registrations, &settings.publish, origins);
        Ok((publish::front_router(front), never()))
    })
}

/// Runs a subscriber of each cluster named.
///
/// # Errors
/// As [`serve::run`].
pub fn subscribe(args: SubscribeArgs) -> Result<(), Failure> {
    let SubscribeArgs { cluster: clusters, name, advertise, serve } = args;
    let settings = serve.load()?.settings;
    let (publish, ingest) = (settings.publish.clone(), settings.ingest.clone());
    let origins = Origins::new(&settings.http.origins);
    run(serve, settings, "127.0.0.1:8085", "subscribe", |start| async move {
        let url = advertise.unwrap_or_else(|| start.url.clone());
        let name =
            name.unwrap_or_else(|| url.split_once("://").map_or(url.as_str(), |(_, host)| host).to_owned());
        let heart = Heart::start(Arc::clone(&start.log), &start.process.stages);
        let members = Members::follow(Arc::clone(&start.log), &start.process.stages);
        let registrations = Registrations::follow(Arc::clone(&start.log), &start.process.stages);
        let poster = Poster::new(&publish);
        let mut subscribers = Vec::with_capacity(clusters.len());
        for cluster in &clusters {
            let log = Arc::clone(&start.log);
            let subscriber =
                Subscriber::start(log, cluster, &name, &url, &publish, &heart, &start.process.connections);
            subscriber.drain_when_asked(members.clone());
            let tasks = &start.process.connections;
            publish::serve_registered(&subscriber, &registrations, &members, &poster, tasks);
            let ready = Arc::clone(&subscriber);
            start.readiness.add("subscribe", move || ready.ready());
            subscribers.push(subscriber);
        }
        start.readiness.add("members", move || heart.ready());
        let program = follow(&start).await?;
        let ingest = Ingest::start(Arc::clone(&start.log), program, ingest, &start.process.stages);
        let known = Arc::clone(&ingest);
        // Who watches is served all the same.
        start.readiness.say(move || Some(format!("viewers can send nothing: {}", known.not_ready()?)));
        Ok((publish::subscriber_router(subscribers, rows::taken_by(&ingest, &origins)), never()))
    })
}

/// Runs stage 3b.
///
/// # Errors
/// As [`serve::run`].
pub fn query(args: QueryArgs) -> Result<(), Failure> {
    let settings = args.serve.load()?.settings;
    let query = settings.query.clone();
    run(args.serve, settings, "127.0.0.1:8086", "query", |start| async move {
        let program = follow(&start).await?;
        let stage = Query::start(Arc::clone(&start.log), program, &query, &start.process.stages);
        let ready = Arc::clone(&stage);
        start.readiness.add("query", move || ready.ready());
        let router = query::routes::router(Arc::clone(&stage))
            .merge(query::routes::queries_router(stage))
            .merge(not_built_router(&LATER_QUERY_CALLS));
        Ok((router, never()))
    })
}

async fn follow(start: &Start) -> Result<watch::Receiver<Arc<ProgramView>>, Failure> {
    program::follow(Arc::clone(&start.log), &start.process.stages).await.map_err(log_failure)
}

/// A role serves on Kafka, and says where.
pub(super) fn run<F>(
    args: ServeArgs,
    settings: crate::config::Settings,
    default_listen: &str,
    name: &str,
    build: impl FnOnce(Start) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(crate::http::Router, serve::Failed), Failure>>,
{
    let listen = args.listen.unwrap_or_else(|| default_listen.to_owned());
    serve::run(settings, &listen, LogPlace::Kafka, |start| {
        let banner = format!("emostream {name} is running at {}", start.url);
        async move {
            let (router, failed) = build(start).await?;
            Ok(Serving { router, failed, banner })
        }
    })
}
