//! The real thing: a subscriber that follows its cluster's topic, and whoever appends to that topic.

use std::sync::Arc;

use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::{Log, NewRecord, cluster_topic};
use emostream::publish::{Heart, Settings, Subscriber, live_router};
use emostream::shutdown::Tasks;
use emostream::{http, telemetry};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::AnyError;
use crate::message::{Order, message};

const CLUSTER: &str = "bench";

#[tokio::main]
pub(crate) async fn run() -> Result<(), AnyError> {
    let (folder, tasks) = (tempfile::tempdir()?, Tasks::new());
    telemetry::start(&telemetry::Settings::default(), &tasks)?;
    let log: Arc<dyn Log> = EmbeddedLog::open(folder.path(), embedded::Settings::default())?;
    let heart = Heart::start(Arc::clone(&log), &tasks);
    let listener = http::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let url = format!("http://{address}");
    let settings = Settings::default();
    let subscriber = Subscriber::start(Arc::clone(&log), CLUSTER, "one", &url, &settings, &heart, &tasks);
    while subscriber.ready().is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    http::serve(listener, live_router(vec![subscriber]), &tasks);
    println!("listening {address}");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        publish(log.as_ref(), Order::parse(&line)?).await?;
    }
    Ok(())
}

async fn publish(log: &dyn Log, order: Order) -> Result<(), AnyError> {
    let topic = cluster_topic(CLUSTER);
    let began = Instant::now();
    let (until, mut next) = (began + Duration::from_secs_f64(order.seconds), began);
    let mut sequence = 0;
    while Instant::now() < until {
        let record = |n: u64| {
            let value = Some(message(sequence + n, order.bytes).into());
            NewRecord { value, ..NewRecord::default() }
        };
        let records = (1..=order.at_once()).map(record).collect();
        log.append(&topic, 0, records).await?;
        sequence += order.at_once();
        next += order.tick();
        sleep_until(next).await;
    }
    println!("published {sequence} {}", began.elapsed().as_secs_f64());
    Ok(())
}
