//! Stage 1: rows come in over HTTP, are checked against their table, and are written in batches to its topic.
//!
//! The way of one request, through the files in this order: `routes.rs` reads its body within bounds; `decode.rs`
//! (with `decode_json.rs`, `decode_arrow.rs` and `columns.rs`) turns it into typed columns or says what is wrong;
//! `batcher.rs` writes its rows together with those of other requests (`queue.rs` decides when) and answers it.
//!
//! Bounds: all bodies being read and all rows not yet in the log share one budget of bytes (`budget.rs`); when it is
//! used up, or the log does not take the rows in time, senders get 503 with `Retry-After`.

mod batcher;
mod budget;

mod decode;
mod decode_arrow;
#[cfg(test)]
mod decode_fuzz;
mod decode_json;
#[cfg(test)]
mod decode_tests;
#[cfg(test)]
mod decode_types_tests;
mod metrics;
mod queue;
pub mod routes;
mod settings;
mod socket;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

pub use settings::{Ack, EventTime, Settings};

use batcher::Batcher;
use budget::Budget;
use decode::Decoder;
use metrics::Metrics;

use crate::log::Log;
use crate::log::program::ProgramView;
use crate::reaction::table::{Connector, Format, Table, TableKind};
use crate::shutdown::Tasks;

/// The running stage.
pub struct Ingest {
    settings: Settings,
    log: Arc<dyn Log>,
    tables: watch::Receiver<Arc<ProgramView>>,
    tasks: Tasks,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,

    sources: RwLock<Sources>,
}

/// What is open, and the program it was made from.
struct Sources {
    view: Arc<ProgramView>,
    by_name: BTreeMap<String, Arc<Source>>,
}

/// A source table that takes rows.
struct Source {
    table: Table,
    decoder: Decoder,
    batcher: Arc<Batcher>,
}

/// What a name stands for.
enum Lookup {
    /// It takes rows.
    Source(Arc<Source>),
    /// It is a sink.
    Sink,
    /// A source whose rows come from elsewhere.
    Fed,
    /// A source whose declaration ingest cannot serve; why.
    Unusable(&'static str),
    /// Nothing.
    Unknown,
}

impl Ingest {
    /// Takes rows for the source tables that `tables` names, now and later, until `tasks` are cancelled; then what is
    /// waiting is written and everybody answered.
    pub fn start(
        log: Arc<dyn Log>,
        tables: watch::Receiver<Arc<ProgramView>>,
        settings: Settings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let budget = Budget::new(settings.max_pending_bytes);
        let sources = RwLock::new(Sources { view: Arc::default(), by_name: BTreeMap::new() });
        let metrics = Arc::new(Metrics::new());
        Arc::new(Self { settings, log, tables, tasks: tasks.clone(), budget, metrics, sources })
    }

    /// What is missing before a row can be taken, for `/readyz`.
    pub fn not_ready(&self) -> Option<String> {
        let none = self.tables.borrow().tables_of(TableKind::Source).next().is_none();
        none.then(|| {
            "no source table is known: the running program has not been stored in the log yet".to_owned()
        })
    }

    /// How many bytes of `max_pending_bytes` are in use: bodies being read, and rows on their way to the log.
    pub fn pending_bytes(&self) -> usize {
        self.budget.used()
    }

    fn lookup(&self, name: &str) -> Lookup {
        let view = Arc::clone(&self.tables.borrow());
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&sources.view, &view) {
            return sources.lookup(name);
        }
        drop(sources);
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&sources.view, &view) {
            self.follow(&mut sources, view);
        }
        sources.lookup(name)
    }

    /// Opens new tables, closes those that are gone or changed, and leaves the others as they are.
    fn follow(&self, sources: &mut Sources, view: Arc<ProgramView>) {
        let mut old = std::mem::take(&mut sources.by_name);
        let takes_rows =
            |table: &&Table| table.format == Format::Arrow && table.with.connector == Connector::Kafka;
        for table in view.tables_of(TableKind::Source).filter(takes_rows) {
            let source = match old.remove(&table.name) {
                Some(source) if source.table == *table => source,
                changed => {
                    if let Some(source) = changed {
                        source.batcher.close();
                    }
                    match self.open(table) {
                        Ok(source) => source,
                        Err(error) => {
                            tracing::error!(table = table.name, "the table takes no rows: {error}");
                            continue;
                        }
                    }
                }
            };
            sources.by_name.insert(table.name.clone(), source);
        }
        for source in old.into_values() {
            source.batcher.close();
        }
        sources.view = view;
    }

    fn open(&self, table: &Table) -> Result<Arc<Source>, String> {
        let decoder = Decoder::new(table)?;
        let metrics = Arc::clone(&self.metrics);
        let batcher = Batcher::start(Arc::clone(&self.log), table, &self.settings, metrics, &self.tasks);
        Ok(Arc::new(Source { table: table.clone(), decoder, batcher }))
    }
}

impl Sources {
    fn lookup(&self, name: &str) -> Lookup {
        if let Some(source) = self.by_name.get(name) {
            return Lookup::Source(Arc::clone(source));
        }
        match self.view.tables.get(name) {
            Some(Table { kind: TableKind::Sink, .. }) => Lookup::Sink,
            Some(table) if table.with.connector != Connector::Kafka => Lookup::Fed,
            Some(Table { format: Format::Json, .. }) => {
                Lookup::Unusable("ingest into a source with format = 'json'")
            }
            Some(_) => Lookup::Unusable("ingest into a table with such a DEFAULT"),
            None => Lookup::Unknown,
        }
    }
}
