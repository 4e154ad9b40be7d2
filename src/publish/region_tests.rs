//! A region on a log of its own: to a front it is like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::memory_log::MemoryLog;
use super::registrations::{Registration, record_of, removal};
use super::routes::serve_on_loopback;
use super::tests::{Bench, Events, PATIENCE, until};
use super::{
    Cluster, Front, Heart, Members, Poster, Registrations, Settings, Subscriber, live_router, publish_router,
    region, serve_registered, tier,
};
use crate::http::Origins;
use crate::log::{Log, TOPIC_LIVE};
use crate::shutdown::Tasks;

/// An endpoint that takes every message; they come out of the channel.
async fn endpoint(tasks: &Tasks) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, messages) = mpsc::channel(16);
    let stop = tasks.token();
    tasks.spawn(async move {
        stop.run_until_cancelled(listen(&listener, &heard)).await;
    });
    (port, messages)
}

async fn listen(listener: &TcpListener, heard: &mpsc::Sender<String>) {
    while let Ok((mut connection, _)) = listener.accept().await {
        let mut text = String::new();
        let mut bytes = [0; 4096];
        while let Ok(length) = connection.read(&mut bytes).await
            && length > 0
        {
            text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && head.to_lowercase().contains(&format!("content-length: {}", body.len()))
            {
                heard.send(body.to_owned()).await.unwrap();
                text.clear();
                connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_on_a_log_of_its_own_is_placed_served_and_drained_like_any_other() {
    let (center, bench) = Bench::in_memory().await;
    let (center, region): (Arc<dyn Log>, Arc<dyn Log>) = (Arc::new(center), Arc::new(MemoryLog::default()));
    let (tasks, settings) = (Tasks::new(), Settings::default());

    // The center: publisher and front.
    bench.publisher(&tasks);
    let members = Members::follow(Arc::clone(&center), &tasks);
    let registrations = Registrations::follow(Arc::clone(&center), &tasks);
    let front = Front::new(members.clone(), registrations.clone(), &settings, Origins::default());
    let front = serve_on_loopback(publish_router(front), &tasks).await;

    // The cluster, between the two.
    let heart = Heart::start(Arc::clone(&center), &tasks);
    let cluster = Cluster::between(Arc::clone(&center), Arc::clone(&region), "far");
    let cluster = tier::run_cluster(cluster, &heart, &tasks);
    tier::move_registered(&cluster, &members, &registrations, &tasks);
    region::run("far", &center, &region, &registrations, &tasks);

    // Its subscriber, which sees the region's log alone.
    let far_members = Members::follow(Arc::clone(&region), &tasks);
    let far_registrations = Registrations::follow(Arc::clone(&region), &tasks);
    let far_heart = Heart::start(Arc::clone(&region), &tasks);
    let listener = crate::http::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let subscriber = Subscriber::start(Arc::clone(&region), "far", "1", &url, &settings, &far_heart, &tasks);
    subscriber.drain_when_asked(far_members.clone());
    serve_registered(&subscriber, &far_registrations, &far_members, &Poster::new(&settings), &tasks);
    crate::http::serve(listener, live_router(vec![Arc::clone(&subscriber)]), &tasks);

    until(|| members.is_alive("far", "1") && members.alive().iter().all(|member| member.state == "live"))
        .await;
    assert!(region.describe(TOPIC_LIVE).await.unwrap().is_none_or(|ranges| ranges[0].end == 0));

    // A front sends viewers and endpoints there.
    let (port, mut posted) = endpoint(&tasks).await;
    let client = reqwest::Client::new();
    let register = client.post(format!("http://{front}/register"));
    let body = json!({"client_id": "board", "host": "127.0.0.1", "port": port});
    let place = register.json(&body).send().await.unwrap();
    assert_eq!(place.status(), 201);
    assert_eq!(
        place.json::<serde_json::Value>().await.unwrap(),
        json!({"client_id": "board", "cluster": "far", "subscriber": "1"})
    );
    let mut events = Events::open(&front, "", None).await;
    until(|| far_registrations.look(|view| view.client("board").is_some())).await;
    for end in [2, 4, 6] {
        bench.close(&[(end, "main")]).await;
        let window = events.window().await;
        let message = tokio::time::timeout(PATIENCE, posted.recv()).await.unwrap().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&message).unwrap(), window);
    }

    // What the endpoint has is known at the center, and once: nothing goes in circles.
    let last = |view: &super::registrations::View| view.client("board").unwrap().acknowledged.unwrap().id;
    let has_all = |view: &super::registrations::View| {
        view.client("board").is_some_and(|client| client.acknowledged.is_some_and(|known| known.id.is_some()))
            && last(view).is_some_and(|id| id.sequence == 3)
    };
    until(|| registrations.look(has_all)).await;
    let written = |log: Arc<dyn Log>| async move {
        log.describe(crate::log::TOPIC_REGISTRATIONS).await.unwrap().unwrap()[0].end
    };
    let before = (written(Arc::clone(&center)).await, written(Arc::clone(&region)).await);
    bench.close(&[(8, "main")]).await;
    events.window().await;
    posted.recv().await.unwrap();
    until(|| registrations.look(|view| last(view).is_some_and(|id| id.sequence == 4))).await;
    let after = (written(Arc::clone(&center)).await, written(Arc::clone(&region)).await);
    let (at_center, at_region) = (after.0 - before.0, after.1 - before.1);
    assert_eq!(at_center, at_region, "what the region says comes to the center once");
    assert!(at_center <= 3, "{at_center} records for one message");

    // A drain that a front is asked for reaches the subscriber; who leaves the center leaves the region.
    let drain = client.put(format!("http://{front}/v1/topology/far/1/drain")).send().await.unwrap();
    assert!(drain.status().is_success(), "{}", drain.status());
    until(|| subscriber.is_draining()).await;
    until(|| members.alive().iter().any(|member| member.state == "draining")).await;
    let gone = client.delete(format!("http://{front}/register/board")).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    until(|| far_registrations.look(|view| view.client("board").is_none())).await;
    assert!(tasks.stop(Duration::from_secs(5)).await, "everything ends in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_while_nobody_carried_is_removed_later() {
    let (center, region): (Arc<dyn Log>, Arc<dyn Log>) =
        (Arc::new(MemoryLog::default()), Arc::new(MemoryLog::default()));
    let tasks = Tasks::new();
    let (members, far_members) =
        (Members::follow(Arc::clone(&center), &tasks), Members::follow(Arc::clone(&region), &tasks));
    let registrations = Registrations::follow(Arc::clone(&center), &tasks);
    let far_registrations = Registrations::follow(Arc::clone(&region), &tasks);
    let is_known =
        |registrations: &Registrations, id: &str| registrations.look(|view| view.client(id).is_some());
    let drains = Arc::new(AtomicBool::new(false));
    let (told, following) = (Arc::clone(&drains), far_members.clone());
    tasks.spawn(async move {
        following.each_drain("far", "1", |drain| told.store(drain, Ordering::Relaxed)).await;
    });

    let carrying = Tasks::new();
    region::run("far", &center, &region, &registrations, &carrying);
    until(|| registrations.ready().is_ok() && far_registrations.ready().is_ok()).await;
    let address = std::net::IpAddr::from([127, 0, 0, 1]);
    let registration =
        Registration { host: "h".to_owned(), port: 1, address, table: None, room: None, time: 0 };
    for id in ["stays", "goes"] {
        registrations.write(vec![record_of(id, &registration)]).await.unwrap();
    }
    members.set_drain("far", "1", true).await.unwrap();
    until(|| is_known(&far_registrations, "stays") && is_known(&far_registrations, "goes")).await;
    until(|| drains.load(Ordering::Relaxed)).await;
    carrying.stop(Duration::from_secs(5)).await;

    registrations.write(removal("goes")).await.unwrap();
    members.set_drain("far", "1", false).await.unwrap();
    let carrying = Tasks::new();
    region::run("far", &center, &region, &registrations, &carrying);
    until(|| !is_known(&far_registrations, "goes") && !drains.load(Ordering::Relaxed)).await;
    assert!(is_known(&far_registrations, "stays"));
    carrying.stop(Duration::from_secs(5)).await;
    tasks.stop(Duration::from_secs(5)).await;
}
