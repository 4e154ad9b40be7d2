//! What is carried between the log and the outside while the program runs: a [`Feed`] for each file or impulse that a
//! query reads, an [`Outlet`] for each file or standard output that one writes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::feed::Feed;
use super::outlet::Outlet;
use super::planned::Planned;
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
