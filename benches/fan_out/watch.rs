//! The client's process: the viewers of `emostream simulate`, and its report when they are sent home.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use emostream::shutdown::Tasks;
use emostream::simulate::crowd::{Crowd, Shape};
use emostream::simulate::tally::Tally;
use emostream::simulate::{self, Plan, Transport};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::AnyError;

/// Viewers that join in a second.
const RAMP: f64 = 1_000.0;

#[tokio::main]
pub(crate) async fn run(options: &BTreeMap<String, String>) -> Result<(), AnyError> {
    let option = |name: &str| options.get(name).cloned().unwrap_or_default();
    let url: reqwest::Url = option("url").parse()?;
    let viewers = option("viewers").parse()?;
    let plan = Plan {
        senders: 0,
        viewers,
        rate: 1.0,
        ramp: RAMP,
        duration: Duration::from_secs(3600),
        rooms: 1,
        shape: Shape::Steady,
        batch: None,
        transport: if option("transport") == "sse" { Transport::Sse } else { Transport::WebSocket },
        settle: Duration::ZERO,
        seed: 1,
        live_url: url.clone(),
        query_url: url.clone(),
        url,
    };
    let crowd = Arc::new(Crowd::new(plan.shape, plan.rate, plan.duration, plan.seed)?);
    let (tally, stop) = (Arc::new(Tally::new(0)), CancellationToken::new());
    let running = Tasks::new().spawn(simulate::run(plan, crowd, Arc::clone(&tally), stop.clone()));
    while tally.watching() < viewers && !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("watching {}", tally.watching());
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    stop.cancel();
    println!("{}", serde_json::to_string(&running.await??)?);
    Ok(())
}
