//! What is carried between the log and the outside while the program runs: a [`Feed`] for each file or impulse that a
//! query reads, an [`Outlet`] for each file or standard output that one writes.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::committing::RETRY;
use super::failure::Failure;
use super::feed::Feed;
use super::outlet::Outlet;
use super::planned::Planned;
use super::shared::Shared;
use super::{Engine, Running};
use crate::reaction::table::{Connector, Table, TableKind};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// How long a carrier may take to end before the one that follows it begins.
const END: Duration = Duration::from_secs(3);

/// A table that is carried, and the tasks that do it.
pub(super) type Carried = BTreeMap<String, (Table, Tasks)>;

/// The tables that the program's queries read or write, and whose rows are not in the log by themselves.
pub(super) fn carried(planned: &Planned) -> BTreeMap<String, Table> {
    let mut tables = BTreeMap::new();
    for query in planned.queries.values() {
        let sources = query.compiled.sources.iter().map(|source| &source.table);
        for table in sources.chain(query.compiled.outputs.iter().map(|output| &output.sink)) {
            if !matches!(table.with.connector, Connector::Kafka | Connector::Blackhole) {
                tables.insert(table.name.clone(), table.clone());
            }
        }
    }
    tables
}

/// Carries a table to its end, beginning again after what can pass: a file may be put there, or repaired. Says whether
/// it came to the end, and was not stopped, or replaced by another process.
pub(super) async fn to_the_end<F: Future<Output = Result<(), Failure>>>(
    shared: &Shared,
    table: &str,
    tasks: &Tasks,
    carry: impl Fn() -> F,
) -> bool {
    let mut wait = RETRY.0;
    loop {
        let carrying = async {
            if !shared.is_leader() {
                return Err(Failure::Fenced("this process does not hold the lease".to_owned()));
            }
            carry().await
        };
        let ended = tokio::select! {
            () = tasks.cancelled() => return false,
            ended = carrying => ended,
        };
        match ended {
            Ok(()) => return true,
            // What follows it in this process has fenced it, and it sees that first.
            Err(Failure::Fenced(_)) if tasks.is_cancelled() => return false,
            Err(Failure::Fenced(reason)) => {
                tracing::warn!(table, reason, "another process carries it");
                shared.fenced.cancel();
                return false;
            }
            Err(Failure::Recover(reason) | Failure::Renew(reason) | Failure::Stop(reason)) => {
                tracing::warn!(table, reason, "it is not carried to its end; trying again");
            }
        }
        tokio::select! {
            () = tasks.cancelled() => return false,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    }
}

impl Engine {
    /// Carries what the program says, and nothing else. Before its queries read: they must not take a topic for complete
    /// that a file is still to be read into.
    pub(super) fn carry(&self, program: &Running) {
        let wanted = carried(&program.planned);
        let mut running = lock(&self.carried);
        running.retain(|name, (_, tasks)| {
            let stays = wanted.contains_key(name);
            if !stays {
                tasks.cancel();
            }
            stays
        });
        for (name, table) in wanted {
            if running.get(&name).is_some_and(|(known, _)| *known == table) {
                continue;
            }
            let before = running.remove(&name).map(|(_, tasks)| tasks);
            if table.kind == TableKind::Source && Feed::is_file(&table) {
                self.shared.fed.begin(&table.topic);
            }
            let tasks = self.tasks.child();
            self.start_carrying(table.clone(), tasks.clone(), before);
            running.insert(name, (table, tasks));
        }
    }

    fn start_carrying(&self, table: Table, tasks: Tasks, before: Option<Tasks>) {
        let (shared, log) = (std::sync::Arc::clone(&self.shared), std::sync::Arc::clone(&self.log));
        let folder = self.place.folder.clone();
        self.tasks.spawn(async move {
            if let Some(before) = before
                && !before.stop(END).await
            {
                tracing::warn!(table = table.name, "what carried it before did not end in time");
            }
            match table.kind {
                TableKind::Source => Feed { shared, log, table, folder }.run(tasks).await,
                TableKind::Sink => Outlet { shared, log, table, folder }.run(tasks).await,
            }
        });
    }
}
