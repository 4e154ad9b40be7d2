//! What a client says over its WebSocket: it asks for other rooms, and sends rows.

use std::collections::BTreeMap;

use emostream::publish::Live;
use serde_json::{Value, json};

use crate::standby::{program, role};
use crate::support::binary::{Running as Process, emostream};
use crate::support::kafka::Broker;
use crate::support::raw_socket::{BINARY, FIN, RawSocket};
use crate::support::tier::{Running, close, create_sink, embedded};

fn end_of(window: &Value) -> String {
    assert_eq!(window.get("type"), None, "a window: {window}");
    format!("{} {}", window["room"].as_str().unwrap(), window["window"]["end"].as_str().unwrap())
}

fn sequence(window: &Value) -> u64 {
    window["id"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}

fn window(room: &str, end_s: i64) -> String {
    format!("{room} 1970-01-01T00:00:{end_s:02}Z")
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_and_tables_come_and_go_over_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    let log = embedded(&folder);
    create_sink(log.as_ref()).await;
    let tier = Running::start_small(&log, Live::default()).await;
    let mut writer = log.fence("engine").await.unwrap();
    let mut socket = RawSocket::open(&tier.address, "/v1/live").await;
    let mut witness = RawSocket::open(&tier.address, "/v1/live?room=main&room=a&room=b").await;
    for (end_s, room) in [(1, "a"), (1, "main")] {
        close(writer.as_mut(), end_s, room).await;
        assert_eq!(end_of(&witness.json().await), window(room, end_s));
    }
    assert_eq!(end_of(&socket.json().await), window("main", 1));

    socket.say(r#"{"subscribe":{"room":["a","b"],"table":"emoji_counts","last":true},"ref":"more"}"#).await;
    let of_sink = json!({"table": ["emoji_counts"], "early": false});
    assert_eq!(
        socket.json().await,
        json!({"type": "watching", "ref": "more",
               "room": {"main": {"table": [], "early": false}, "a": of_sink, "b": of_sink}}),
        "the newest window of a is older than that of main: ids never go back"
    );
    close(writer.as_mut(), 2, "b").await;
    assert_eq!(end_of(&socket.json().await), window("b", 2));
    socket.say(r#"{"unsubscribe":{}}"#).await;
    assert_eq!(socket.json().await["room"], json!({"a": of_sink, "b": of_sink}));
    close(writer.as_mut(), 2, "main").await;
    close(writer.as_mut(), 2, "a").await;
    assert_eq!(end_of(&socket.json().await), window("a", 2));

    socket.say(r#"{"unsubscribe":{"room":["a","b"]}}"#).await;
    assert_eq!(socket.json().await["room"], json!({}), "a connection may watch nothing");
    close(writer.as_mut(), 3, "a").await;
    socket.say(r#"{"subscribe":{"room":"a","last":1}}"#).await;
    // The window may have been told to the subscriber by now, or not yet.
    let mut heard = [socket.json().await, socket.json().await];
    heard.sort_by_key(|message| message.get("type").is_none());
    assert_eq!((&heard[0]["type"], end_of(&heard[1])), (&json!("watching"), window("a", 3)));
    socket.send_frame(FIN | BINARY, b"{}").await;
    let refused = socket.json().await;
    assert_eq!((&refused["type"], &refused["kind"]), (&json!("problem"), &json!("about:blank#bad-command")));
    tier.stop().await;
}

/// Viewers who ask for rooms and leave them all the time, while windows close in all of them.
#[tokio::test(flavor = "multi_thread")]
async fn who_changes_rooms_all_the_time_hears_each_window_at_most_once_and_in_order() {
    const ROOMS: [&str; 4] = ["a", "b", "c", "d"];
    const ROUNDS: i64 = 50;
    let folder = tempfile::tempdir().unwrap();
    let log = embedded(&folder);
    create_sink(log.as_ref()).await;
    let tier = Running::start_small(&log, Live::default()).await;
    let mut writer = log.fence("engine").await.unwrap();
    let restless = async |number: usize| {
        let mut socket = RawSocket::open(&tier.address, "/v1/live?room=a&room=end").await;
        let (mut last, mut kept, mut changes) = (0, Vec::new(), 0);
        loop {
            let message = socket.json().await;
            if message["type"] == "watching" {
                continue;
            }
            assert!(sequence(&message) > last, "{number}: {message} after {last}");
            last = sequence(&message);
            assert_eq!(message.get("skipped"), None, "who reads misses nothing");
            match message["room"].as_str().unwrap() {
                "end" => return (kept, changes),
                "a" => kept.push(end_of(&message)),
                _ => {}
            }
            let room = ROOMS[1 + (changes + number) % 3];
            let change = if changes % 2 == 0 { "subscribe" } else { "unsubscribe" };
            socket
                .say(
                    json!({change: {"room": room, "last": false}}).to_string().replace(",\"last\":false", ""),
                )
                .await;
            changes += 1;
        }
    };
    let closing = async {
        for end_s in 1..=ROUNDS {
            for room in ROOMS {
                close(writer.as_mut(), end_s, room).await;
            }
        }
        close(writer.as_mut(), ROUNDS + 1, "end").await;
    };
    let viewers = futures::future::join_all((0..20).map(restless));
    let (told, ()) = tokio::join!(viewers, async {
        tier.until_clients(20).await;
        closing.await;
    });
    let all: Vec<String> = (1..=ROUNDS).map(|end_s| window("a", end_s)).collect();
    for (kept, changes) in told {
        assert_eq!(kept, all, "the room that was never left is whole");
        assert!(changes > ROUNDS as usize, "{changes} changes");
    }
    tier.stop().await;
}

/// Rows sent over a socket are answered there, counted, and shown on the same socket.
async fn rows_go_in_and_their_window_comes_back(process: &Process, sink: &str) {
    let address = process.url("").strip_prefix("http://").unwrap().to_owned();
    let mut socket = RawSocket::open(&address, "/v1/live?room=hall").await;
    let rows = json!([{"user_id": "u", "emoji_type": "🎉", "room": "hall"}, {"user_id": "v", "emoji_type": "🎉", "room": "hall"}]);
    socket.say(json!({"send": rows, "ref": 7}).to_string()).await;
    socket.say(json!({"send": rows[0], "table": "reactions"}).to_string()).await;
    let mut answers = BTreeMap::new();
    let mut count = 0;
    while answers.len() < 2 || count < 3 {
        let message = socket.json().await;
        match message["type"].as_str() {
            Some("accepted") => drop(answers.insert(message["ref"].to_string(), message)),
            Some(_) => panic!("{message}"),
            None => count += message["rows"][0]["count"].as_u64().unwrap(),
        }
    }
    assert_eq!(answers["7"], json!({"type": "accepted", "accepted": 2, "ref": 7}));
    assert_eq!(answers["null"], json!({"type": "accepted", "accepted": 1}));
    assert_eq!(count, 3);

    for (said, kind, part) in [
        (json!({"send": [{"user_id": "u", "room": "hall"}]}), "bad-row", "emoji_type"),
        (json!({"send": 7}), "unreadable-body", ""),
        (json!({"send": [], "table": sink}), "not-a-source", "sink"),
        (json!({"send": [], "table": "nothing"}), "unknown-table", "no table nothing"),
    ] {
        socket.say(said.to_string()).await;
        let answer = socket.json().await;
        assert_eq!(
            (&answer["type"], &answer["kind"]),
            (&json!("problem"), &json!(format!("about:blank#{kind}")))
        );
        assert!(answer["detail"].as_str().unwrap().contains(part), "{answer}");
    }
    socket.say(r#"{"send":[]}"#).await;
    assert_eq!(socket.json().await, json!({"type": "accepted", "accepted": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_sent_over_the_socket_are_counted_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let up = Process::up(dir.path(), &[]);
    up.ready().await;
    rows_go_in_and_their_window_comes_back(&up, "emoji_counts").await;

    // A page of elsewhere may watch, and not send.
    let address = up.url("").strip_prefix("http://").unwrap().to_owned();
    for (origin, may) in [("https://elsewhere.example", false), ("http://localhost:3000", true)] {
        let mut socket = RawSocket::open_with(&address, "/v1/live", &[("Origin", origin)]).await;
        socket.say(r#"{"send":[{"user_id":"u","emoji_type":"🎉"}]}"#).await;
        let mut answer = socket.json().await;
        while answer.get("type").is_none() {
            answer = socket.json().await;
        }
        match may {
            true => assert_eq!(answer["type"], "accepted", "{origin}"),
            false => assert_eq!(answer["status"], 403, "{origin}"),
        }
        let accepted = up.json("/v1/queries").await["queries"][0]["accepted"].clone();
        assert_eq!(accepted, if may { 4 } else { 3 }, "{origin}");
    }
    // More than may be under way at once: the rest waits its turn, and each is answered.
    let mut socket = RawSocket::open(&address, "/v1/live?room=nobody").await;
    for number in 0..50 {
        socket.say(json!({"send": [{"user_id": "u", "emoji_type": "🎉"}], "ref": number}).to_string()).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 50 {
        let answer = socket.json().await;
        assert_eq!(answer["accepted"], 1, "{answer}");
        answered.push(answer["ref"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..50).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_sent_to_a_subscriber_on_kafka_are_counted_like_any_other() {
    let (broker, dir) = (Broker::start(), program());
    let start = |args: &[&str]| {
        let common = ["--kafka", &broker.address, "--listen", "127.0.0.1:0"];
        Process::start(emostream(dir.path()).args(args).args(common))
    };
    let engine = role(dir.path(), &broker, "engine");
    let publish = start(&["publish"]);
    let cluster = start(&["cluster", "west"]);
    let subscriber = start(&["subscribe", "--cluster", "west"]);
    for process in [&engine, &publish, &cluster, &subscriber] {
        process.ready().await;
    }
    subscriber.poll("/readyz", |answer| answer["notes"] == json!([])).await;
    rows_go_in_and_their_window_comes_back(&subscriber, "by_request").await;
}
