//! A random query of the dialect, which is written twice: for the engine, and as a batch query over the same rows.
//!
//! Both texts share everything but the window: the batch query reads `ws` and `we`, its rows' windows, as two columns.
//! Every query has a total order wherever it orders, so that there is one right answer.

use std::fmt::Write;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// The source table of all generated queries.
pub(super) const SOURCE: &str = "CREATE TABLE reactions (
    user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL DEFAULT 'main',
    timestamp TIMESTAMP NOT NULL DEFAULT now(), country TEXT, n INT, big BIGINT, u INT UNSIGNED, weight DOUBLE,
    fair BOOLEAN, at TIMESTAMP, WATERMARK FOR timestamp AS (timestamp - INTERVAL '500 milliseconds')
  ) WITH (connector = 'kafka', type = 'source', format = 'arrow');";

/// What a text is written for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum For {
    Engine,
    Batch,
}

/// How the rows are divided by time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Window {
    Tumble { width: i64 },
    Hop { slide: i64, width: i64 },
    Session { gap: i64 },
}

impl Window {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..4) {
            0 => {
                let slide = *[500, 1_000, 2_000, 3_000].choose(random).unwrap();
                Self::Hop { slide, width: slide * random.random_range(1..7) }
            }
            1 => Self::Session { gap: *[100, 700, 1_000, 4_000].choose(random).unwrap() },
            // Saved panes.
            2 if random.random_ratio(1, 4) => match random.random_bool(0.5) {
                true => Self::Tumble { width: *[61_000, 90_000, 75_500].choose(random).unwrap() },
                false => Self::Hop { slide: 15_000, width: *[75_000, 105_000].choose(random).unwrap() },
            },
            _ => Self::Tumble { width: *[1_000, 1_500, 2_000, 5_000, 7_000, 10_000].choose(random).unwrap() },
        }
    }

    fn call(self) -> String {
        match self {
            Self::Tumble { width } => format!("tumble({})", interval(width)),
            Self::Hop { slide, width } => format!("hop({}, {})", interval(slide), interval(width)),
            Self::Session { gap } => format!("session({})", interval(gap)),
        }
    }

    /// The source with its rows' windows, from the table `events`; for sessions as it is.
    fn rows(self) -> String {
        let bin = |width| format!("date_bin({}, timestamp, TIMESTAMP '1970-01-01')", interval(width));
        match self {
            Self::Tumble { width } => {
                let start = bin(width);
                format!("SELECT *, {start} AS ws, {start} + {} AS we FROM events", interval(width))
            }
            Self::Hop { slide, width } => {
                let back = (0..width / slide).map(|n| format!("({})", interval(n * slide)));
                let (back, start) = (back.collect::<Vec<_>>().join(", "), format!("{} - back", bin(slide)));
                format!(
                    "SELECT events.*, {start} AS ws, {start} + {} AS we FROM events CROSS JOIN (VALUES {back}) AS o(back)",
                    interval(width)
                )
            }
            Self::Session { .. } => "SELECT * FROM events".to_owned(),
        }
    }

    /// The bounds of a row's window as columns of the batch query's source.
    fn bounds(self) -> &'static str {
        if matches!(self, Self::Session { .. }) { "" } else { ", ws, we" }
    }
}

/// The rows of `from` with the bounds of their sessions, of which each group (by these keys) has its own.
fn sessions(from: &str, keys: &[String], gap: i64) -> String {
    let by_key = match keys {
        [] => String::new(),
        keys => format!("PARTITION BY {}", keys.join(", ")),
    };
    let (keys, gap) = (keys.iter().map(|key| format!("{key}, ")).collect::<String>(), interval(gap));
    let fresh = format!(
        "SELECT *, CASE WHEN timestamp < lag(timestamp) OVER ({by_key} ORDER BY timestamp) + {gap} THEN 0 ELSE 1 END AS fresh \
         FROM ({from}) AS s0"
    );
    let burst =
        format!("SELECT *, sum(fresh) OVER ({by_key} ORDER BY timestamp) AS burst FROM ({fresh}) AS s1");
    format!(
        "SELECT *, min(timestamp) OVER (PARTITION BY {keys}burst) AS ws, \
         max(timestamp) OVER (PARTITION BY {keys}burst) + {gap} AS we FROM ({burst}) AS s2"
    )
}

fn interval(ms: i64) -> String {
    if ms % 1000 == 0 {
        return format!("INTERVAL '{} seconds'", ms / 1000);
    }
    format!("INTERVAL '{ms} milliseconds'")
}

/// How a GROUP BY names what is selected.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Alias,
    Ordinal,
    Expression,
}

/// What the windowed SELECT reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Table,
    /// A sub-select with a filter and computed columns.
    SubSelect(&'static str),
    /// The same as a common table expression.
    Cte(&'static str),
    /// Two sub-selects, one in the other.
    Nested(&'static str, &'static str),
    /// A UNION ALL of two sub-selects.
    Union(&'static str, &'static str),
}

/// Another windowed aggregate beside the first, of the rows for which the condition holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Join {
    kind: &'static str,
    condition: &'static str,
}

/// A column: its expression and its SQL type.
type Typed = (&'static str, &'static str);

/// What lies above the windowed aggregate, from the inside out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Above {
    /// A CASE over the count.
    Scaled,
    /// WHERE over the count.
    Where,
    /// Grouped again, by window and the first key alone; `true`: by repeating the window call.
    Regrouped(bool),
    /// The first rows of each window, or of each key in it.
    Top(usize, bool),
    /// Beside every row the sum over its window.
    Share,
}

/// A query of the dialect.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) window: Window,
    from: From,
    filters: Vec<&'static str>,
    keys: Vec<Typed>,
    by: By,
    /// After `count(*)`, which is always there.
    aggregates: Vec<(String, &'static str)>,
    having: Option<&'static str>,
    join: Option<Join>,
    above: Vec<Above>,
    /// ORDER BY … LIMIT per window.
    limit: Option<usize>,
}

const KEYS: &[Typed] = &[
    ("room", "TEXT"),
    ("emoji_type", "TEXT"),
    ("upper(emoji_type)", "TEXT"),
    ("country", "TEXT"),
    ("coalesce(country, '?')", "TEXT"),
    ("CASE WHEN n > 3 THEN 'many' WHEN n IS NULL THEN NULL ELSE 'few' END", "TEXT"),
    ("concat(room, '/', country)", "TEXT"),
    ("room || country", "TEXT"),
    ("substr(user_id, 5, 1)", "TEXT"),
    ("'all'", "TEXT"),
    ("n", "INT"),
    ("n % 3", "BIGINT"),
    ("u", "INT UNSIGNED"),
    ("big / 1000000", "BIGINT"),
    ("character_length(user_id)", "INT"),
    ("fair", "BOOLEAN"),
    ("weight > 2.5", "BOOLEAN"),
    ("date_trunc('minute', at)", "TIMESTAMP"),
    ("CAST(n + 1 AS TEXT)", "TEXT"),
];

const CONDITIONS: &[&str] = &[
    "room <> 'room0'",
    "n > 2",
    "n IS NOT NULL",
    "country IN ('de', 'br')",
    "country NOT IN ('de', 'jp')",
    "emoji_type LIKE '%a%'",
    "fair",
    "NOT fair",
    "fair IS NOT TRUE",
    "weight < 4.0 OR room = 'room1'",
    "n BETWEEN 1 AND 5",
    "CASE WHEN n <> 0 THEN 10 / n END > 2",
    "at > TIMESTAMP '2026-01-01T00:00:20'",
    "character_length(user_id) = 5",
    "user_id <> 'user1' AND true",
    "u >= 2 AND big < 3000000",
    "coalesce(country, room) > 'de'",
];

/// Which of these an ORDER BY or a FILTER goes with is seen at the place of `{}`.
const AGGREGATES: &[Typed] = &[
    ("count(*){}", "BIGINT"),
    ("count(n){}", "BIGINT"),
    ("count(country){}", "BIGINT"),
    ("count(DISTINCT user_id){}", "BIGINT"),
    ("count(DISTINCT country){}", "BIGINT"),
    ("count(DISTINCT n){}", "BIGINT"),
    ("count(DISTINCT at){}", "BIGINT"),
    ("sum(n){}", "BIGINT"),
    ("sum(big){}", "BIGINT"),
    ("sum(u){}", "BIGINT UNSIGNED"),
    ("sum(weight){}", "DOUBLE"),
    ("sum(DISTINCT n){}", "BIGINT"),
    ("avg(n){}", "DOUBLE"),
    ("avg(weight){}", "DOUBLE"),
    ("min(user_id){}", "TEXT"),
    ("max(country){}", "TEXT"),
    ("min(n){}", "INT"),
    ("max(weight){}", "DOUBLE"),
    ("min(at){}", "TIMESTAMP"),
    ("max(timestamp){}", "TIMESTAMP"),
    ("min(fair){}", "BOOLEAN"),
    ("median(n){}", "INT"),
    ("median(weight){}", "DOUBLE"),
    ("stddev(weight){}", "DOUBLE"),
    ("var_pop(n){}", "DOUBLE"),
    ("corr(n, weight){}", "DOUBLE"),
    ("covar_pop(weight, n){}", "DOUBLE"),
    ("regr_slope(weight, n){}", "DOUBLE"),
    ("bool_and(fair){}", "BOOLEAN"),
    ("bool_or(fair){}", "BOOLEAN"),
    ("bit_and(n){}", "INT"),
    ("bit_or(n){}", "INT"),
    ("bit_xor(n){}", "INT"),
    ("sum(CASE WHEN room = 'room1' THEN 2 ELSE 0 END){}", "BIGINT"),
    ("max(n){} - min(n){}", "INT"),
    ("sum(weight){} / count(*){}", "DOUBLE"),
    ("array_to_string(array_agg(user_id ORDER BY user_id){}, ',')", "TEXT"),
    ("array_to_string(array_agg(DISTINCT emoji_type ORDER BY emoji_type){}, ',')", "TEXT"),
    ("first_value(user_id ORDER BY timestamp, user_id){}", "TEXT"),
    ("last_value(emoji_type ORDER BY timestamp, emoji_type){}", "TEXT"),
    ("first_value(n ORDER BY timestamp DESC, n){}", "INT"),
    ("percentile_cont(weight, 0.25){}", "DOUBLE"),
    ("length(max(user_id){})", "INT"),
];

const HAVINGS: &[&str] = &[
    "count(*) > 1",
    "sum(n) > 5",
    "max(weight) IS NOT NULL",
    "count(DISTINCT user_id) >= 2 AND min(n) < 5",
    "bool_or(fair)",
];

impl Query {
    pub(super) fn random(random: &mut StdRng) -> Self {
        let some = |random: &mut StdRng, from: &[&'static str]| *from.choose(random).unwrap();
        let from = match random.random_range(0..8) {
            3 => From::Union(some(random, CONDITIONS), some(random, CONDITIONS)),
            0 => From::SubSelect(some(random, CONDITIONS)),
            1 => From::Cte(some(random, CONDITIONS)),
            2 => From::Nested(some(random, CONDITIONS), some(random, CONDITIONS)),
            _ => From::Table,
        };
        let filters = (0..random.random_range(0..3)).map(|_| some(random, CONDITIONS)).collect();
        let count = random.random_range(0..4);
        let mut keys: Vec<Typed> = KEYS.choose_multiple(random, count).copied().collect();
        if from != From::Table && random.random_bool(0.5) {
            keys.push(("shade", "TEXT"));
        }
        let count = random.random_range(0..5);
        let aggregates = AGGREGATES.choose_multiple(random, count).copied();
        let aggregates: Vec<Typed> = aggregates.collect();
        let aggregates = aggregates.into_iter().map(|(text, sql_type)| {
            let filter = match random.random_bool(0.3) {
                true => format!(" FILTER (WHERE {})", some(random, CONDITIONS)),
                false => String::new(),
            };
            (text.replace("{}", &filter), sql_type)
        });
        let aggregates = aggregates.collect();
        let steps =
            [Above::Scaled, Above::Where, Above::Share, Above::Regrouped(false), Above::Regrouped(true)];
        let mut above: Vec<Above> =
            (0..random.random_range(0..3)).map(|_| *steps.choose(random).unwrap()).collect();
        if random.random_bool(0.3) {
            above.push(Above::Top(random.random_range(1..4), random.random_bool(0.5)));
        }
        Self {
            window: Window::random(random),
            from,
            filters,
            keys,
            by: *[By::Alias, By::Ordinal, By::Expression].choose(random).unwrap(),
            aggregates,
            having: random.random_bool(0.2).then(|| some(random, HAVINGS)),
            join: random.random_bool(0.2).then(|| Join {
                kind: ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"].choose(random).unwrap(),
                condition: some(random, CONDITIONS),
            }),
            above,
            limit: random.random_bool(0.2).then(|| random.random_range(1..5)),
        }
    }

    /// The queries that say less than this one.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut query = self.clone();
            change(&mut query);
            smaller.push(query);
        };
        (0..self.above.len()).rev().for_each(|i| {
            with(&|query| {
                query.above.remove(i);
            })
        });
        (0..self.filters.len()).for_each(|i| {
            with(&|query| {
                query.filters.remove(i);
            })
        });
        (0..self.aggregates.len()).for_each(|i| {
            with(&|query| {
                query.aggregates.remove(i);
            })
        });
        (0..self.keys.len()).for_each(|i| with(&|query| query.keys.retain(|key| *key != self.keys[i])));
        if self.having.is_some() {
            with(&|query| query.having = None);
        }
        if self.join.is_some() {
            with(&|query| query.join = None);
        }
        if self.limit.is_some() {
            with(&|query| query.limit = None);
        }
        if self.from != From::Table && !self.keys.iter().any(|(key, _)| *key == "shade") {
            with(&|query| query.from = From::Table);
        }
        if self.by != By::Alias {
            with(&|query| query.by = By::Alias);
        }
        smaller
    }

    /// `CREATE TABLE answer` and the query for the engine, or the batch query alone.
    pub(super) fn sql(&self, to: For) -> String {
        let mut columns: Vec<(String, &str)> = Vec::new();
        let mut text = self.joined(to);
        let mut keys: Vec<(String, &str)> =
            self.keys.iter().enumerate().map(|(i, (_, sql_type))| (format!("k{i}"), *sql_type)).collect();
        let mut values = vec![("a0".to_owned(), "BIGINT")];
        values.extend(self.aggregates.iter().enumerate().map(|(i, (_, t))| (format!("a{}", i + 1), *t)));
        values.extend(self.join.map(|_| ("j0".to_owned(), "BIGINT")));
        for (step, above) in self.above.iter().enumerate() {
            text = self.step(to, *above, step, &text, &mut keys, &mut values);
        }
        columns.extend(keys.iter().cloned());
        columns.extend(values);
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let mut order: Vec<&str> = vec!["a0 DESC"];
        order.extend(keys.iter().map(|(name, _)| name.as_str()));
        let order = order.join(", ");
        let bounds = if to == For::Engine { "window.start, window.end" } else { "ws, we" };
        let listed = std::iter::once(bounds).chain(names.iter().copied()).collect::<Vec<_>>().join(", ");
        let mut query = match (self.limit, to) {
            (Some(limit), For::Engine) => {
                format!("SELECT {listed} FROM ({text}) AS x ORDER BY {order} LIMIT {limit}")
            }
            (Some(limit), For::Batch) => format!(
                "SELECT {listed} FROM (SELECT *, row_number() OVER (PARTITION BY ws, we ORDER BY {order}) AS place FROM ({text})) \
                 WHERE place <= {limit}"
            ),
            (None, _) => format!("SELECT {listed} FROM ({text}) AS x"),
        };
        if let From::Cte(_) = self.from {
            query = format!("WITH shaded AS ({}) {query}", self.source(to));
        }
        if to == For::Batch {
            let rows = format!("reactions AS ({})", self.window.rows());
            return match query.strip_prefix("WITH ") {
                Some(rest) => format!("WITH {rows}, {rest}"),
                None => format!("WITH {rows} {query}"),
            };
        }
        let columns = columns.iter().fold(String::new(), |mut text, (name, sql_type)| {
            write!(text, ", {name} {sql_type}").unwrap();
            text
        });
        format!(
            "CREATE TABLE answer (window_start TIMESTAMP, window_end TIMESTAMP{columns})
  WITH (connector = 'kafka', type = 'sink', format = 'json');
INSERT INTO answer {query};"
        )
    }

    /// The sub-select in FROM.
    fn source(&self, to: For) -> String {
        let bounds = if to == For::Batch { self.window.bounds() } else { "" };
        match self.from {
            From::Table => "reactions".to_owned(),
            From::SubSelect(condition) | From::Cte(condition) => {
                format!("SELECT *, lower(emoji_type) || room AS shade FROM reactions WHERE {condition}")
            }
            From::Union(first, second) => format!(
                "SELECT *, concat(room, '+') AS shade FROM reactions WHERE {first} \
                 UNION ALL SELECT *, emoji_type AS shade FROM reactions WHERE {second}"
            ),
            From::Nested(inner, outer) => format!(
                "SELECT r.*, coalesce(r.country, r.room) AS shade FROM (
                   SELECT user_id, emoji_type, concat(room, '!') AS room, timestamp, country, n, big, u, weight, fair, at{bounds}
                   FROM reactions WHERE {inner}) AS r WHERE {outer}"
            ),
        }
    }

    /// The windowed aggregate.
    fn windowed(&self, to: For) -> String {
        let from = match self.from {
            From::Table => "reactions".to_owned(),
            From::Cte(_) => "shaded".to_owned(),
            From::SubSelect(_) | From::Nested(..) | From::Union(..) => format!("({}) AS s", self.source(to)),
        };
        let call = self.window.call();
        let mut items =
            vec![if to == For::Engine { format!("{call} AS window") } else { "ws, we".to_owned() }];
        let filters: Vec<String> = self.filters.iter().map(|filter| format!("({filter})")).collect();
        let mut filters = match filters.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", filters.join(" AND ")),
        };
        let keys = self.keys.iter().enumerate().map(|(i, (key, _))| format!("{key} AS k{i}"));
        let mut from = from;
        if let (Window::Session { gap }, For::Batch) = (self.window, to) {
            let known = keys.fold(String::new(), |text, key| format!("{text}, {key}"));
            let names: Vec<String> = (0..self.keys.len()).map(|i| format!("k{i}")).collect();
            from =
                format!("({}) AS w", sessions(&format!("SELECT *{known} FROM {from}{filters}"), &names, gap));
            items.extend(names);
            filters = String::new();
        } else {
            items.extend(keys);
        }
        items.push("count(*) AS a0".to_owned());
        items
            .extend(self.aggregates.iter().enumerate().map(|(i, (text, _))| format!("{text} AS a{}", i + 1)));
        let mut group = vec![match (to, self.by) {
            (For::Batch, _) => "ws, we".to_owned(),
            (For::Engine, By::Alias) => "window".to_owned(),
            (For::Engine, By::Ordinal) => "1".to_owned(),
            (For::Engine, By::Expression) => call,
        }];
        group.extend(self.keys.iter().enumerate().map(|(i, (key, _))| match (to, self.by) {
            (For::Engine, By::Ordinal) => (i + 2).to_string(),
            // A constant in GROUP BY would be an ordinal or an error.
            (For::Engine, By::Expression) if *key != "'all'" => (*key).to_owned(),
            _ => format!("k{i}"),
        }));
        let mut text = format!("SELECT {} FROM {from}{filters}", items.join(", "));
        text += &format!(" GROUP BY {}", group.join(", "));
        if let Some(having) = self.having {
            text += &format!(" HAVING {having}");
        }
        text
    }

    /// The windowed aggregate, with another beside it.
    fn joined(&self, to: For) -> String {
        let left = self.windowed(to);
        let Some(Join { kind, condition }) = self.join else { return left };
        let by = self.keys.first().filter(|(key, _)| *key != "shade");
        let other = Self {
            from: From::Table,
            filters: vec![condition],
            keys: by.into_iter().copied().collect(),
            by: By::Alias,
            aggregates: vec![],
            having: None,
            join: None,
            ..self.clone()
        };
        let bounds: &[&str] = if to == For::Engine { &["window"] } else { &["ws", "we"] };
        let mut on: Vec<String> = bounds.iter().map(|name| format!("l.{name} = r.{name}")).collect();
        let mut items: Vec<String> =
            bounds.iter().map(|name| format!("coalesce(l.{name}, r.{name}) AS {name}")).collect();
        on.extend(by.map(|_| "l.k0 = r.k0".to_owned()));
        items.extend((0..self.keys.len()).map(|i| match (i, by) {
            (0, Some(_)) => "coalesce(l.k0, r.k0) AS k0".to_owned(),
            _ => format!("l.k{i} AS k{i}"),
        }));
        items.push("coalesce(l.a0, 0) AS a0".to_owned());
        items.extend((1..=self.aggregates.len()).map(|i| format!("l.a{i} AS a{i}")));
        format!(
            "SELECT {}, r.a0 AS j0 FROM ({left}) AS l {kind} ({}) AS r ON {}",
            items.join(", "),
            other.windowed(to),
            on.join(" AND ")
        )
    }

    fn step(
        &self,
        to: For,
        above: Above,
        step: usize,
        text: &str,
        keys: &mut Vec<(String, &'static str)>,
        values: &mut Vec<(String, &'static str)>,
    ) -> String {
        let window = if to == For::Engine { "window" } else { "ws, we" };
        let bounds = if to == For::Engine { "window" } else { "ws, we" };
        let added = format!("b{step}");
        match above {
            Above::Scaled => {
                values.push((added.clone(), "BIGINT"));
                format!(
                    "SELECT *, CASE WHEN a0 > 2 THEN a0 / 2 ELSE 1 END AS {added} FROM ({text}) AS x{step}"
                )
            }
            Above::Where => {
                format!(
                    "SELECT * FROM ({text}) AS x{step} WHERE a0 > 1 AND {} IS NOT NULL",
                    window.trim_end_matches(", we")
                )
            }
            Above::Share => {
                values.push((added.clone(), "BIGINT"));
                format!("SELECT *, sum(a0) OVER (PARTITION BY {window}) AS {added} FROM ({text}) AS x{step}")
            }
            Above::Regrouped(repeats) => {
                keys.truncate(1);
                *values = vec![("a0".to_owned(), "BIGINT"), (added.clone(), "BIGINT")];
                let key = keys.first().map_or(String::new(), |(name, _)| format!(", {name}"));
                let (selected, grouped) = match (to, repeats) {
                    (For::Engine, true) => (format!("{} AS window", self.window.call()), self.window.call()),
                    _ => (bounds.to_owned(), bounds.to_owned()),
                };
                format!(
                    "SELECT {selected}{key}, sum(a0) AS a0, count(*) AS {added} FROM ({text}) AS x{step} GROUP BY {grouped}{key}"
                )
            }
            Above::Top(limit, by_key) => {
                let mut order = vec!["a0 DESC".to_owned()];
                order.extend(keys.iter().map(|(name, _)| name.clone()));
                let within = match keys.first().filter(|_| by_key) {
                    Some((key, _)) => format!("{window}, {key}"),
                    None => window.to_owned(),
                };
                values.push((added.clone(), "BIGINT"));
                format!(
                    "SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {within} ORDER BY {}) AS {added} FROM ({text}) \
                     AS x{step}) AS y{step} WHERE {added} <= {limit}",
                    order.join(", ")
                )
            }
        }
    }
}
