//! Partitions that are added to a source's topic while everything runs are written to and read, and no row is late for it.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use tokio::sync::watch;

use crate::support::binary::Running;
use crate::support::books;
use crate::support::kafka::Broker;
use crate::support::load::Load;

const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '2 seconds')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');
CREATE TABLE by_request (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, people BIGINT
) WITH (connector = 'kafka', type = 'sink', 'sink.key_field' = 'room');
";
const BY_REQUEST: &str = "
INSERT INTO by_request SELECT window.start, window.end, room, emoji_type, count, people
FROM (
  SELECT tumble(INTERVAL '500 milliseconds') AS window, room, emoji_type, count(*) AS count,
         count(DISTINCT user_id) AS people
  FROM reactions GROUP BY window, room, emoji_type
);
";
const BEFORE: usize = 3;
const AFTER: usize = 5;

async fn add_partitions(broker: &Broker) {
    let config = ClientConfig::new().set("bootstrap.servers", &broker.address).clone();
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let added = [NewPartitions::new("reactions", AFTER)];
    let results = admin.create_partitions(&added, &AdminOptions::new()).await.unwrap();
    results.into_iter().for_each(|result| drop(result.unwrap()));
}

fn ends(table: &Value) -> Vec<i64> {
    let partitions = table["partitions"].as_array().cloned().unwrap_or_default();
    partitions.iter().map(|partition| partition["end"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_while_a_query_runs_are_written_and_read_and_no_row_is_lost_or_late() {
    let (broker, dir) = (Broker::start(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), TABLES).unwrap();
    std::fs::write(dir.path().join("sql/by_request.sql"), BY_REQUEST).unwrap();
    let up = Running::up(dir.path(), &["--kafka", &broker.address]);
    up.ready().await;
    let (_tell, address) = watch::channel(Some(up.url("")));
    let load = Load::start(&address, "/v1/tables/reactions", &["left", "right"]);
    up.windows("by_request", |windows| windows.len() > 2).await;
    assert_eq!(ends(&up.json("/v1/tables/reactions").await).len(), BEFORE);
    add_partitions(&broker).await;
    let written = |table: &Value| ends(table).len() == AFTER && ends(table).iter().all(|end| *end > 0);
    up.poll("/v1/tables/reactions", written).await;
    let ledger = load.stop().await;
    books::settle(&up, "by_request", &ledger).await;
    books::check_requests(&ledger, &books::all_results(&up, "by_request").await);
    assert_eq!(up.json("/v1/queries/by_request").await["last_error"], Value::Null, "nothing went wrong");
}
